"""The supervisor's end of the pipes to a fork server: frames out and in, never waiting on one for the other."""

from __future__ import annotations

import contextlib
import os
import select
import struct
import subprocess
import threading
import time
from abc import ABC, abstractmethod

TICK_SECONDS = 0.05
_CHUNK = 1 << 18


class WorkerFailed(Exception):  # noqa: N818
    """A fork server ended, fell silent or spoke nonsense: our failure, not the job's."""


class Cancelled(Exception):  # noqa: N818
    """Whoever asked for the job called it off."""


class Transport(ABC):
    """A running fork server: descriptors to it and from it (they may be one), and how to end it."""

    reader: int
    writer: int

    def demultiplex(self, chunk: bytes) -> bytes:
        """The bytes of the server's standard output in what was read; those of its standard error are kept."""
        return chunk

    @abstractmethod
    def kill(self) -> None:
        """Ends the server and everything in its sandbox; whoever reads finds the end. Idempotent, from any thread."""

    @abstractmethod
    def close(self) -> None:
        """Kills, and closes the descriptors: only for the thread that used them, since their numbers are given anew."""

    @abstractmethod
    def last_words(self) -> str:
        """What it said on standard error, or how it ended, for the message of an infrastructure error."""


class ProcessTransport(Transport):
    """A fork server that is a child process of ours."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self.reader, self.writer = process.stdout.fileno(), process.stdin.fileno()
        self._lock = threading.Lock()

    def kill(self) -> None:
        with self._lock:
            if self.process.poll() is None:
                self._end()
                self.process.wait()

    def _end(self) -> None:
        self.process.terminate()  # upon which the server ends its job
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def close(self) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        words = b""
        if self.process.stderr is not None:
            os.set_blocking(self.process.stderr.fileno(), False)
            words = self.process.stderr.read() or b""
        lines = words.decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"exit status {self.process.returncode}"


class Link:
    """Frames over a transport; used by one thread at a time."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        os.set_blocking(transport.writer, False)
        os.set_blocking(transport.reader, False)
        self._out = bytearray()
        self._buffer = bytearray()

    @property
    def backlog(self) -> int:
        """How many bytes wait to leave."""
        return len(self._out)

    def post(self, kind: bytes, *parts: bytes) -> None:
        """Queues a frame; it leaves during `next`."""
        self.post_raw(struct.pack(">cI", kind, sum(map(len, parts))), *parts)

    def post_raw(self, *parts: bytes) -> None:
        self._out += b"".join(parts)

    def next(self, deadline: float, cancelled: threading.Event | None = None) -> tuple[bytes, bytes]:
        """The next frame from the server. Raises WorkerFailed (also at the deadline) and Cancelled."""
        while (frame := self._frame()) is None:
            if cancelled is not None and cancelled.is_set():
                raise Cancelled
            left = deadline - time.monotonic()
            if left <= 0:
                raise WorkerFailed("the fork server does not answer")
            self._exchange(min(left, TICK_SECONDS) if cancelled is not None else left)
        return frame

    def _frame(self) -> tuple[bytes, bytes] | None:
        if len(self._buffer) < 5:
            return None
        kind, size = struct.unpack_from(">cI", self._buffer)
        if len(self._buffer) < 5 + size:
            return None
        body = bytes(self._buffer[5 : 5 + size])
        del self._buffer[: 5 + size]
        return kind, body

    def _exchange(self, seconds: float) -> None:
        poll = select.poll()
        same = self.transport.reader == self.transport.writer
        wanted = select.POLLOUT if self._out else 0
        poll.register(self.transport.reader, select.POLLIN | (wanted if same else 0))
        if wanted and not same:
            poll.register(self.transport.writer, wanted)
        try:
            for descriptor, event in poll.poll(seconds * 1000 + 1):
                if event & select.POLLNVAL:
                    raise WorkerFailed("the fork server was ended")
                if descriptor == self.transport.writer and event & (select.POLLOUT | select.POLLERR) and self._out:
                    self._write()
                if descriptor == self.transport.reader and event & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    self._read()
        except OSError as error:
            raise WorkerFailed(f"the fork server ended: {self.transport.last_words()}") from error

    def _write(self) -> None:
        with contextlib.suppress(BlockingIOError):
            del self._out[: os.write(self.transport.writer, self._out[:_CHUNK])]

    def _read(self) -> None:
        try:
            chunk = os.read(self.transport.reader, _CHUNK)
        except BlockingIOError:
            return
        if not chunk:
            raise WorkerFailed(f"the fork server ended: {self.transport.last_words()}")
        self._buffer += self.transport.demultiplex(chunk)
