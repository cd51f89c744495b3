"""One fork server as the supervisor sees it: what is sent for a job, and what is made of the answer."""

from __future__ import annotations

import base64
import inspect
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from types import ModuleType
from typing import Any

from verigym.tasks.errors import SandboxError
from verigym.verifiers.sandbox import _confine, _driver, _server, values
from verigym.verifiers.sandbox.base import Answer
from verigym.verifiers.sandbox.job import Call, Job, Limits, Return, SandboxResult
from verigym.verifiers.sandbox.link import Link, Transport, WorkerFailed
from verigym.verifiers.sandbox.outcome import Outcome, Stream

START_SECONDS = 60.0
GRACE_SECONDS = 10.0  # how much later than a job's wall limit the server's answer may come
RESULT_BYTES = 16 << 20
MAX_BACKLOG = 4 << 20  # bytes of answers that a job has asked for and not taken
PRELOAD = (
    "abc array bisect cmath collections contextlib copy dataclasses datetime decimal enum fractions functools heapq io "
    "itertools json math numbers operator random re statistics string struct textwrap time typing"
)

# Reads so many bytes of Python from its standard input as the first ten bytes say, and runs them.
BOOTSTRAP = """
import os, sys
def take(size):
    data = b""
    while len(data) < size:
        chunk = os.read(0, size - len(data))
        if not chunk:
            os._exit(0)
        data += chunk
    return data
sys.path[:] = [folder for folder in sys.path if folder]
exec(take(int(take(10))), {"__name__": "bootstrap"})
"""
# -I would ignore PYTHONHASHSEED; the environment is ours alone, so there is nothing else for it to keep out
PYTHON_ARGUMENTS = ("-s", "-B", "-c", BOOTSTRAP)
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "PYTHONHASHSEED": "0",
    "MALLOC_ARENA_MAX": "2",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


def program(config: Mapping[str, Any]) -> bytes:
    """The text that the bootstrap runs: our modules under their own names, and the server with this configuration."""
    text = [
        "import sys, types",
        "def add(name, source=''):",
        "    module = sys.modules[name] = types.ModuleType(name)",
        "    module.__path__ = []",
        "    exec(compile(source, '<' + name + '>', 'exec'), module.__dict__)",
        "    parent, _, last = name.rpartition('.')",
        "    if parent: setattr(sys.modules[parent], last, module)",
        "add('verigym'); add('verigym.verifiers'); add('verigym.verifiers.sandbox')",
    ]
    modules: tuple[ModuleType, ...] = (values, _driver, _confine, _server)
    text += [f"add({module.__name__!r}, {inspect.getsource(module)!r})" for module in modules]
    text.append(f"import json; sys.modules[{_server.__name__!r}].main(json.loads({json.dumps(dict(config))!r}))")
    body = "\n".join(text).encode()
    return b"%010d" % len(body) + body


class Worker:
    """A fork server; used by one thread at a time, but for `kill`. After WorkerFailed or Cancelled its end is due."""

    def __init__(self, transport: Transport, config: Mapping[str, Any], capacity: Limits) -> None:
        self.capacity = capacity
        self.jobs = 0
        self.worn = ""
        """Why it must not be used again, empty while it may."""
        self.transport = transport
        self._link = Link(transport)
        self._link.post_raw(program({"preload": PRELOAD.split(), **config}))
        self.about: dict[str, Any] = {}

    def greet(self) -> None:
        """Waits until the server is ready, and learns about it. Raises WorkerFailed, and closes it then."""
        try:
            kind, body = self._link.next(time.monotonic() + START_SECONDS)
            if kind != b"h":
                raise WorkerFailed("the fork server did not say hello")
            self.about = json.loads(body)
        except BaseException:
            self.close()
            raise

    def kill(self) -> None:
        """Ends the server and all in its sandbox, from any thread: whoever uses it gets WorkerFailed."""
        self.transport.kill()

    def close(self) -> None:
        """Kills it and frees what it holds; for whoever used it last."""
        self.transport.close()

    def run(
        self, job: Job, request: Mapping[str, Any], answer: Answer | None, cancelled: threading.Event | None
    ) -> SandboxResult:
        """Runs one job, of which `request` is the encoding, to its proven end. Raises WorkerFailed and Cancelled."""
        stream = Stream(len(job.calls), allow_nonfinite=job.allow_nonfinite)
        self._start(request, job.limits, interactive=bool(job.proxies))
        deadline = time.monotonic() + job.limits.wall_seconds + GRACE_SECONDS
        report = self._follow(stream, b"x", deadline, answer, cancelled)
        outcome = self._ended(stream, report)
        return outcome.of_calls(len(job.calls)) if job.calls else outcome.of_script()

    def open_session(self, limits: Limits) -> None:
        """Starts a live interpreter, which waits for `turn`."""
        self._stream = Stream(1, allow_nonfinite=True)
        self._start(
            {**encode_job(Job("")), "kind": "session", "file_bytes": limits.file_bytes}, limits, interactive=True
        )

    def turn(self, step: Mapping[str, Any], limits: Limits) -> tuple[SandboxResult, bool]:
        """One step of a session: what it did, and whether the interpreter lives on."""
        stream = self._stream
        stream.begin_turn()
        self._link.post(b"t", b"{}")
        self._post_request(step)
        deadline = time.monotonic() + limits.wall_seconds + GRACE_SECONDS
        report = self._follow(stream, b"y", deadline, None, None)
        if "code" in report:
            return self._ended(stream, report).of_script(in_session=True), False
        return Outcome(stream, {**report, "cause": None, "code": 0}).of_turn(), True

    def _start(self, request: Mapping[str, Any], limits: Limits, *, interactive: bool) -> None:
        self.jobs += 1
        header = {**asdict(limits), "result_bytes": RESULT_BYTES, "interactive": interactive}
        self._link.post(b"j", json.dumps(header).encode())
        self._post_request(request)

    def _post_request(self, request: Mapping[str, Any]) -> None:
        body = json.dumps(request).encode()
        self._link.post(b"q", b"q" + len(body).to_bytes(4, "big"), body)

    def _follow(
        self, stream: Stream, until: bytes, deadline: float, answer: Answer | None, cancelled: threading.Event | None
    ) -> dict[str, Any]:
        """Takes in what the job writes, answers its proxies, until the report of its end or of its turn."""
        while True:
            kind, body = self._link.next(deadline, cancelled)
            if kind in (b"x", until):
                return dict(json.loads(body))
            for frame in stream.take(kind, body):
                if frame[0] == b"T":
                    self._link.post(b"d")
                elif self._link.backlog > MAX_BACKLOG:
                    self._link.post(b"k")  # it asks, and does not take the answers
                else:
                    self._post_request(_answer(frame[1], answer))

    def _ended(self, stream: Stream, report: dict[str, Any]) -> Outcome:
        if "failed" in report:
            raise WorkerFailed(report["failed"])
        if not stream.begun and report["cause"] is None:
            words = bytes(stream.stderr).decode(errors="replace")[:300]
            raise WorkerFailed(words or "the job ended before it began")
        if report.get("doubt"):
            self.worn = report["doubt"]
        elif self._link.backlog:
            self.worn = "a job left answers untaken"
        elif report.get("left") and report["cause"] is None:
            self.worn = "a job left processes behind"
        elif report["cause"] == "memory":
            self.worn = "a job ran out of memory"
        return Outcome(stream, report)


def encode_job(job: Job) -> dict[str, Any]:
    """What is sent of a job. Raises SandboxError for arguments that are no plain values."""
    return {
        "kind": "calls" if job.calls else "script",
        "source": job.source,
        "calls": [encode_call(call) for call in job.calls],
        "stdin": base64.b64encode(job.stdin).decode(),
        "files": {name: base64.b64encode(content).decode() for name, content in job.files.items()},
        "proxies": list(job.proxies),
        "file_bytes": job.limits.file_bytes,
    }


def encode_call(call: Call) -> dict[str, str]:
    """What is sent of a call. Raises SandboxError for arguments that are no plain values."""
    try:
        return {"function": call.function, "arguments": values.to_text((tuple(call.args), dict(call.kwargs)))}
    except values.NotPlain as error:
        raise SandboxError(
            f"the arguments of a call of '{call.function[:100]}' cannot enter a sandbox: {error}"
        ) from None


def _answer(text: bytes, answer: Answer | None) -> dict[str, Any]:
    """The supervisor's word on a proxied call; what the job wrote may be anything."""
    try:
        name, arguments = json.loads(text)
        args, kwargs = values.from_text(arguments, allow_nonfinite=True)
        given = answer(Call(str(name), args, kwargs)) if answer else Return(False, error="RuntimeError: no such proxy")
        if given.ok:
            return {"ok": True, "value": values.to_text(given.value)}
        return {"ok": False, "error": given.error}
    except (ValueError, TypeError, RecursionError) as error:
        return {"ok": False, "error": f"RuntimeError: {error}"[:500]}


def larger(first: Limits, second: Limits) -> Limits:
    """Limits with the room of both, for a worker that is to hold either."""
    room = ("memory_bytes", "processes", "file_bytes")
    return replace(first, **{name: max(getattr(first, name), getattr(second, name)) for name in room})
