"""One event loop in a thread of its own, where the coroutines of tools run whatever thread calls them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from verigym.tasks.errors import EnvClosedError

T = TypeVar("T")
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def start(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Begins a coroutine on the loop; cancelling the future cancels it there."""
    return asyncio.run_coroutine_threadsafe(coroutine, the_loop())


def the_loop() -> asyncio.AbstractEventLoop:
    """The loop, running; its thread is started when it is first needed."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="verigym tools", daemon=True).start()
        return _loop


def _forget() -> None:
    global _lock, _loop
    _lock, _loop = threading.Lock(), None


os.register_at_fork(after_in_child=_forget)  # a child has the loop, but not its thread


class Coroutines:
    """The coroutines of one owner: `run` waits for one, `cancel` ends from any thread what is waited for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[Future[Any]] = set()
        self._cancelled = False

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """What the coroutine returns or raises. Raises TimeoutError, and EnvClosedError if it was cancelled."""
        with self._lock:  # so that `cancel` finds what has begun
            if self._cancelled:
                coroutine.close()
                raise EnvClosedError("the environment was closed before a tool ran")
            future = start(coroutine)
            self._running.add(future)
        try:
            return future.result(timeout)
        except CancelledError:
            raise EnvClosedError("the environment was closed while a tool ran") from None
        finally:
            future.cancel()
            with self._lock:
                self._running.discard(future)

    def cancel(self) -> None:
        """Ends all that runs, and lets nothing else run until `reopen`."""
        with self._lock:
            self._cancelled = True
            running = list(self._running)
        for future in running:
            future.cancel()

    def reopen(self) -> None:
        """Lets coroutines run again."""
        self._cancelled = False
