"""The fork server of a sandbox: forks a process for each job, watches it, and relays bytes to the supervisor.

Runs inside the sandbox, as its first process where it isolates. It keeps nothing of a job: bytes pass through two
buffers that are wiped before the next one, so that a job finds nothing of another in the memory that it inherits.
Frames are a letter, a length of 4 bytes and so many bytes.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import struct
import sys
import time
from importlib import import_module
from typing import Any

from verigym.verifiers.sandbox import _confine, _driver

CHUNK = 1 << 16
GATHER_SECONDS = 0.004  # so long are small pieces gathered, unless someone waits for them
TICK_SECONDS, IDLE_TICK_SECONDS = 0.05, 0.5
PROCESSORS = os.cpu_count() or 1
NOT_CONFINED = 97  # the exit status of a job's process that could not be shut in

_up, _down = bytearray(CHUNK), bytearray(CHUNK)
_used = 0  # so many bytes of them have held something since they were wiped


def main(config: dict[str, Any]) -> None:
    """Serves until the supervisor's end of the pipe closes."""
    for descriptor in range(3, 10):  # a job's descriptors are moved to 0-4: let none of ours be among them
        os.dup2(2, descriptor)
    confinement = _confine.KINDS[config["confinement"]](config)
    loaded = _preload(config["preload"])
    _driver.warm_up()
    gc.collect()
    gc.freeze()
    confinement.take_own_memory()
    about = {"version": sys.version.split()[0], "user": os.getuid(), "loaded": loaded, **confinement.holds()}
    _send(b"h", json.dumps(about).encode())
    signal.signal(signal.SIGTERM, _be_asked_to_end)
    try:
        while True:
            kind, size = _receive()
            body = _read(size)
            if kind == b"j":
                _wipe()
                _Watch(confinement, json.loads(body)).run()
    except _SupervisorGone:
        confinement.sweep()
        confinement.clean()


class _SupervisorGone(Exception):  # noqa: N818
    """The supervisor's end of the pipes is closed."""


def _wipe() -> None:
    global _used
    _up[:_used] = _down[:_used] = bytes(_used)
    _used = 0


def _fill(descriptor: int, buffer: bytearray, most: int = CHUNK) -> int:
    """Reads into a buffer; how many bytes."""
    global _used
    size = os.readv(descriptor, [memoryview(buffer)[:most]])
    _used = max(_used, size)
    return size


def _be_asked_to_end(*_: Any) -> None:
    raise _SupervisorGone


def _preload(names: list[str]) -> list[str]:
    loaded = []
    for name in names:
        with contextlib.suppress(ImportError):
            import_module(name)
            loaded.append(name)
    return loaded


def _receive() -> tuple[bytes, int]:
    kind, size = struct.unpack(">cI", _read(5))
    return kind, size


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = os.read(0, size - len(data))
        if not chunk:
            raise _SupervisorGone
        data += chunk
    return data


def _send(kind: bytes, body: bytes | memoryview) -> None:
    try:
        sent = os.writev(1, [struct.pack(">cI", kind, len(body)), body])
        while sent < 5:  # a pipe that is all but full
            sent += os.write(1, struct.pack(">cI", kind, len(body))[sent:])
        rest = memoryview(body)[sent - 5 :]
        while rest:
            rest = rest[os.write(1, rest) :]
    except BrokenPipeError:
        raise _SupervisorGone from None


class _Stream:
    """One of the job's pipes on its way to the supervisor."""

    def __init__(self, kind: bytes, limit: int) -> None:
        self.kind, self.limit = kind, limit
        self.reader, self.writer = os.pipe()
        self.open = True
        self.sent = 0
        self.due = 0.0
        os.set_blocking(self.reader, False)

    def relay(self) -> bool:
        """Passes on what is there; whether that is within the limit. What is beyond it is not sent."""
        self.due = 0.0
        try:
            size = _fill(self.reader, _up)
        except BlockingIOError:
            return True
        if size == 0:
            self.open = False
            return True
        allowed = min(size, self.limit - self.sent)
        if allowed:
            _send(self.kind, memoryview(_up)[:allowed])
        self.sent += allowed
        return allowed == size

    def drain(self) -> bool:
        """Passes on all that is there now; whether that is within the limit."""
        within = True
        while self.open and within and select.select([self.reader], [], [], 0)[0]:
            within = self.relay()
        return within

    def close(self) -> None:
        os.close(self.reader)


class _Watch:
    """A job from its fork to the proof that nothing of it is left."""

    def __init__(self, confinement: _confine.Confinement, header: dict[str, Any]) -> None:
        self._confinement, self._limits = confinement, header
        self._out = _Stream(b"o", header["output_bytes"])
        self._err = _Stream(b"e", header["output_bytes"])
        self._results = _Stream(b"r", header["result_bytes"])
        self._requests_reader, self._requests = os.pipe()
        self._cause: str | None = None
        self._incoming = 0  # bytes of the supervisor's frame that are still to be relayed
        self._pending = memoryview(b"")
        self._ooms = confinement.out_of_memory_kills()

    def run(self) -> None:
        started = time.monotonic()
        self._begin_turn()
        try:
            self._process = self._confinement.spawn()
            if self._process == 0:
                self._become_job()
            self._handle = os.pidfd_open(self._process)
        except OSError as error:
            _send(b"x", json.dumps({"failed": str(error)}).encode())
            os._exit(1)
        os.close(self._requests_reader)
        for stream in (self._out, self._err, self._results):
            os.close(stream.writer)
        os.set_blocking(self._requests, False)
        self._watch()
        self._finish(started)

    def _become_job(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            for target, source in enumerate(
                (self._requests_reader, self._out.writer, self._err.writer, self._results.writer)
            ):
                os.dup2(source, target)
            os.dup2(0, _driver.REQUESTS)
            os.closerange(5, 256)
            self._confinement.enter(self._limits)
        except BaseException as error:
            os.write(2, f"cannot shut the job in: {error}".encode())
            os._exit(NOT_CONFINED)
        try:
            _driver.main()
        finally:
            os._exit(1)

    def _begin_turn(self) -> None:
        self._deadline = time.monotonic() + self._limits["wall_seconds"]
        self._turn_started = time.monotonic()
        self._cpu_before = self._cpu_now()
        self._cpu_used = 0.0
        self._next_check = time.monotonic() + min(TICK_SECONDS, self._limits["cpu_seconds"] / PROCESSORS)
        for stream in (self._out, self._err, self._results):
            stream.sent = 0

    def _cpu_now(self) -> float:
        """CPU seconds of the job's processes, by the cgroup's clock where there is one."""
        counted = self._confinement.cgroup_cpu_seconds()
        if counted is None:
            return self._confinement.usage()[0]
        own = os.times()
        return counted - own.user - own.system

    # the loop

    def _watch(self) -> None:
        while self._cause is None:
            poll = self._poller()
            now = time.monotonic()
            dues = [stream.due for stream in (self._out, self._err, self._results) if stream.due]
            ready = dict(poll.poll(max(0.0, min(self._next_check, self._deadline, *dues) - now) * 1000 + 1))
            self._relay(ready)
            if self._requests in ready:
                self._write_pending()
            if self._handle in ready:
                return
            if ready.get(0, 0) & select.POLLIN:
                self._take_from_supervisor()
            elif 0 in ready:
                raise _SupervisorGone
            if time.monotonic() >= min(self._next_check, self._deadline):
                self._check_limits()

    def _relay(self, ready: dict[int, int]) -> None:
        """Passes on output; the first small piece of it waits a moment for more, and for the end."""
        now = time.monotonic()
        for stream in (self._out, self._err, self._results):
            if stream.reader in ready and not self._limits["interactive"]:
                stream.due = now + GATHER_SECONDS
            elif (stream.reader in ready or 0 < stream.due <= now) and not stream.relay():
                self._stop("output" if stream is not self._results else "results")

    def _poller(self) -> Any:
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        for stream in (self._out, self._err, self._results):
            if stream.open and not stream.due:
                poll.register(stream.reader, select.POLLIN)
        if self._pending:
            poll.register(self._requests, select.POLLOUT)
        poll.register(0, 0 if self._pending else select.POLLIN)  # 0: only whether the supervisor is gone
        return poll

    def _take_from_supervisor(self) -> None:
        if self._incoming:
            size = _fill(0, _down, min(self._incoming, CHUNK))
            if size == 0:
                raise _SupervisorGone
            self._incoming -= size
            self._pending = memoryview(_down)[:size]
            self._write_pending()
            return
        kind, size = _receive()
        if kind == b"q":
            self._incoming = size
        else:
            self._command(kind, _read(size))

    def _write_pending(self) -> None:
        try:
            self._pending = self._pending[os.write(self._requests, self._pending) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._pending = self._pending[:0]

    def _command(self, kind: bytes, body: bytes) -> None:
        if kind == b"t":
            self._begin_turn()
        elif kind == b"d":
            self._end_turn()
        elif kind == b"k":
            self._stop("killed")

    def _end_turn(self) -> None:
        """A session waits for its next turn: no wall limit, but its threads may not work on."""
        if not (self._out.drain() and self._err.drain()):
            self._stop("output")
            return
        self._cpu_used = self._cpu_now() - self._cpu_before
        wall = time.monotonic() - self._turn_started
        _send(b"y", json.dumps({"cpu": self._cpu_used, "wall": wall}).encode())
        self._deadline = float("inf")
        self._next_check = time.monotonic() + IDLE_TICK_SECONDS

    def _check_limits(self) -> None:
        now = time.monotonic()
        seconds, memory, processes = self._confinement.usage()
        counted = self._cpu_now() if self._confinement.cgroup_cpu_seconds() is not None else seconds
        self._cpu_used = max(self._cpu_used, counted - self._cpu_before)
        left = self._limits["cpu_seconds"] - self._cpu_used
        if left <= 0:
            self._stop("cpu")
        elif memory > self._limits["memory_bytes"] or self._confinement.out_of_memory_kills() > self._ooms:
            self._stop("memory")
        elif processes > self._limits["processes"] + 1:
            self._stop("processes")
        elif now >= self._deadline:
            self._stop("wall")
        longest = TICK_SECONDS if self._deadline != float("inf") else IDLE_TICK_SECONDS
        self._next_check = now + max(0.005, min(longest, left / PROCESSORS))

    def _stop(self, cause: str) -> None:
        if self._cause is None:
            self._cause = cause
            self._confinement.kill(self._process)

    # the end

    def _finish(self, started: float) -> None:
        """Proves that no process is left, passes on what was written, removes the files and reports."""
        _, status, usage = os.wait4(self._process, 0)
        wall = time.monotonic() - started
        report: dict[str, Any] = {"cause": self._cause, "code": os.waitstatus_to_exitcode(status), "wall": wall}
        try:
            report["left"] = self._confinement.sweep()
            for stream in (self._out, self._err, self._results):
                if not stream.drain() and report["cause"] is None:
                    report["cause"] = "output" if stream is not self._results else "results"
                stream.close()
            self._confinement.clean()
        except OSError as error:
            report["doubt"] = str(error)
        if self._confinement.out_of_memory_kills() > self._ooms:
            report["cause"] = "memory"
        report["cpu"] = max(self._cpu_used, usage.ru_utime + usage.ru_stime)
        os.close(self._requests)
        os.close(self._handle)
        self._skip_incoming()
        _send(b"x", json.dumps(report).encode())

    def _skip_incoming(self) -> None:
        while self._incoming:
            size = _fill(0, _down, min(self._incoming, CHUNK))
            if size == 0:
                raise _SupervisorGone
            self._incoming -= size
