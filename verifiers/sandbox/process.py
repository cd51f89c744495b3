"""The backend without isolation: child processes under rlimits, for code that you trust and for platforms without more.

Contained: CPU and wall time, memory of each process, output, leftover processes and files of a job that does not hide.
Not contained: the network, the host's files, other processes of the same user, anything that means harm.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from verigym.verifiers.sandbox.job import Limits
from verigym.verifiers.sandbox.link import ProcessTransport
from verigym.verifiers.sandbox.owner import Owner
from verigym.verifiers.sandbox.pool import PooledSandbox
from verigym.verifiers.sandbox.worker import ENVIRONMENT, PYTHON_ARGUMENTS, Worker

PREFIX = "verigym-job-"


class ProcessSandbox(PooledSandbox):
    """Fork servers that are plain child processes."""

    name = "process"
    reason = "rlimits only: for code that you trust"
    isolated = False

    def __init__(self, workers: int | None = None) -> None:
        super().__init__(workers)
        self.start()

    def launch(self, capacity: Limits) -> Worker:
        process = subprocess.Popen(
            [sys.executable, *PYTHON_ARGUMENTS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
        prefix = f"{PREFIX}{Owner.current()}-"
        return Worker(ProcessTransport(process), {"confinement": "process", "directory_prefix": prefix}, capacity)


def remove_orphans() -> int:
    """Removes the folders of jobs whose owner was killed before their server could; how many there were."""
    removed = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if not Owner.parse(folder.name.removeprefix(PREFIX).rpartition("-")[0]).alive:
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)
                removed += 1
    return removed
