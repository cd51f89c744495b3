"""The sandboxes that tests run against: all that are installed here; Docker's image is built if it is missing."""

import shutil

import pytest

from verigym.tasks.errors import SandboxError
from verigym.verifiers import sandbox

ISOLATING = ("docker", "bubblewrap")
EVERY = (*ISOLATING, "process")
_PROGRAMS = {"docker": "dockerd", "bubblewrap": "bwrap", "process": "sh"}


def make(name, **kwargs):
    """A sandbox of that backend; skips the test only where its program is not installed."""
    if shutil.which(_PROGRAMS[name]) is None:
        pytest.skip(f"{_PROGRAMS[name]} is not installed")
    if name == "docker":
        _build_image()
    return sandbox.make(name, allow_unsafe=name == "process", **kwargs)


def _build_image():
    from verigym.verifiers.sandbox import docker, image

    client = docker.connect()
    if not client.images.list(docker.IMAGE):
        try:
            image.build_from_registry(client)
        except SandboxError:
            image.build_from_host(client)
