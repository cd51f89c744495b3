"""What each piece of work is doing, and whether anything moves: for the report on a run that stands still."""

from __future__ import annotations

import threading
import time
import weakref
from contextlib import ContextDecorator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Doing(NamedTuple):
    """Something that takes time: its kind ("tool"), its name ("search"), and when it began (`time.monotonic`)."""

    kind: str
    name: str
    since: float


@dataclass(eq=False, slots=True)
class Activity:
    """What a piece of work is doing, things within one another, the innermost last. Any thread may read it."""

    stack: tuple[Doing, ...] = ()


current: ContextVar[Activity | None] = ContextVar("current", default=None)
"""The activity that `doing` notes things in; a thread that works for another one takes it over with the context."""


class doing(ContextDecorator):  # noqa: N801 - a context manager and a decorator
    """Notes that this piece of work is doing, or waiting for, something.

    A class, as it stands around every judgement and every tool call: a generator takes half as long again.
    """

    def __init__(self, kind: str, name: str = "") -> None:
        self._kind, self._name = kind, name

    def _recreate_cm(self) -> doing:
        return doing(self._kind, self._name)

    def __enter__(self) -> None:
        self._activity = current.get()
        if self._activity is not None:
            self._before = self._activity.stack
            self._activity.stack = (*self._before, Doing(self._kind, self._name, time.monotonic()))
            moved()

    def __exit__(self, *_: object) -> None:
        if self._activity is not None:
            self._activity.stack = self._before
            moved()


_moves = 0


def moved() -> None:
    """Notes that something went on: tokens were generated, an environment answered, a micro-batch began."""
    global _moves
    _moves += 1  # of two threads that meet here one may be lost, which changes nothing


def moves() -> int:
    """A number that is another one when something moved."""
    return _moves


class Playing(NamedTuple):
    """An episode in play: its task, the turn it is at (0 while the environment is reset), and what it waits for."""

    env_id: str
    task_id: str
    turn: int
    stack: tuple[Doing, ...]


class Source(Protocol):
    """Whoever plays episodes."""

    def playing(self) -> tuple[list[Playing], int]:
        """The episodes in play, and how many are not begun; callable from any thread."""


_sources: weakref.WeakSet[Source] = weakref.WeakSet()
_lock = threading.Lock()


def announce(source: Source) -> None:
    """Lets the report ask `source` for its episodes, as long as it lives."""
    with _lock:
        _sources.add(source)


def playing() -> tuple[list[Playing], int]:
    """The episodes in play in this process, and how many are not begun."""
    with _lock:
        sources = list(_sources)
    found = [source.playing() for source in sources]
    return [episode for episodes, _ in found for episode in episodes], sum(count for _, count in found)
