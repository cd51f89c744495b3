"""A process of a run that stands still, or torchrun's store, is not waited for without end."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch.distributed as dist

SCRIPT = Path(__file__).with_name("heartbeats.py")
PATIENCE = 3
Started = subprocess.Popen[str]


@pytest.fixture
def started() -> Iterator[tuple[Started, Started, Started, int]]:
    """Two ranks that have seen each other, the store, and its port."""
    with ExitStack() as open_:

        def start(role: str, **environment: str) -> Started:
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            command = [sys.executable, str(SCRIPT), role, str(PATIENCE)]
            process = open_.enter_context(subprocess.Popen(command, env=os.environ | environment, text=True, **pipes))
            open_.callback(process.kill)
            return process

        store = start("store")
        port = store.stdout.readline().strip()
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
        ranks = [start(rank, WORLD_SIZE="2", RANK=rank, **address) for rank in ("0", "1")]
        assert [rank.stdout.readline() for rank in ranks] == ["seen\n"] * 2
        yield *ranks, store, int(port)


@pytest.mark.parametrize("victim", ["rank 1", "the store"])
def test_what_stands_still_is_named_in_the_line_with_which_others_end(
    started: tuple[Started, Started, Started, int], victim: str
) -> None:
    one, other, store, port = started
    (other if victim == "rank 1" else store).send_signal(signal.SIGSTOP)
    _, errors = one.communicate(timeout=600)  # a hang
    assert one.returncode == 2
    name = rf"rank 1 \(on \S+, process {other.pid}\)" if victim == "rank 1" else rf"torchrun's store at \S+:{port}"
    line = rf"verigym train: no sign of life for 0\.05 min from {name}: the process is stopped, .* with --resume\n"
    assert re.fullmatch(line, errors)


@pytest.mark.slow
def test_ranks_that_were_all_stopped_for_longer_have_lost_nobody(
    started: tuple[Started, Started, Started, int],
) -> None:
    *ranks, _, port = started
    beats = dist.TCPStore("127.0.0.1", port, is_master=False)

    def count() -> int:
        return min(beats.add(f"heartbeat/{rank}/beats", 0) for rank in (0, 1))

    for rank in ranks:
        rank.send_signal(signal.SIGSTOP)
    time.sleep(2 * PATIENCE)
    enough = count() + 100  # more than they beat in the time after which one is lost
    for rank in ranks:
        rank.send_signal(signal.SIGCONT)
    while count() < enough and not any(rank.poll() for rank in ranks):
        time.sleep(0.05)
    assert [rank.poll() for rank in ranks] == [None, None]
