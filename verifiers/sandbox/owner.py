"""Who owns what a sandbox left on the machine: a process, told apart from a later one with the same id."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Owner:
    """A process by its id, its start time and the boot and process namespace that these belong to."""

    process: int
    started: int
    world: str

    @classmethod
    def current(cls) -> Owner:
        """This process."""
        process = os.getpid()
        return cls(process, _start_time(process), _world())

    @classmethod
    def parse(cls, text: str) -> Owner:
        """What `str` gave; an owner of no process for other text."""
        process, _, rest = text.partition("-")
        started, _, world = rest.partition("-")
        return cls(int(process), int(started), world) if process.isdigit() and started.isdigit() else cls(0, 0, "")

    @property
    def alive(self) -> bool:
        """Whether it still runs; taken for alive if it belongs to a world that we cannot see into."""
        if self.world and self.world != _world():
            return True
        return self.process > 0 and _start_time(self.process) == self.started

    def __str__(self) -> str:
        return f"{self.process}-{self.started}-{self.world}"


def _start_time(process: int) -> int:
    """In clock ticks since the boot; 0 for a process that is gone or only waits to be collected."""
    with contextlib.suppress(OSError, ValueError):
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        return 0 if fields[0] in b"ZX" else int(fields[19])
    return 0


def _world() -> str:
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot[:8]}.{os.stat('/proc/self/ns/pid').st_ino}"
    return "unknown"
