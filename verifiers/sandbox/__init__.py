"""Runs untrusted Python where it cannot reach the trainer, and returns what it did as data."""

from verigym.verifiers.sandbox.base import Sandbox, Session, in_use, make, register, registered, shared
from verigym.verifiers.sandbox.job import Call, Job, Limits, Return, SandboxResult, Status

__all__ = [
    "Call",
    "Job",
    "Limits",
    "Return",
    "Sandbox",
    "SandboxResult",
    "Session",
    "Status",
    "in_use",
    "make",
    "register",
    "registered",
    "shared",
]
