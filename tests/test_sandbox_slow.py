"""Twenty thousand jobs, one in a hundred hostile, leave full pools and nothing else; an engine stops and returns."""

import contextlib
import gc
import json
import math
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from verigym.config import SFTConfig
from verigym.envs.mixture import EnvSpec
from verigym.run_folder import RunFolder
from verigym.supervised import sft
from verigym.tasks.errors import SandboxError
from verigym.verifiers import Outcome
from verigym.verifiers.sandbox import Call, Job, Limits, Status

_SANDBOXES = runpy.run_path(str(Path(__file__).with_name("sandboxes.py")))
_OWNER = runpy.run_path(str(Path(__file__).with_name("test_sandbox_owner.py")))
JOBS = 20_000
BRIEF = Limits(cpu_seconds=0.1, wall_seconds=5)
HOSTILE = [
    "while True:\n    try: os.fork()\n    except OSError: pass",
    "while True: pass",
    "x = bytearray(10 << 30)",
    "x = []\nwhile True: x.append('x' * 100000)",
    "while True: print('x' * 1000)",
    "if os.fork() == 0:\n    os.setsid(); time.sleep(600)",
    "os._exit(0)",
    "import ctypes; ctypes.string_at(0)",
    "for i in range(10**6): open(str(i), 'w').close()",
    "os.mkdir('d'); open('d/x', 'w').close(); os.chmod('d', 0)",
    "for n in range(256):\n    try: os.write(n, b'R' * 100)\n    except OSError: pass",
    "os.kill(1, 9)",
]


def what_is_left(name):
    """The folders and, with Docker, the containers that this process owns."""
    return {*_OWNER["folders"](os.getpid()), *(_OWNER["containers"](os.getpid()) if name == "docker" else ())}


@pytest.mark.slow
@pytest.mark.parametrize("name", _SANDBOXES["ISOLATING"])
def test_a_soak_leaves_full_pools_and_nothing_else(name):
    kept = what_is_left(name)  # of the sandbox that earlier tests of this process share
    box = _SANDBOXES["make"](name, workers=2)
    randomness = random.Random(1)

    def run(number):
        if randomness.random() < 0.01:
            body = randomness.choice(HOSTILE).replace("\n", "\n    ")
            result = box.run(Job(f"import os, sys, time\ndef f():\n    {body}\n", calls=(Call("f"),), limits=BRIEF))
            return result.status is not Status.INFRA_ERROR
        result = box.run(Job("def f(x): return [x, x + 1]", calls=(Call("f", (number,)),)))
        return result.status is Status.OK and result.returns[0].value == [number, number + 1]

    def measure():
        gc.collect()
        return psutil.Process().memory_info().rss, psutil.Process().num_fds(), psutil.Process().num_threads()

    try:
        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(run, range(500)))
            memory, descriptors, thread_count = measure()
            assert all(threads.map(run, range(500, JOBS // len(_SANDBOXES["ISOLATING"]))))
            after = measure()
        assert after[0] < memory + (30 << 20)
        assert after[1] <= descriptors + 8  # a worker that is being replaced just now
        assert after[2] <= thread_count + 2
        assert run(-1)
        with ThreadPoolExecutor(2) as threads:
            assert all(threads.map(run, range(10)))
        assert len(box._all) - len(box._spares) == box._count == 2
    finally:
        box.close()
    assert what_is_left(name) <= kept


def start_engine(folder):
    """A Docker engine of the test's own."""
    arguments = ["--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"]
    arguments += ["-H", f"unix://{folder}/socket", "--bridge", "none", "--iptables=false", "--ip-masq=false"]
    with open(f"{folder}/log", "ab") as log:
        engine = subprocess.Popen(["dockerd", *arguments], stdout=log, stderr=log, start_new_session=True)
    from verigym.verifiers.sandbox import docker

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(SandboxError):
            docker.connect()
            return engine
        time.sleep(0.2)
    engine.terminate()
    pytest.fail(f"no engine: {Path(folder, 'log').read_text()[-500:]}")


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0 or shutil.which("dockerd") is None, reason="starts a Docker engine, as root")
def test_an_engine_that_stops_in_mid_run_gives_infrastructure_errors_until_it_is_back(monkeypatch):
    folder = tempfile.mkdtemp(prefix="verigym-engine-")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{folder}/socket")
    engine = start_engine(folder)
    try:
        box = _SANDBOXES["make"]("docker", workers=2)
        job = Job("import time\ntime.sleep(0.05)\nprint(1)")
        with ThreadPoolExecutor(4) as threads:
            running = [threads.submit(box.run, job) for _ in range(200)]
            running[20].result()
            engine.terminate()
            results = [future.result(120) for future in running]
        engine.wait(30)
        assert {result.status for result in results} == {Status.OK, Status.INFRA_ERROR}
        assert all(result.stdout == b"1\n" for result in results if result.status is Status.OK)
        assert results[-1].status is Status.INFRA_ERROR
        engine = start_engine(folder)
        assert box.run(job).status is Status.OK
        box.close()
        assert _OWNER["containers"](os.getpid()) == []
    finally:
        engine.terminate()
        engine.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0 or shutil.which("dockerd") is None, reason="starts a Docker engine, as root")
def test_training_masks_and_counts_what_a_stopped_engine_could_not_judge_then_stops(monkeypatch, tmp_path):
    folder = tempfile.mkdtemp(prefix="verigym-engine-")
    options = {"level": 1, "max_tokens_per_turn": 48}
    small = EnvSpec("verigym/TinyCode-v0", kwargs={**options, "verifier_options": {"sandbox": "bubblewrap"}})
    sft(SFTConfig(envs=(small,), output=str(tmp_path / "model"), steps=40, batch_size=32, demonstrations=256))
    env = {"id": "verigym/TinyCode-v0", "kwargs": {**options, "verifier_options": {"sandbox": "docker"}}}
    config = {"model": str(tmp_path / "model"), "run": str(tmp_path / "run"), "envs": [env], "steps": 500}
    config |= {"groups": 8, "group_size": 4, "eval_every": 0, "tensorboard": False, "max_infra_error_rate": 0.8}
    (tmp_path / "run.json").write_text(json.dumps(config))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{folder}/socket")
    engine = start_engine(folder)
    try:
        _SANDBOXES["make"]("docker", workers=1).close()
        command = [sys.executable, "-m", "verigym.cli", "train", str(tmp_path / "run.json")]
        with open(tmp_path / "said", "wb") as said:
            run = subprocess.Popen(command, stdout=said, stderr=said)
        runs = RunFolder(tmp_path / "run")
        while run.poll() is None and not any(row["step"] >= 2 for row in runs.metrics()):
            time.sleep(0.05)
        engine.terminate()
        assert run.wait(300) == 2
    finally:
        run.kill()
        engine.terminate()
        engine.wait(30)
        shutil.rmtree(folder, ignore_errors=True)
    last = (tmp_path / "said").read_text().splitlines()[-1]
    assert re.search(
        r"after step \d+: \d+ of 32 episodes could not be judged, more than the 80% allowed; .*engine", last
    )
    for row in runs.metrics():
        episodes = list(runs.episodes(row["step"]))
        broken = [episode for episode in episodes if episode.verdict.outcome is Outcome.INFRA_ERROR]
        assert row["infra_errors"] == len(broken) < len(episodes)
        assert all(math.isnan(episode.reward) for episode in broken)
        judged = [episode.verdict for episode in episodes if episode not in broken]
        assert not [verdict for verdict in judged if "worker" in verdict.reason or "engine" in verdict.reason]
