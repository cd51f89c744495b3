"""The image of the Docker sandbox: from a registry, from this host's own Python, or from a Debian mirror."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from verigym.tasks.errors import SandboxError
from verigym.verifiers.sandbox.docker import FAILURES, IMAGE

BASE = "python:3.12-slim"
_DOCKERFILE = (
    "FROM {base}\nRUN rm -rf /usr/local/lib/python3*/site-packages/pip* /root /var/cache/* && mkdir -m 700 /root\n"
)
_LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "ensurepip",
    "turtledemo",
    "lib2to3",
    "tkinter",
    "site-packages",
    "__pycache__",
}
_DEBIAN_LEFT_OUT = ("./var/cache", "./var/lib/apt", "./usr/share/doc", "./usr/share/man", "./usr/share/locale", "./dev")


def build_from_registry(client: Any, base: str = BASE) -> None:
    """Builds on an image that has Python. Raises SandboxError where no registry answers."""
    dockerfile = io.BytesIO(_DOCKERFILE.format(base=base).encode())
    try:
        client.images.build(fileobj=dockerfile, tag=IMAGE, rm=True, forcerm=True)
    except FAILURES as error:
        hint = "without a registry, build with --from-host or --debootstrap"
        raise SandboxError(f"cannot build on {base} ({' '.join(str(error).split())[:200]}); {hint}") from error


def build_from_host(client: Any) -> None:
    """Packs the Python that runs this, with its standard library and the shared libraries that they load."""
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        with tarfile.open(file.name, mode="w") as archive:
            _add_host_python(archive)
        _import(client, file.name)


def build_from_debian(client: Any, suite: str = "bookworm") -> None:
    """Runs debootstrap, which needs root and a Debian mirror."""
    with tempfile.TemporaryDirectory() as folder:
        packages = "--include=python3-minimal,python3"
        command = ["debootstrap", "--variant=minbase", packages, suite, folder]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise SandboxError("no program debootstrap (Debian, Ubuntu: apt-get install debootstrap)") from None
        except subprocess.CalledProcessError as error:
            raise SandboxError(f"debootstrap failed: {(error.stdout or error.stderr).strip()[-300:]}") from None
        with tempfile.NamedTemporaryFile(suffix=".tar") as file:
            with tarfile.open(file.name, mode="w") as archive:
                archive.add(folder, ".", filter=_without_caches)
            _import(client, file.name)


def _without_caches(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.startswith(_DEBIAN_LEFT_OUT) else member


def _import(client: Any, path: str) -> None:
    try:
        answer = client.api.import_image(path, repository=IMAGE, tag="latest", changes=["USER 65534:65534"])
        if '"error"' in answer:
            raise SandboxError(f"the Docker engine refuses the image: {answer[-300:]}")
    except FAILURES as error:
        raise SandboxError(f"the Docker engine refuses the image: {' '.join(str(error).split())[:300]}") from error


def _add_host_python(archive: tarfile.TarFile) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    program = Path(sys.base_prefix, "bin", version)
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
    for name in ("tmp", "proc", "sys", "dev", "etc", "usr/local/bin"):
        _add_folder(archive, name)
    archive.add(os.path.realpath(program), f"usr/local/bin/{version}", filter=_as_root)
    _add_link(archive, "usr/local/bin/python3", version)
    archive.add(library, f"usr/local/lib/{version}", filter=_standard_library)
    binaries = [program, *library.glob("lib-dynload/*.so")]
    for path in sorted(_shared_libraries(binaries)):
        # a library beside Python is found in /lib, whatever folder of the host was written into the program
        name = f"lib/{Path(path).name}" if path.startswith(sys.base_prefix) else path.lstrip("/")
        archive.add(os.path.realpath(path), name, filter=_as_root)


def _standard_library(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    folders = set(Path(member.name).parts) & _LEFT_OUT
    return None if folders or "/config-" in member.name else _as_root(member)


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode |= 0o555 if member.isdir() or member.mode & 0o100 else 0o444
    return member


def _add_folder(archive: tarfile.TarFile, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
    archive.addfile(member)


def _add_link(archive: tarfile.TarFile, name: str, target: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    archive.addfile(member)


def _shared_libraries(binaries: Iterable[Path]) -> set[str]:
    """The absolute paths of what the loader would load for these, the loader itself among them."""
    command = ["ldd", *map(str, binaries)]
    try:
        listing = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise SandboxError("no program ldd, which --from-host asks for the shared libraries") from None
    return set(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listing, re.MULTILINE))
