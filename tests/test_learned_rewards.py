"""PPO by `verigym train` on a reward that was learned: a reward model alone, or a weighted sum of it and a rule."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from verigym import verifiers
from verigym.agents.episode import Episode
from verigym.cli import main
from verigym.envs.mixture import EnvSpec
from verigym.offline_config import RewardModelConfig
from verigym.reward_model import train_reward_model
from verigym.run_folder import RunFolder
from verigym.tasks.task import Task
from verigym.verifiers import Submission

BUDGET = {"level": 1, "max_tokens_per_turn": 8}
SUMS = EnvSpec("verigym/Arithmetic-v0", kwargs=BUDGET)


@pytest.fixture(scope="module")
def reward_model(warm_start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("reward-model") / "run"
    data = {"envs": (SUMS,), "tasks": 40, "samples": 6, "batch_size": 16}
    return train_reward_model(RewardModelConfig(model=str(warm_start), run=str(run), lr=1e-3, **data)).model


def rewarded_by(kind: str, reward_model: Path) -> dict[str, Any]:
    """The environment's options for the reward model alone, or for a fifth of it beside the rule."""
    learned = {"path": str(reward_model), "batch_size": 1}
    if kind == "reward_model":
        return {"verifier": "reward_model", "verifier_options": learned}
    parts = {"math": 1.0, "reward_model": {"weight": 0.2, **learned}}
    return {"verifier": "composite", "verifier_options": {"parts": parts}}


def recipe(path: Path, model: Path, run: Path, options: dict[str, Any], steps: int) -> str:
    values = {
        "model": str(model),
        "run": str(run),
        "envs": [{"id": SUMS.id, "kwargs": {**BUDGET, **options}}],
        "eval_envs": [{"id": SUMS.id, "kwargs": {**BUDGET, "split": "test"}}],
        "learner": "ppo",
        "ppo": {"lr": 3e-4, "critic_lr": 1e-3, "critic_warmup": 1, "minibatches": 2},
        **{"steps": steps, "groups": 6, "group_size": 2, "deterministic": True, "tensorboard": False},
        **{"checkpoint_every": 1, "eval_every": 1, "eval_tasks": 8},
    }
    path.write_text(yaml.safe_dump(values))
    return str(path)


def figures(run: Path) -> list[dict[str, Any]]:
    rows = RunFolder(run).metrics()
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(RunFolder(run).latest() / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def episodes(run: Path, steps: int) -> list[Episode]:
    return [episode for step in range(1, steps + 1) for episode in RunFolder(run).episodes(step)]


@pytest.fixture(scope="module", params=["reward_model", "composite"])
def run(
    request: pytest.FixtureRequest, warm_start: Path, reward_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A run of three steps that nothing interrupted, by what rewards it."""
    folder = tmp_path_factory.mktemp(request.param)
    options = rewarded_by(request.param, reward_model)
    assert main(["train", recipe(folder / "recipe.yaml", warm_start, folder / "run", options, 3)]) == 0
    return request.param, folder / "run"


def test_ppo_trains_on_a_learned_reward_and_resumes_to_the_bit(
    run: tuple[str, Path], warm_start: Path, reward_model: Path, tmp_path: Path
) -> None:
    kind, whole = run
    part, options = tmp_path / "part", rewarded_by(kind, reward_model)
    assert main(["train", recipe(tmp_path / "recipe.yaml", warm_start, part, options, 2)]) == 0
    assert main(["train", "--resume", str(part), "--steps", "3"]) == 0
    assert not same(weights(whole), load_file(warm_start / "model.safetensors"))
    assert same(weights(part), weights(whole))
    assert figures(part) == figures(whole)
    assert [e.to_json() for e in episodes(part, 3)] == [e.to_json() for e in episodes(whole, 3)]


def test_the_rewards_are_those_of_the_model_or_of_the_weighted_sum(run: tuple[str, Path], reward_model: Path) -> None:
    kind, folder = run
    judge, rule = verifiers.make("reward_model", path=str(reward_model), batch_size=1), verifiers.make("math")
    tasks = SUMS.make().unwrapped.tasks
    played = episodes(folder, 3)
    for episode in played:
        submission = Submission(episode.messages[-1]["content"], episode.messages)
        task: Task = tasks.get(episode.task_id)
        learned, true = judge.verify(submission, task).reward, rule.verify(submission, task).reward
        expected = learned if kind == "reward_model" else math.fsum([true, 0.2 * learned]) / 1.2
        assert episode.reward == expected
        assert (episode.verdict.outcome == "correct") == (expected > 0.5 if kind == "reward_model" else true == 1)
    assert len({episode.reward for episode in played}) > 2
    judge.close()
    rule.close()


def test_a_run_on_a_learned_reward_is_evaluated_by_the_environments_own_verifier(run: tuple[str, Path]) -> None:
    rewards = [row["eval/reward"] for row in figures(run[1]) if "eval/reward" in row]
    rates = [row["eval/pass_rate"] for row in figures(run[1]) if "eval/pass_rate" in row]
    assert len(rates) == 4
    assert rewards == rates  # right or wrong, nothing in between
