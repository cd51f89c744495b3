"""Simulated systems that an agent acts on, and the tools it acts with."""

from verigym.tasks.worlds.tool import Tool

__all__ = ["Tool"]
