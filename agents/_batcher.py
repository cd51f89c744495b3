"""Calls from many threads, gathered into batches: what has queued while one batch ran is the next."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """One thread that answers items with `function(items)`, at most `size` at a time; nobody waits for a batch to fill.

    An exception of `function` goes to every item of its batch. A future that was settled meanwhile is left as it is.
    """

    def __init__(self, function: Callable[[Sequence[T]], Sequence[R]], size: int) -> None:
        self._function, self._size = function, size
        self._queue: SimpleQueue[tuple[T, Future[R]] | None] = SimpleQueue()
        self.batches = 0
        threading.Thread(target=self._work, name="verigym-batches", daemon=True).start()

    def submit(self, item: T) -> Future[R]:
        """The answer to come."""
        future: Future[R] = Future()
        self._queue.put((item, future))
        return future

    def close(self) -> None:
        """Ends the thread after what is queued."""
        self._queue.put(None)

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            ended = False
            with contextlib.suppress(Empty):
                while len(batch) < self._size and not ended:
                    entry = self._queue.get_nowait()
                    ended = entry is None
                    batch += [entry] if entry is not None else []
            self._answer([entry for entry in batch if not entry[1].done()])
            if ended:
                return

    def _answer(self, batch: Sequence[tuple[T, Future[R]]]) -> None:
        if not batch:
            return
        self.batches += 1
        try:
            results = self._function([item for item, _ in batch])
        except Exception as error:  # whatever it is, those who wait are told, and the thread goes on
            for _, future in batch:
                settle(future, error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            settle(future, result)


def settle(future: Future[R], result: R | Exception) -> None:
    """Gives a future its result or its exception, unless it has one."""
    with contextlib.suppress(InvalidStateError):
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
