"""What is made of a job's bytes and of its server's report: a result, whatever the job wrote."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from verigym.verifiers.sandbox import values
from verigym.verifiers.sandbox.job import Return, SandboxResult, Status

SOURCE_FAILED = "the source failed"
"""So begins the reason why a module's calls were not made."""
_MAX_FRAME = 2 * values.MAX_BYTES
_KINDS = frozenset(b"BRXPDMIT")
_LIMITS = {
    "cpu": (Status.TIMEOUT, "it used up its CPU time"),
    "wall": (Status.TIMEOUT, "it was still running at its wall limit"),
    "memory": (Status.MEMORY, "it used more memory than it may"),
    "output": (Status.OUTPUT, "it wrote more than it may"),
    "results": (Status.OUTPUT, "it returned more than it may"),
    "processes": (Status.ERROR, "it started more processes than it may"),
    "killed": (Status.ERROR, "it was ended"),
}


class Stream:
    """What one job has written so far: standard output and error, and the frames of its driver.

    A frame is a letter, a length and a text. The job can forge any of them, so each is only what a job may say.
    """

    def __init__(self, calls: int, *, allow_nonfinite: bool = False) -> None:
        self.stdout, self.stderr = bytearray(), bytearray()
        self.returns: list[Return] = []
        self.begun = self.done = self.out_of_memory = self.broken = False
        self.error = ""
        self._turn, self._turn_ended = 0, True
        self._results = bytearray()
        self._calls, self._allow_nonfinite = calls, allow_nonfinite

    def begin_turn(self) -> None:
        """Forgets the last turn of a session; what was printed since belongs to the next."""
        self.returns, self.error, self.out_of_memory = [], "", False
        self.stdout, self.stderr = bytearray(), bytearray()
        self._turn, self._turn_ended = self._turn + 1, False

    def take(self, kind: bytes, body: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Takes in a piece; yields the frames that ask something of the supervisor."""
        if kind == b"o":
            self.stdout += body
        elif kind == b"e":
            self.stderr += body
        elif kind == b"r" and not self.broken:
            self._results += body
            yield from self._frames()

    def _frames(self) -> Iterator[tuple[bytes, bytes]]:
        start = 0
        while len(self._results) >= start + 5 and not self.broken:
            kind, size = struct.unpack_from(">cI", self._results, start)
            if kind[0] not in _KINDS or size > _MAX_FRAME:
                self.broken = True
            elif len(self._results) < start + 5 + size:
                break
            else:
                body = bytes(self._results[start + 5 : start + 5 + size])
                start += 5 + size
                self._note(kind, body)
                if kind == b"P" or (kind == b"T" and self._ends_turn(body)):
                    yield kind, body
        del self._results[:start]

    def _ends_turn(self, body: bytes) -> bool:
        """Whether it is this turn's end, for the first time: a session may say so as often as it likes."""
        if self._turn_ended or body != str(self._turn).encode():
            return False
        self._turn_ended = True
        return True

    def _note(self, kind: bytes, body: bytes) -> None:
        if kind in b"RX":
            self.returns.append(self._return(kind, body))
            self.broken = len(self.returns) > self._calls
        elif kind == b"B":
            self.begun = True
        elif kind == b"D":
            self.done = True
        elif kind == b"M":
            self.out_of_memory = True
        elif kind == b"I":
            self.error = body[:2000].decode(errors="replace")

    def _return(self, kind: bytes, body: bytes) -> Return:
        if kind == b"X":
            return Return(False, error=body[:2000].decode(errors="replace"))
        try:
            return Return(True, values.from_text(body, allow_nonfinite=self._allow_nonfinite))
        except values.NotPlain as error:
            return Return(False, error=str(error))


class Outcome:
    """A job's end: its stream and the report of the server."""

    def __init__(self, stream: Stream, report: dict[str, Any]) -> None:
        self._stream, self._report = stream, report

    def of_script(self, *, in_session: bool = False) -> SandboxResult:
        """The result of a script, or of a session that has ended."""
        code = self._report["code"]
        if code == 0 and not in_session:
            return self._result(Status.OK, "it ran to its end")
        if self._stream.out_of_memory:
            return self._result(Status.MEMORY, "it ran out of memory")
        return self._result(Status.ERROR, _end(code))

    def of_calls(self, calls: int) -> SandboxResult:
        """The result of calls: all of them answered, and the process ended by the driver's own hand."""
        stream = self._stream
        if stream.out_of_memory:
            return self._result(Status.MEMORY, "it ran out of memory")
        if stream.error:
            return self._result(Status.ERROR, f"{SOURCE_FAILED}: {stream.error}")
        if stream.broken:
            return self._result(Status.ERROR, "it wrote what is no result where its results go")
        if not stream.done or len(stream.returns) != calls or self._report["code"] != 0:
            made = f"after {len(stream.returns)} of {calls} calls" if calls else ""
            return self._result(Status.ERROR, f"{_end(self._report['code'])} {made}")
        return self._result(Status.OK, f"all {calls} calls were made")

    def of_turn(self) -> SandboxResult:
        """The result of one turn of a session that lives on."""
        stream = self._stream
        if stream.out_of_memory:
            return self._result(Status.MEMORY, "it ran out of memory")
        if stream.error:
            return self._result(Status.ERROR, stream.error)
        return self._result(Status.OK, "it ran to its end")

    def _result(self, status: Status, reason: str) -> SandboxResult:
        report, stream = self._report, self._stream
        if report["cause"] is not None:
            status, reason = _LIMITS[report["cause"]]
        return SandboxResult(
            status,
            reason,
            bytes(stream.stdout),
            bytes(stream.stderr),
            None if report["cause"] else report["code"],
            tuple(stream.returns),
            report["cpu"],
            report["wall"],
        )


def _end(code: int) -> str:
    return f"it was ended by signal {-code}" if code < 0 else f"it ended with exit status {code}"
