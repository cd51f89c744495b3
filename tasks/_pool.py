"""Pools of killable worker processes, for work on model output that may hang, crash or eat the memory.

Workers are plain child processes (`Popen`, never `multiprocessing`: users' scripts have no main guard), shared
within this process and started on first use. A request may use so much of its worker's own CPU time, whatever the
load of the machine; the wall limit is on the time in which the worker uses none, which is our own failure.
What a worker does is a file of its own; `_worker` runs it.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from verigym.tasks.activity import doing

STALL_SECONDS = 5.0
START_SECONDS = 120.0
MAX_ANSWERS = 5000
MAX_RSS_BYTES = 500 << 20
TICK_SECONDS = 0.05
ENVIRON: Mapping[str, str] = {"PYTHONHASHSEED": "0"}

_WORKER = Path(__file__).with_name("_worker.py")
_CRASHES = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL}


class AnswerTimeout(Exception):  # noqa: N818 - an outcome of the answer, not an error of ours
    """The answer used up its CPU time; its worker was killed."""


class AnswerCrash(Exception):  # noqa: N818
    """The answer ran its worker out of memory or crashed it."""


class PoolFailure(Exception):  # noqa: N818
    """A worker failed through no fault of the answer, twice."""


class Cancelled(Exception):  # noqa: N818
    """The verifier that asked was closed meanwhile."""


class _WorkerDied(Exception):  # noqa: N818
    """The worker ended, or hung without using CPU time."""

    def __init__(self, returncode: int | None) -> None:
        super().__init__(f"the worker ended with status {returncode}")
        self.returncode = returncode


@dataclass(slots=True)
class Budget:
    """What one answer may still use, over all comparisons that it takes, and who may call it off."""

    cancelled: threading.Event
    cpu_seconds: float


class _Worker:
    """One worker process and the frames to and from it; used by one thread at a time."""

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str] = ENVIRON, stall_seconds: float = STALL_SECONDS
    ) -> None:
        self._stall_seconds = stall_seconds
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environ,
            close_fds=True,
            start_new_session=True,
            bufsize=0,
        )
        self._buffer = b""
        self._answers = 0
        self._ready = False
        self._monitor: psutil.Process | None = None

    @property
    def ready(self) -> bool:
        """Whether the worker has finished its imports; never waits."""
        return self._ready or self._reply_is_waiting(0)

    @property
    def alive(self) -> bool:
        """Whether the process still runs, as far as is known."""
        return self._process.poll() is None

    def ask(self, request: Mapping[str, Any], budget: Budget) -> dict[str, Any]:
        """The worker's reply. After AnswerTimeout, Cancelled or _WorkerDied the worker is to be killed."""
        if not self._ready:
            self._read(START_SECONDS, None, budget)
            self._monitor = psutil.Process(self._process.pid)
            self._ready = True
        self._answers += 1
        started = self._cpu_time()
        body = json.dumps({**request, "cpu_seconds": budget.cpu_seconds}).encode()
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(struct.pack(">I", len(body)) + body)
        except OSError as error:
            raise self._death() from error
        reply = self._read(self._stall_seconds, started + budget.cpu_seconds, budget)
        budget.cpu_seconds -= self._cpu_time() - started
        return reply

    def _read(self, wall_seconds: float, cpu_deadline: float | None, budget: Budget) -> dict[str, Any]:
        """The next frame. Looks at the clocks every tick; CPU time that was used starts the wall limit anew."""
        deadline, used = time.monotonic() + wall_seconds, 0.0
        while True:
            if (frame := self._frame()) is not None:
                return frame
            if self._reply_is_waiting(TICK_SECONDS):
                assert self._process.stdout is not None
                chunk = os.read(self._process.stdout.fileno(), 65536)
                if not chunk:
                    raise self._death()
                self._buffer += chunk
                continue
            if budget.cancelled.is_set():
                raise Cancelled
            if cpu_deadline is not None:
                if (now := self._cpu_time()) >= cpu_deadline:
                    raise AnswerTimeout
                if now > used:
                    deadline, used = time.monotonic() + wall_seconds, now
            if time.monotonic() >= deadline:
                raise _WorkerDied(None)

    def _frame(self) -> dict[str, Any] | None:
        if len(self._buffer) < 4:
            return None
        end = 4 + int(struct.unpack(">I", self._buffer[:4])[0])
        if len(self._buffer) < end:
            return None
        body, self._buffer = self._buffer[4:end], self._buffer[end:]
        return dict(json.loads(body))

    def _death(self) -> AnswerTimeout | _WorkerDied:
        """What the end of the process means."""
        status = self.kill()
        return AnswerTimeout() if status == -signal.SIGPROF else _WorkerDied(status)

    def _reply_is_waiting(self, seconds: float) -> bool:
        assert self._process.stdout is not None
        poll = select.poll()  # not select(): a trainer may hold more than 1024 descriptors
        poll.register(self._process.stdout.fileno(), select.POLLIN | select.POLLHUP)
        return bool(poll.poll(seconds * 1000))

    def _cpu_time(self) -> float:
        assert self._monitor is not None
        try:
            times = self._monitor.cpu_times()
        except psutil.Error as error:
            raise self._death() from error
        return float(times.user + times.system)

    def worn(self) -> bool:
        """Whether it has answered enough, or grown enough, to be replaced."""
        if self._answers >= MAX_ANSWERS:
            return True
        if self._answers % 100 or self._monitor is None:
            return False
        with contextlib.suppress(psutil.Error):
            return bool(self._monitor.memory_info().rss > MAX_RSS_BYTES)
        return True

    def kill(self) -> int:
        """Ends the process, and returns its exit status."""
        if self._process.poll() is None:
            self._process.kill()
        status = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return status


class Pool:
    """Hands requests to workers; safe to call from any thread. Raises the exceptions of this module.

    Args:
        task: the file with what a worker does: its `load()` gives a function of a request to a reply, both JSON.
        library: a module that the file imports; its folder is added to the isolated interpreter's path.
        size: how many workers.
    """

    def __init__(self, task: Path, library: str, size: int | None = None) -> None:
        self.size = size or min(4, os.cpu_count() or 1)
        self.name = task.stem.strip("_")
        self._command = [sys.executable, "-I", str(_WORKER), str(task), *_library_folders(library)]
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._changed = threading.Condition()

    def ask(self, request: Mapping[str, Any], budget: Budget) -> dict[str, Any]:
        """A worker's reply. One that fails is replaced, and the request put once more to a fresh one."""
        if budget.cpu_seconds <= 0:
            raise AnswerTimeout
        try:
            reply = self._ask(request, budget)
        except _WorkerDied:
            try:
                reply = self._ask(request, budget, fresh=True)
            except _WorkerDied as died:
                if died.returncode in _CRASHES:
                    raise AnswerCrash("the answer crashes the process that reads it") from died
                raise PoolFailure(f"two workers in a row failed: {died}") from died
        if reply.get("failed") == "memory":
            raise AnswerCrash("the answer needs more memory than is allowed")
        return reply

    def pids(self) -> list[int]:
        """The process ids of the workers alive now."""
        with self._changed:
            return sorted(worker._process.pid for worker in [*self._idle, *self._busy])

    def close(self) -> None:
        """Ends all workers; a later request starts new ones."""
        with self._changed:
            workers = [*self._idle, *self._busy]
            self._idle.clear()
            self._busy.clear()
        for worker in workers:
            worker.kill()

    def _start(self) -> _Worker:
        return _Worker(self._command)

    def _ask(self, request: Mapping[str, Any], budget: Budget, *, fresh: bool = False) -> dict[str, Any]:
        with doing("worker process", f"a free one of {self.name}"):
            worker = self._take(budget, fresh)
        healthy = False
        try:
            with doing("worker process", self.name):
                reply = worker.ask(request, budget)
            healthy = reply.get("failed") != "memory" and not worker.worn()
            return reply
        finally:
            self._give(worker, healthy)

    def _take(self, budget: Budget, fresh: bool) -> _Worker:
        with self._changed:
            while True:
                if budget.cancelled.is_set():
                    raise Cancelled
                self._idle = [worker for worker in self._idle if worker.alive]
                while len(self._idle) + len(self._busy) < self.size:
                    self._idle.append(self._start())
                if self._idle:
                    # the one most lately used is warm; one still importing is the last choice, but where one has
                    # just died: what killed it may be killing others
                    warm = () if fresh else reversed(self._idle)
                    worker = next((w for w in warm if w.ready), self._idle[0])
                    self._idle.remove(worker)
                    self._busy.add(worker)
                    return worker
                self._changed.wait(TICK_SECONDS)

    def _give(self, worker: _Worker, healthy: bool) -> None:
        with self._changed:
            ours = worker in self._busy  # not if the pool was closed meanwhile
            self._busy.discard(worker)
            if healthy and ours:
                self._idle.append(worker)
            self._changed.notify()
        if not (healthy and ours):
            worker.kill()
            if ours:
                self._refill()

    def _refill(self) -> None:
        # no process to be had now is the next request's business, not that of the verdict at hand
        with self._changed, contextlib.suppress(OSError):
            while len(self._idle) + len(self._busy) < self.size:
                self._idle.insert(0, self._start())
            self._changed.notify()


_shared: dict[tuple[Path, str], Pool] = {}
_shared_lock = threading.Lock()


def shared_pool(task: Path, library: str) -> Pool:
    """This process's pool for the file `task`; a forked child gets its own."""
    with _shared_lock:
        if (task, library) not in _shared:
            pool = _shared[task, library] = Pool(task, library)
            atexit.register(pool.close)
        return _shared[task, library]


def _forget_after_fork() -> None:
    # the parent's workers and locks are not ours: drop them without touching the processes
    global _shared, _shared_lock
    for pool in _shared.values():
        atexit.unregister(pool.close)
    _shared, _shared_lock = {}, threading.Lock()


def _library_folders(library: str) -> list[str]:
    """Where the library lies, should it not be on an isolated interpreter's own path."""
    spec = importlib.util.find_spec(library)
    return [str(Path(spec.origin).parent.parent)] if spec and spec.origin else []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
