"""The loop of a worker process (`_pool`): reads requests, answers them with what a file's `load()` gives.

Run as a file with `python -I`; imports nothing of the package. Its arguments are that file and the folders of
libraries. Frames on stdin and stdout are a 4-byte length and JSON: a request with "cpu_seconds" in, a reply or
{"failed"} out. The time limit is the parent's; the limits set here are the second line.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import resource
import select
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

MEMORY_BYTES = 1 << 30
GRACE_SECONDS = 0.1  # so that the parent, which is polite, comes first
IDLE_CHECK_SECONDS = 2.0

Answer = Callable[[dict[str, Any]], dict[str, Any]]


def read_frame(descriptor: int, parent: int) -> dict[str, Any] | None:
    """The next request; None at the end of the stream or when the parent is gone."""
    while not select.select([descriptor], [], [], IDLE_CHECK_SECONDS)[0]:
        if os.getppid() != parent:  # a forked sibling may hold our pipe open after the parent's death
            return None
    header = _read_exactly(descriptor, 4)
    body = _read_exactly(descriptor, struct.unpack(">I", header)[0]) if header else None
    return json.loads(body) if body else None


def _read_exactly(descriptor: int, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        chunk = os.read(descriptor, size - len(data))
        if not chunk:
            return None
        data += chunk
    return data


def write_frame(descriptor: int, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    frame = struct.pack(">I", len(body)) + body
    while frame:
        frame = frame[os.write(descriptor, frame) :]


def die_with_parent(descriptor: int, busy: bool) -> None:
    """While busy, the closing of our stdin (the parent's death) kills us by SIGIO, even inside C code."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    flag = getattr(os, "O_ASYNC", 0)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | flag if busy else flags & ~flag)


def limit_cpu_time(seconds: float) -> None:
    """SIGPROF kills this process when it has used so much CPU time, even inside C code; 0 takes it back."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def load(path: str) -> tuple[Answer, int]:
    """What the file at `path` does with a request, and the memory that it may take."""
    spec = importlib.util.spec_from_file_location("task", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(), getattr(module, "MEMORY_BYTES", MEMORY_BYTES)


def answer_request(answer: Answer, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return answer(request)
    except MemoryError:
        return {"failed": "memory"}
    except Exception as error:  # libraries raise whatever they like on text that is none of theirs
        return {"failed": "memory" if "MemoryError" in repr(error) else "unreadable", "error": repr(error)[:300]}


def main() -> None:
    parent = os.getppid()
    requests, replies = 0, os.dup(1)
    os.dup2(2, 1)  # a library that prints must not break the frames
    sys.path.extend(sys.argv[2:])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer, memory = load(sys.argv[1])
    with contextlib.suppress(ValueError, OSError):  # macOS has no limit on the address space
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    fcntl.fcntl(requests, fcntl.F_SETOWN, os.getpid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    write_frame(replies, {"ready": True})
    while request := read_frame(requests, parent):
        limit_cpu_time(request["cpu_seconds"] + GRACE_SECONDS)
        die_with_parent(requests, busy=True)
        reply = answer_request(answer, request)
        die_with_parent(requests, busy=False)
        limit_cpu_time(0)
        write_frame(replies, reply)


if __name__ == "__main__":
    main()
