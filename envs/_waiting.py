"""Waits that another thread can end."""

import threading
from collections.abc import Callable
from concurrent import futures
from contextvars import copy_context
from typing import TypeVar

from verigym.tasks.errors import EnvClosedError

T = TypeVar("T")
TICK = 0.05  # seconds until a wait notices that it was ended


def start(function: Callable[[], T]) -> futures.Future[T]:
    """Calls `function` in a thread of its own.

    The thread cannot be stopped: it goes on until `function` returns, and does not keep the process alive. What it does
    counts as its caller's doing.
    """
    future: futures.Future[T] = futures.Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # it is raised where the result is waited for
            future.set_exception(error)

    threading.Thread(target=copy_context().run, args=(run,), name="verigym-wait", daemon=True).start()
    return future


def call_until(ended: threading.Event, function: Callable[[], T]) -> T:
    """The result of `function`, called in a thread of its own. Raises EnvClosedError once `ended` is set."""
    future = start(function)
    while not ended.is_set():
        if futures.wait([future], timeout=TICK).done:
            return future.result()
    raise EnvClosedError("the environment was closed")
