"""What a sandbox is given and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

from verigym.tasks.errors import SandboxError

MIB = 1 << 20


class Status(StrEnum):
    """How a job ended."""

    OK = "ok"
    """It ended by itself: a script with exit code 0, calls with a return (a value or an error) for each."""
    ERROR = "error"
    """The job's own fault: an exception at import, an exit before all calls returned, a crash, a non-zero exit code."""
    TIMEOUT = "timeout"
    """It used up its CPU seconds or its wall seconds."""
    MEMORY = "memory"
    OUTPUT = "output"
    """It wrote more than its limit to standard output, standard error or its results."""
    INFRA_ERROR = "infra_error"
    """Ours: no verdict about the job."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a job may use. CPU seconds are those of all its processes together, whatever the load of the machine."""

    cpu_seconds: float = 4.0
    wall_seconds: float = 20.0
    memory_bytes: int = 256 * MIB
    processes: int = 32
    output_bytes: int = MIB
    """Of standard output and of standard error, each."""
    file_bytes: int = 16 * MIB
    """Of one file, and of all that it leaves on its disk."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise SandboxError(f"the limit {name} must be above 0, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a function of the job's source: a name, a path such as `Solver.run` or `Solver().run`."""

    function: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """Python to run. Without calls `source` is a script; with calls a module whose functions are called in order.

    Args:
        calls: each is made on freshly decoded arguments, and gives one `Return`.
        stdin: what a script, or the module, finds on standard input.
        files: names relative to the working directory, with their content.
        proxies: names of functions in the module's globals that the supervisor answers (`run`'s `answer`).
        allow_nonfinite: whether NaN and the infinities are values that a call may return.
    """

    source: str
    calls: tuple[Call, ...] = ()
    stdin: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict)
    limits: Limits = Limits()
    proxies: tuple[str, ...] = ()
    allow_nonfinite: bool = False

    def __post_init__(self) -> None:
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
                raise SandboxError(f"a job's file is named relative to its working directory, not '{name[:200]}'")


@dataclass(frozen=True, slots=True)
class Return:
    """What one call gave: a plain value, or the text of an error."""

    ok: bool
    value: Any = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """What a job did: data, never a verdict.

    `exit_code` is that of the job's main process (negative: the signal that ended it), None if it was killed for a
    limit. `returns` are those of the calls made before the end. `cpu_seconds` are those of all its processes.
    """

    status: Status
    reason: str
    stdout: bytes = b""
    stderr: bytes = b""
    exit_code: int | None = None
    returns: tuple[Return, ...] = ()
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
