"""A control group for one sandbox: memory, processes and CPU time of all in it, where this user may make one."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path

from verigym.verifiers.sandbox.owner import Owner

ROOT = Path("/sys/fs/cgroup")
PREFIX = "verigym-"
_numbers = itertools.count()


class Cgroup:
    """Folders under /sys/fs/cgroup, one for each controller in version 1, one in version 2; none where it may not."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders

    @classmethod
    def create(cls, memory_bytes: int, processes: int) -> Cgroup:
        """A new group with these limits; an empty one where it cannot be made."""
        name = f"{PREFIX}{Owner.current()}-{next(_numbers)}"
        group = cls([parent / name for parent in _parents()])
        try:
            for folder in group._folders:
                folder.mkdir()
            group._limit(memory_bytes, processes)
        except OSError:
            group.remove()
            return cls([])
        return group

    def _limit(self, memory_bytes: int, processes: int) -> None:
        limits = {
            "memory.limit_in_bytes": memory_bytes,
            "memory.memsw.limit_in_bytes": memory_bytes,
            "memory.max": memory_bytes,
            "memory.swap.max": 0,
            "pids.max": processes,
        }
        for folder in self._folders:
            for name, value in limits.items():
                if (folder / name).exists():
                    (folder / name).write_text(str(value))

    def add(self, process: int) -> None:
        """Moves a process, and what it will start, into the group."""
        for folder in self._folders:
            (folder / "cgroup.procs").write_text(str(process))

    def folders(self) -> list[str]:
        """The paths, for a sandbox that is to see them."""
        return [str(folder) for folder in self._folders]

    def files(self) -> dict[str, list[str]]:
        """Where the fork server reads CPU time and out-of-memory kills."""
        return {
            "cpu_files": [str(f / name) for f in self._folders for name in ("cpuacct.usage", "cpu.stat")],
            "oom_files": [str(f / name) for f in self._folders for name in ("memory.oom_control", "memory.events")],
        }

    def remove(self) -> None:
        """Removes the group once its processes have ended; the kernel may take a moment to see that."""
        for folder in self._folders:
            for _ in range(50):
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.01)
                else:
                    break

    @staticmethod
    def remove_orphans() -> int:
        """Removes what owners that were killed left; how many processes were still in there, and are killed."""
        killed = 0
        for parent in _parents():
            for folder in parent.glob(f"{PREFIX}*"):
                if not Owner.parse(folder.name.removeprefix(PREFIX).rpartition("-")[0]).alive:
                    with contextlib.suppress(OSError):
                        for process in (folder / "cgroup.procs").read_text().split():
                            os.kill(int(process), 9)
                            killed += 1
                    Cgroup([folder]).remove()
        return killed


def _parents() -> list[Path]:
    """The folders that may hold ours: one for each controller in version 1; in version 2 our own, or the root."""
    if not (ROOT / "cgroup.controllers").exists():
        parents = [ROOT / name for name in ("memory", "pids", "cpuacct")]
        return parents if all(os.access(parent, os.W_OK) for parent in parents) else []
    own = next((line[3:] for line in _own_groups() if line.startswith("0::")), "/")
    for parent in (ROOT / own.lstrip("/"), ROOT):
        with contextlib.suppress(OSError):
            controllers = (parent / "cgroup.subtree_control").read_text().split()
            if {"memory", "pids"} <= set(controllers) and os.access(parent, os.W_OK):
                return [parent]
    return []


def _own_groups() -> list[str]:
    with contextlib.suppress(OSError):
        return Path("/proc/self/cgroup").read_text().splitlines()
    return []
