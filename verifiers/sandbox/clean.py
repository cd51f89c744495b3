"""Removes what the sandboxes of killed processes left on this machine."""

from __future__ import annotations

from verigym.tasks.errors import SandboxError
from verigym.verifiers.sandbox import process
from verigym.verifiers.sandbox.cgroup import Cgroup


def remove_orphans() -> dict[str, int]:
    """Containers, processes and folders whose owner no longer runs; how many of each were removed."""
    return {
        "containers": _remove_containers(),
        "processes": Cgroup.remove_orphans(),
        "folders": process.remove_orphans(),
    }


def _remove_containers() -> int:
    try:
        from verigym.verifiers.sandbox import docker

        return docker.remove_orphans(docker.connect())
    except SandboxError:  # without an engine there are no containers
        return 0
