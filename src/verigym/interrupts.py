"""Ctrl-C: the first one ends a run in order, the second one at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType


class Interrupts:
    """While entered, SIGINT and SIGTERM set `requested`; a second one ends the process.

    Outside the main thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self, *, speaks: bool = True) -> None:
        """`speaks`: says on standard error what it does; one of several processes is enough."""
        self.requested, self.speaks = False, speaks
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            # Worker processes of verifiers end with the pipe to this process; nothing else is left.
            os.write(2, b"\nended at once\n")
            os._exit(130)
        self.requested = True
        if self.speaks:
            print("\nending in order; once more to end at once", file=sys.stderr)
