"""The backend on Docker: locked containers kept warm, in each a fork server that gives every job a user of its own.

Contained: other processes, files outside the job's own memory disk, every network and vsock, shared memory and queues,
system calls of the kernel's riskier parts, CPU and wall time, memory, processes, output and disk of a job.
Not contained: a flaw of the kernel (`runtime="runsc"` puts gVisor in between) or of the Docker engine; the time that
one job takes from another on the same processors.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import struct
import threading
import time
from typing import Any

from verigym.tasks.errors import SandboxError
from verigym.verifiers.sandbox import seccomp
from verigym.verifiers.sandbox.job import MIB, Limits
from verigym.verifiers.sandbox.link import Transport, WorkerFailed
from verigym.verifiers.sandbox.owner import Owner
from verigym.verifiers.sandbox.pool import PooledSandbox
from verigym.verifiers.sandbox.worker import ENVIRONMENT, PYTHON_ARGUMENTS, Worker

try:
    import docker as sdk
    import requests
    from docker.errors import DockerException
except ImportError as error:
    raise SandboxError("sandbox 'docker' needs the Docker SDK: pip install 'verigym[docker]'") from error

IMAGE = "verigym-sandbox"
OWNER_LABEL = "verigym.owner"
FIRST_USER = 0x3000_0000  # ids that no account has
SERVER_BYTES, SERVER_PROCESSES = 32 * MIB, 32  # room for the fork server beside a job
REMOVAL_SECONDS = 60
FAILURES = (DockerException, requests.RequestException, OSError)
_FILES = {
    "cpu_files": [
        f"/sys/fs/cgroup/{name}" for name in ("cpuacct/cpuacct.usage", "cpu,cpuacct/cpuacct.usage", "cpu.stat")
    ],
    "oom_files": [f"/sys/fs/cgroup/{name}" for name in ("memory/memory.oom_control", "memory.events")],
}


class DockerSandbox(PooledSandbox):
    """Fork servers in locked containers.

    Args:
        runtime: an OCI runtime that the engine knows, such as "runsc"; the engine's own if not given.
    """

    name = "docker"
    isolated = True
    launchers = 4

    def __init__(self, workers: int | None = None, *, runtime: str | None = None) -> None:
        self._client = connect()
        self._profile, self._runtime = json.dumps(seccomp.docker_profile()), runtime
        self._filter = seccomp.job_filter()
        if not self._client.images.list(IMAGE):
            raise SandboxError(f"sandbox 'docker' has no image '{IMAGE}': run `verigym sandbox build`")
        super().__init__(workers)
        threading.Thread(target=self._remove_orphans, daemon=True).start()
        about = self.start()
        self.reason = f"Docker with Python {about['version']}; memory by {about['memory']}, CPU time by {about['cpu']}"

    def _remove_orphans(self) -> None:
        with contextlib.suppress(*FAILURES):
            remove_orphans(self._client)

    def launch(self, capacity: Limits) -> Worker:
        try:
            transport = _Container(self._client, self._create(capacity))
        except FAILURES as error:
            raise WorkerFailed(f"the Docker engine refuses a container: {_one_line(error)}") from error
        first_user = FIRST_USER + 1024 * secrets.randbelow(1 << 18)
        config = {"confinement": "users", "filter": self._filter.hex(), "first_user": first_user, **_FILES}
        return Worker(transport, config, capacity)

    def _create(self, capacity: Limits) -> str:
        """A locked container, not yet started: its id."""
        api = self._client.api
        memory = capacity.memory_bytes + SERVER_BYTES
        host = api.create_host_config(
            network_mode="none",
            ipc_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            cap_add=["SETUID", "SETGID", "KILL"],
            security_opt=["no-new-privileges", f"seccomp={self._profile}"],
            mem_limit=memory,
            memswap_limit=memory,
            pids_limit=capacity.processes + SERVER_PROCESSES,
            nano_cpus=10**9,
            tmpfs={"/tmp": f"rw,nosuid,nodev,mode=1777,nr_inodes=4096,size={capacity.file_bytes + 16 * 4096}"},
            log_config={"Type": "none"},
            auto_remove=True,
            runtime=self._runtime,
        )
        made = api.create_container(
            IMAGE,
            ["python3", *PYTHON_ARGUMENTS],
            user="0:0",
            stdin_open=True,
            network_disabled=True,
            working_dir="/",
            hostname="sandbox",
            environment=ENVIRONMENT,
            labels={OWNER_LABEL: str(Owner.current())},
            host_config=host,
        )
        return str(made["Id"])


class _Container(Transport):
    """A container attached to by one socket: the engine closes its input, and so ends it, when we are gone."""

    def __init__(self, client: Any, container: str) -> None:
        self._api, self.container = client.api, container
        self._buffer = bytearray()
        self._errors = bytearray()
        self._killed = False
        self._lock = threading.Lock()
        try:
            streams = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            attached = self._api.attach_socket(container, params=streams)
            self._attached = attached
            self._socket: socket.socket = getattr(attached, "_sock", attached)
            self._socket.settimeout(None)
            self.reader = self.writer = self._socket.fileno()
            self._api.start(container)
        except BaseException:
            self._remove()
            raise

    def demultiplex(self, chunk: bytes) -> bytes:
        """The engine puts a stream's number and a length before each piece of output."""
        self._buffer += chunk
        output = bytearray()
        while len(self._buffer) >= 8:
            stream, size = struct.unpack_from(">BxxxI", self._buffer)
            if len(self._buffer) < 8 + size:
                break
            target = output if stream == 1 else self._errors
            target += self._buffer[8 : 8 + size]
            del self._buffer[: 8 + size]
        return bytes(output)

    def kill(self) -> None:
        with self._lock:
            if self._killed:
                return
            self._killed = True
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._remove()

    def _remove(self) -> None:
        """Returns once it is gone: an engine that is removing it by itself refuses to be asked for that again."""
        deadline = time.monotonic() + REMOVAL_SECONDS
        with contextlib.suppress(*FAILURES):
            while time.monotonic() < deadline:
                try:
                    self._api.remove_container(self.container, force=True)
                except sdk.errors.NotFound:
                    return
                except (sdk.errors.APIError, requests.ReadTimeout):
                    time.sleep(0.02)
                else:
                    return

    def close(self) -> None:
        self.kill()
        with contextlib.suppress(OSError):
            self._attached.close()
            self._socket.close()

    def last_words(self) -> str:
        lines = self._errors.decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "its container is gone"


def connect() -> Any:
    """A client of the engine that the environment names. Raises SandboxError where none answers."""
    try:
        client = sdk.from_env(timeout=30)
        client.ping()
    except FAILURES as error:
        if "PermissionError" in str(error):
            join = "join its group (usermod -aG docker USER) and log in again"
            raise SandboxError(f"sandbox 'docker' may not use the Docker engine: {join}; {_one_line(error)}") from error
        install = "install and start Docker (Debian, Ubuntu: apt-get install docker.io)"
        raise SandboxError(f"sandbox 'docker' finds no Docker engine: {install}; {_one_line(error)}") from error
    return client


def remove_orphans(client: Any) -> int:
    """Removes the containers whose owner was killed; how many there were."""
    removed = 0
    for container in client.containers.list(all=True, filters={"label": OWNER_LABEL}, ignore_removed=True):
        if not Owner.parse(container.labels[OWNER_LABEL]).alive:
            with contextlib.suppress(sdk.errors.APIError):  # the engine itself may have been quicker
                container.remove(force=True)
                removed += 1
    return removed


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
