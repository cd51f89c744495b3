"""Measures what a sandbox enforces on this host: each sentence is tried by a job, not read from a configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import psutil

from verigym.tasks.errors import SandboxError
from verigym.verifiers.sandbox import seccomp
from verigym.verifiers.sandbox.base import Sandbox, make, registered
from verigym.verifiers.sandbox.job import MIB, Call, Job, Limits, SandboxResult, Status

_SMALL = Limits(cpu_seconds=2.0, wall_seconds=10.0, memory_bytes=128 * MIB, processes=8)
_SYSTEM_CALL = """
import ctypes, errno, platform
libc = ctypes.CDLL(None, use_errno=True)
def f(numbers):
    number = numbers[["x86_64", "aarch64"].index(platform.machine())]
    return libc.syscall(number, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() in (errno.EPERM, errno.ENOSYS)
"""
_CONNECT = """
import socket
def f(family, address):
    try:
        with socket.socket(family, socket.SOCK_STREAM) as s:
            s.settimeout(1)
            s.connect(address)
    except OSError as error:
        return isinstance(error, PermissionError) or error.errno in (97, 101, 99)
    return False
"""
_WRITE = """
import os
def f(folders):
    found = []
    for folder in folders:
        try:
            os.close(os.open(folder + "/verigym-probe", os.O_CREAT | os.O_RDWR))
            os.unlink(folder + "/verigym-probe")
            found.append(folder)
        except OSError:
            pass
    return found
"""
_READ = """
import os
def f():
    found = []
    for name in ("/root", "/home", "/etc/shadow", "/var/run/docker.sock", "/etc/ssh"):
        try:
            os.listdir(name) if os.path.isdir(name) else os.close(os.open(name, os.O_RDONLY))
            if not os.path.isdir(name) or os.listdir(name):
                found.append(name)
        except OSError:
            pass
    return found
"""
_SHARED_MEMORY = """
import ctypes
libc = ctypes.CDLL(None)
def leave(): return libc.shmget(7117, 4096, 0o1666)
def f():
    number = libc.shmget(7117, 4096, 0o666)
    if number != -1: libc.shmctl(number, 0, 0)
    return number == -1
"""
# It gives itself a name: its number means something else outside, and in the worker that comes after.
_DAEMON = """
import ctypes, os, time
def f(name):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)
        os.write(writer, b".")
        time.sleep(600)
    return os.read(reader, 1) == b"."
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about a backend, and whether it holds here (None: it could not be tried)."""

    sandbox: str
    area: str
    sentence: str
    enforced: bool | None
    detail: str = ""


def examine_all() -> list[Finding]:
    """The findings on every registered backend; one that does not work here has a single one, which says why."""
    findings = []
    for name in registered():
        try:
            sandbox = make(name, workers=1, allow_unsafe=True)
        except SandboxError as error:
            findings.append(Finding(name, "start", "it works here", None, str(error)))
            continue
        try:
            findings += [Finding(name, "start", "it works here", True, sandbox.reason), *examine(sandbox)]
        finally:
            sandbox.close()
    return findings


def examine(sandbox: Sandbox) -> Iterator[Finding]:
    """Tries each sentence on this sandbox."""
    for area, sentence, probe in _PROBES:
        result = probe(sandbox)
        failed = isinstance(result, SandboxResult)
        detail = f"{result.status}: {result.reason}" if isinstance(result, SandboxResult) else ""
        yield Finding(sandbox.name, area, sentence, None if failed else bool(result), detail)


Probe = Callable[[Sandbox], "bool | SandboxResult"]


def _ends(source: str, status: Status, **limits: float) -> Probe:
    """Whether a script ends with this status."""

    def probe(sandbox: Sandbox) -> bool | SandboxResult:
        result = sandbox.run(Job(source, limits=replace(_SMALL, **limits)))  # type: ignore[arg-type]
        return result if result.status is Status.INFRA_ERROR else result.status is status

    return probe


def _says(source: str, *args: object, wanted: object = True, before: str | None = None) -> Probe:
    """Whether the function `f` returns what is wanted, after another job has called `before`."""

    def probe(sandbox: Sandbox) -> bool | SandboxResult:
        if before is not None:
            sandbox.run(Job(source, calls=(Call(before),)))
        result = sandbox.run(Job(source, calls=(Call("f", args),), limits=Limits(wall_seconds=10)))
        if result.status is not Status.OK or not result.returns[0].ok:
            return replace(result, reason=result.returns[0].error if result.returns else result.reason)
        return bool(result.returns[0].value == wanted)

    return probe


def _refuses(name: str) -> Probe:
    return _says(_SYSTEM_CALL, list(seccomp.DENIED[name]))


def _no_daemon(sandbox: Sandbox) -> bool | SandboxResult:
    """Whether a process that a job leaves behind is gone from this machine when the job is over."""
    name = f"left-{os.getpid()}"
    result = sandbox.run(Job(_DAEMON, calls=(Call("f", (name,)),)))
    if result.status is not Status.OK or result.returns[0].value is not True:
        return result
    return all(process.info["name"] != name for process in psutil.process_iter(["name"]))


_PROBES: tuple[tuple[str, str, Probe], ...] = (
    ("time", "CPU time of a process", _ends("while True: pass", Status.TIMEOUT, cpu_seconds=0.3)),
    (
        "time",
        "CPU time of all processes",
        _ends("import os\nos.fork(); os.fork()\nwhile True: pass", Status.TIMEOUT, cpu_seconds=0.4),
    ),
    ("time", "wall time", _ends("import time; time.sleep(60)", Status.TIMEOUT, wall_seconds=0.5)),
    ("memory", "memory of a process", _ends("x = []\nwhile True: x.append(bytes(1 << 20))", Status.MEMORY)),
    (
        "memory",
        "memory of all processes",
        _ends(
            "import os, time\nfor _ in '1234': os.fork() or (b'x' * (60 << 20), time.sleep(60))\ntime.sleep(60)",
            Status.MEMORY,
        ),
    ),
    (
        "processes",
        "number of processes",
        _ends("import os, time\nfor _ in range(40): os.fork() or time.sleep(5)", Status.ERROR),
    ),
    ("processes", "no process outlives its job", _no_daemon),
    (
        "files",
        "nothing is written outside the working directory",
        _says(_WRITE, ["/", "/etc", "/usr", "/var/tmp", "/dev"], wanted=[]),
    ),
    ("files", "nothing of the host is read but programs and libraries", _says(_READ, wanted=[])),
    ("files", "size of a file", _ends("open('x', 'wb').write(bytes(20 << 20))", Status.ERROR)),
    ("files", "size of all files", _ends("for i in range(40): open(str(i), 'wb').write(bytes(1 << 20))", Status.ERROR)),
    ("network", "no address is reached", _says(_CONNECT, 2, ("192.0.2.1", 80))),
    ("network", "no vsock", _says(_CONNECT, 40, (2, 22))),
    ("shared memory", "none is seen by the next job", _says(_SHARED_MEMORY, before="leave")),
    ("io_uring", "refused", _refuses("io_uring_setup")),
    ("user namespaces", "refused", _refuses("unshare")),
    ("kernel", "tracing is refused", _refuses("ptrace")),
    ("kernel", "memory files are refused", _refuses("memfd_create")),
    ("kernel", "BPF is refused", _refuses("bpf")),
)
