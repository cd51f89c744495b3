"""Threads for slow environments: a call that hangs is given up, and never blocks the others or the exit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from verigym.tasks.activity import Activity, current, moved


@dataclass(eq=False, slots=True)
class Call:
    """A function running in a worker, or done: `result` or `error`."""

    key: Any
    function: Callable[[], Any]
    started: float = 0.0
    result: Any = None
    error: BaseException | None = None
    ended: bool = False
    submitted: float = field(default_factory=time.monotonic)
    activity: Activity = field(default_factory=Activity)


class Workers:
    """Runs calls in daemon threads and hands back those that are done, or that outlast `timeout` seconds."""

    def __init__(self, count: int, *, timeout: float) -> None:
        self.timeout = timeout
        self._count, self._threads = count, 0
        self._waiting: SimpleQueue[Call | None] = SimpleQueue()
        self._done: SimpleQueue[Call | None] = SimpleQueue()  # None wakes who waits for a call
        self._open: dict[Any, Call] = {}
        self._lock = threading.Lock()  # a call ends once: by its result, or by the time limit

    @property
    def running(self) -> int:
        """Calls that were submitted and have not been handed back."""
        return len(self._open)

    def open_calls(self) -> dict[Any, Call]:
        """By key, those calls; callable from any thread."""
        return self._open.copy()

    def submit(self, key: Any, function: Callable[[], Any]) -> None:
        """Queues a call; `key` names it, once at a time."""
        call = Call(key, function)
        self._open[key] = call
        if self._threads < min(self._count, len(self._open)):
            self._threads += 1
            self._start_thread()
        self._waiting.put(call)

    def take(self, wait: float) -> list[Call]:
        """The calls that ended, waiting up to `wait` seconds for the first; one that timed out has a TimeoutError."""
        done: list[Call | None] = []
        try:
            done.append(self._done.get(timeout=wait) if wait > 0 else self._done.get_nowait())
            while True:
                done.append(self._done.get_nowait())
        except Empty:
            pass
        ended = [*filter(None, done), *self._overdue()]
        for call in ended:
            self._open.pop(call.key, None)
        return ended

    def wake(self) -> None:
        """Ends a `take` that waits; callable from any thread."""
        self._done.put(None)

    def close(self) -> None:
        """Lets the idle threads end; a thread in a hanging call ends with the process."""
        for _ in range(self._threads):
            self._waiting.put(None)
        self._threads = 0

    def abandon(self) -> None:
        """Gives up every call: those that wait never run, and those that run are not handed back."""
        with self._lock:
            for call in self._open.values():
                if call.started and not call.ended:
                    self._start_thread()
                call.ended = True
            self._open.clear()
            while not self._done.empty():
                self._done.get()

    def _overdue(self) -> list[Call]:
        now = time.monotonic()
        late = []
        for call in self._open.values():
            if not call.started or now - call.started <= self.timeout:
                continue  # nearly every call, at every step of the engine: without the lock
            with self._lock:
                if not call.ended:
                    call.ended, call.error = True, TimeoutError(f"no answer within {self.timeout:g} s")
                    self._start_thread()
                    late.append(call)
        return late

    def _start_thread(self) -> None:
        """One more thread, or one in place of a thread that hangs."""
        threading.Thread(target=self._work, name="verigym-environment", daemon=True).start()

    def _work(self) -> None:
        while (call := self._waiting.get()) is not None:
            with self._lock:
                if call.ended:
                    continue
                call.started = time.monotonic()
            result, error = None, None
            current.set(call.activity)
            try:
                result = call.function()
            except BaseException as raised:  # whatever an environment raises is its episode's infrastructure error
                error = raised
            moved()
            with self._lock:
                if call.ended:
                    return  # given up, and replaced by another thread
                call.ended, call.result, call.error = True, result, error
                self._done.put(call)
