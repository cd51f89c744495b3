"""Sessions with another package's environments, in worker processes that may be lost and are then played again."""

from __future__ import annotations

import atexit
import itertools
import math
import os
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verigym.tasks import _pool
from verigym.tasks._pool import AnswerCrash, AnswerTimeout, Budget, Cancelled, Pool, PoolFailure
from verigym.tasks.errors import EnvClosedError

CPU_SECONDS = 120.0  # of one request; the first one imports the package
STALL_SECONDS = 600.0  # without CPU time: a judge behind an endpoint may take its time
WORKERS = min(4, os.cpu_count() or 1)  # of each package and interpreter
SESSIONS = 4  # in each worker before another one is started: to start one is to import the package

_HOST = Path(__file__).with_name("_host.py")
_LOOP = Path(_pool.__file__).with_name("_worker.py")


class SessionError(Exception):
    """The package or its worker failed; no fault of the agent."""


class MissingPackageError(SessionError):
    """The interpreter has no such package."""


class _Host(Pool):
    """One worker process, and the sessions in it that nobody needs any more."""

    def __init__(self, python: str | None) -> None:
        super().__init__(_HOST, "verigym", size=1)
        self.dropped: list[str] = []
        self.live = 0  # sessions
        # hash seeds order sets. Folders of ours come last, for our own interpreter, and never for another
        self._environ = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore"}
        self._environ.pop("PYTHONPATH", None)
        folders = [os.path.abspath(folder or ".") for folder in sys.path] if python is None else []
        self._command = [python or sys.executable, "-P", "-s", str(_LOOP), str(_HOST), *folders]

    def _start(self) -> _pool._Worker:
        return _pool._Worker(self._command, self._environ, STALL_SECONDS)


class Session:
    """An episode in a worker of `adapter`. Moves are recorded: a new worker gets them again, and must say the same.

    Args:
        adapter: whose file `_<adapter>_host.py` the worker uses.
        python: the interpreter that has the package (None: this one).
        start: `spec`, `seed` and `index`, as JSON.
        cancelled: ends each wait, with EnvClosedError.
    """

    _numbers = itertools.count()

    def __init__(self, adapter: str, python: str | None, start: Mapping[str, Any], cancelled: threading.Event) -> None:
        self._name = f"{os.getpid()}/{next(self._numbers)}"
        self._place = _free_place(adapter, python)
        self._start, self._cancelled = dict(start), cancelled
        self._moves: list[dict[str, Any]] = []
        self._replies: list[dict[str, Any]] = []
        weakref.finalize(self, _drop, self._place, self._name)

    def open(self) -> dict[str, Any]:
        """The worker's reply to the start of the episode. Raises SessionError."""
        reply = self._ask("open", **self._start)
        self._replies = [reply]
        return reply

    def move(self, **move: Any) -> dict[str, Any]:
        """The worker's reply to a move. Raises SessionError."""
        reply = self._ask("move", move=move)
        if "lost" in reply:
            self._play_again()
            reply = self._ask("move", move=move)
        if "lost" in reply:
            raise SessionError("two workers in a row failed at one turn")
        if not math.isfinite(reply.get("reward", 0.0)):
            raise SessionError(f"it pays a reward of {reply['reward']}")
        self._moves.append(move)
        self._replies.append(reply)
        return reply

    def _play_again(self) -> None:
        replies = [self._ask("open", **self._start), *(self._ask("move", move=move) for move in self._moves)]
        if replies != self._replies:
            raise SessionError("its worker was lost, and the episode says other things when it is played again")

    def _ask(self, do: str, **request: Any) -> dict[str, Any]:
        return ask(self._place, {"do": do, "session": self._name, **request}, self._cancelled)


def describe(adapter: str, python: str | None, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What the adapter says of `spec`. Raises SessionError."""
    return ask((adapter, python, 0), {"do": "describe", "spec": spec}, threading.Event())


Place = tuple[str, str | None, int]


def ask(place: Place, request: Mapping[str, Any], cancelled: threading.Event) -> dict[str, Any]:
    """The reply of the worker at `place`. Raises SessionError, MissingPackageError or EnvClosedError."""
    host = _host(place)
    drop, host.dropped = host.dropped, []
    try:
        reply = host.ask({"adapter": place[0], "drop": drop, **request}, Budget(cancelled, CPU_SECONDS))
    except Cancelled:
        raise EnvClosedError("the environment was closed") from None
    except AnswerTimeout:
        raise SessionError(f"it used more than {CPU_SECONDS:.0f} s of CPU time for one turn") from None
    except (AnswerCrash, PoolFailure, OSError) as error:
        raise SessionError(f"its worker failed: {error}") from error
    if "missing" in reply:
        raise MissingPackageError(reply["missing"])
    if "error" in reply:
        raise SessionError(str(reply["error"]))
    return reply


_hosts: dict[Place, _Host] = {}
_lock = threading.Lock()


def _host(place: Place) -> _Host:
    """The worker at a place; a forked child gets its own."""
    with _lock:
        if place not in _hosts:
            _hosts[place] = _Host(place[1])
            atexit.register(_hosts[place].close)
        return _hosts[place]


def _free_place(adapter: str, python: str | None) -> Place:
    """That of the worker with the fewest sessions; of a new one, up to `WORKERS`, where each has `SESSIONS`."""
    places = [(adapter, python, number) for number in range(WORKERS)]
    live = {place: _hosts[place].live for place in places if place in _hosts}
    fresh = next((place for place in places if place not in live), None)
    if fresh is not None and all(count >= SESSIONS for count in live.values()):
        live = {fresh: 0}
    place = min(live, key=lambda place: live[place])
    _host(place).live += 1
    return place


def _drop(place: Place, name: str) -> None:
    host = _hosts.get(place)  # no lock: a finalizer runs anywhere, even while this thread holds it
    if host is not None:
        host.live -= 1
        host.dropped.append(name)


def _forget_after_fork() -> None:
    # the parent's workers and locks are not ours: drop them without touching the processes
    global _hosts, _lock
    for host in _hosts.values():
        atexit.unregister(host.close)
    _hosts, _lock = {}, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
