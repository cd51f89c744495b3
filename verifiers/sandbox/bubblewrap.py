"""The backend without a daemon: a fork server inside bubblewrap, with namespaces of its own for each job.

Contained: other processes, files outside the job's own memory disk, every network and vsock, shared memory and queues,
system calls of the kernel's riskier parts, CPU and wall time, memory, processes, output and disk of a job.
Not contained: reading the host's /usr (programs and libraries); a flaw of the kernel; where no cgroup can be made
(`verigym sandbox doctor` says so), memory of several processes between two looks at it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from verigym.tasks.errors import SandboxError
from verigym.verifiers.sandbox import seccomp
from verigym.verifiers.sandbox.cgroup import Cgroup
from verigym.verifiers.sandbox.job import MIB, Limits
from verigym.verifiers.sandbox.link import ProcessTransport, WorkerFailed
from verigym.verifiers.sandbox.pool import PooledSandbox
from verigym.verifiers.sandbox.worker import ENVIRONMENT, PYTHON_ARGUMENTS, Worker

INSTALL = "install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap)"
FIRST_USER = 0x2000_0000  # ids that no account has, should root launch us
SERVER_BYTES = 64 * MIB  # room for the fork server beside a job
_LIBRARIES = ("lib", "lib64", "lib32", "bin", "sbin")


class BubblewrapSandbox(PooledSandbox):
    """Fork servers inside bubblewrap."""

    name = "bubblewrap"
    isolated = True
    max_jobs = 2000  # nothing of a job outlives its namespaces

    def __init__(self, workers: int | None = None) -> None:
        if shutil.which("bwrap") is None:
            raise SandboxError(f"sandbox 'bubblewrap' needs the program bwrap: {INSTALL}")
        self._filter = seccomp.job_filter()
        self._python, self.reason = "", ""
        super().__init__(workers)
        threading.Thread(target=Cgroup.remove_orphans, daemon=True).start()
        self._python = self._find_python()
        about = self.start()
        self.reason = (
            f"bubblewrap with Python {about['version']}; memory by {about['memory']}, CPU time by {about['cpu']}"
        )

    def _find_python(self) -> str:
        """An interpreter that runs in there, for a user without rights."""
        refused = []
        for python in dict.fromkeys(("/usr/bin/python3", "/usr/local/bin/python3", _own_python())):
            if os.access(python, os.X_OK):
                self._python = python
                try:
                    worker = self.launch(Limits())
                    worker.greet()
                except (WorkerFailed, OSError) as error:
                    refused.append(f"{python}: {error}")
                else:
                    worker.close()
                    return python
        self.close()
        raise SandboxError(f"sandbox 'bubblewrap' does not start: {'; '.join(refused) or 'no Python in /usr'}")

    def launch(self, capacity: Limits) -> Worker:
        cgroup = Cgroup.create(capacity.memory_bytes + SERVER_BYTES, capacity.processes + 16)
        try:
            transport = _Transport(*self._start_process(cgroup), cgroup)
        except BaseException:
            cgroup.remove()
            raise
        config = {"confinement": "namespaces", "filter": self._filter.hex(), **cgroup.files()}
        return Worker(transport, config, capacity)

    def _start_process(self, cgroup: Cgroup) -> tuple[subprocess.Popen[bytes], int]:
        """The bwrap process and its child, the server's id on the host; both in the cgroup before a job is."""
        reader, writer = os.pipe()
        user = FIRST_USER + secrets.randbelow(1 << 24) if os.getuid() == 0 else None
        command = ["bwrap", "--info-fd", str(writer), *_arguments(self._python, cgroup)]
        try:
            process = subprocess.Popen(
                [*command, "--", self._python, *PYTHON_ARGUMENTS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=ENVIRONMENT,
                cwd="/",
                pass_fds=(writer,),
                start_new_session=True,
                bufsize=0,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )
            os.close(writer)
            writer = -1
            with os.fdopen(reader, "rb", closefd=False) as info:
                text = info.read()
        finally:
            os.close(reader)
            if writer >= 0:
                os.close(writer)
        server = json.loads(text)["child-pid"] if text else process.pid
        for pid in {process.pid, server}:
            cgroup.add(pid)
        return process, server


class _Transport(ProcessTransport):
    """bwrap dies with this process, and all in its namespaces with it."""

    def __init__(self, process: subprocess.Popen[bytes], server: int, cgroup: Cgroup) -> None:
        super().__init__(process)
        self.server = server
        self._cgroup = cgroup

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.server, signal.SIGKILL)  # the first process of its namespace: all in it go too
        self.process.kill()

    def close(self) -> None:
        super().close()
        self._cgroup.remove()


def _arguments(python: str, cgroup: Cgroup) -> Sequence[str]:
    """bwrap's flags: a read-only root of /usr alone, and nothing of the host's beside it."""
    arguments = ["--unshare-all", "--cap-drop", "ALL", "--new-session", "--die-with-parent", "--as-pid-1"]
    arguments += ["--hostname", "sandbox", "--clearenv"]
    for name, value in ENVIRONMENT.items():
        arguments += ["--setenv", name, value]
    arguments += ["--ro-bind", "/usr", "/usr"]
    for name in _LIBRARIES:
        path = Path("/", name)
        if path.is_symlink():
            arguments += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    if not python.startswith("/usr/"):
        arguments += ["--ro-bind", sys.base_prefix, sys.base_prefix]
    arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc", "--dev", "/dev"]
    for folder in cgroup.folders():
        arguments += ["--ro-bind", folder, folder]
    return [*arguments, "--dir", "/tmp", "--chdir", "/", "--remount-ro", "/dev", "--remount-ro", "/"]


def _own_python() -> str:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return str(Path(sys.base_prefix, "bin", version))
