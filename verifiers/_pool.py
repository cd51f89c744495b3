"""The math verifier's worker processes: which of two mathematical expressions are equal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from verigym.tasks import _pool
from verigym.tasks._pool import Budget, Pool

CPU_SECONDS = 1.0

_TASK = Path(__file__).with_name("_math_worker.py")


@dataclass(frozen=True, slots=True)
class Question:
    """Whether `answer` equals `gold`, numbers within `tolerance` if there is one."""

    gold: str
    answer: str
    tolerance: float | None = None


def shared_pool() -> Pool:
    """The workers of all math verifiers of this process."""
    return _pool.shared_pool(_TASK, "math_verify")


def equal(question: Question, budget: Budget) -> bool:
    """Whether a worker finds the two equal; text that it cannot read equals nothing. Raises as `Pool.ask`."""
    return bool(shared_pool().ask(asdict(question), budget).get("equal", False))
