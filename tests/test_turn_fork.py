"""Forked baselines: what a turn brought less what other continuations bring from its state."""

import json
import math
import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from verigym.agents.episode import Episode, Plan, Turn
from verigym.agents.learners.config import GRPOConfig
from verigym.agents.learners.turn_fork import plan_forks, turn_advantages
from verigym.config import SFTConfig, TrainConfig, build
from verigym.envs.mixture import EnvSpec
from verigym.envs.spaces import TextSpace
from verigym.run_folder import RunFolder
from verigym.supervised import sft
from verigym.tasks.errors import ConfigError
from verigym.training import resume, train
from verigym.verifiers import Outcome, Verdict

CALCULATOR = EnvSpec("verigym/Calculator-v0", kwargs={"max_tokens_per_turn": 24, "level": 1})


def make_episode(
    actions: str, rewards: tuple[float, ...], *, group: int = 0, forked_turn: int | None = None, judged: bool = True
) -> Episode:
    """Of a prompt, and for each action two tokens of it and one that the environment says; a fork has its last one."""
    ids, turns = [90, 91], []
    for action in actions:
        turns.append((len(ids), len(ids) + 2))
        ids += [ord(action), ord(action) + 1, 99]
    own = turns[forked_turn or 0 :]
    mask = np.zeros(len(ids), np.bool_)
    for start, end in own:
        mask[start:end] = True
    return Episode(
        env_id="test",
        task_id="t",
        group_id=group,
        seed=group,
        token_ids=np.array(ids),
        mask=mask,
        logprobs=np.zeros(len(ids), np.float32),
        versions=np.where(mask, 0, -1),
        turns=tuple(Turn(*span, reward, "stop", limit=4) for span, reward in zip(own, rewards, strict=True)),
        messages=(),
        truncation=None,
        verdict=Verdict(1.0 if judged else math.nan, Outcome.CORRECT if judged else Outcome.INFRA_ERROR, "by hand"),
        forked_turn=forked_turn,
        snapshots=tuple({"before": actions[:turn]} for turn in range(len(actions))),
    )


def advantages(episodes: list[Episode]) -> list[list[float]]:
    returns = torch.tensor([episode.reward for episode in episodes], dtype=torch.float64)
    return [values.tolist() for values in turn_advantages(episodes, returns)]


def test_a_turns_baseline_is_the_mean_of_the_other_continuations_from_its_state_worked_by_hand() -> None:
    group = [make_episode("ab", (0.25, 1.0)), make_episode("ac", (0.25, 0.0)), make_episode("d", (0.5,))]
    forks = [make_episode("ab", (1.0,), forked_turn=1), make_episode("ae", (0.5,), forked_turn=1)]
    found = advantages([*group, *forks])
    # before the first turn the three returns 1.25, 0.25, 0.5; before the second, after "a", 1, 0 and the forks' 1, .5
    assert found[0] == pytest.approx([1.25 - 0.375] * 2 + [1.0 - 0.5] * 2)
    assert found[1] == pytest.approx([0.25 - 0.875] * 2 + [0.0 - 2.5 / 3] * 2)
    assert found[2] == pytest.approx([0.5 - 0.75] * 2)
    assert np.isnan(found[3]).all()
    assert np.isnan(found[4]).all()
    assert len(found[3]) == 2


def test_states_are_those_of_one_group_and_unjudged_continuations_are_in_no_baseline() -> None:
    group = [make_episode("a", (1.0,)), make_episode("b", (0.0,)), make_episode("b", (9.0,), judged=False)]
    other = [make_episode("a", (5.0,), group=1), make_episode("b", (7.0,), group=1)]
    found = advantages([*group, *other])
    assert [values[0] for values in found[:2]] == pytest.approx([1.0, -1.0])
    assert np.isnan(found[2]).all()
    assert [values[0] for values in found[3:]] == pytest.approx([-2.0, 2.0])


def test_a_turn_without_another_continuation_has_no_advantage() -> None:
    assert advantages([make_episode("ab", (0.0, 1.0)), make_episode("c", (0.0,))])[0] == [1.0, 1.0, 0.0, 0.0]


def test_the_advantage_is_in_expectation_the_true_gradient() -> None:
    """Two turns of two actions each; every outcome of two episodes and one fork, weighed by its chance."""
    first, second = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([0.5, 0.1], dtype=torch.float64)
    worth = {"aa": 1.0, "ab": 0.0, "ba": 0.25, "bb": 0.5}
    logits = [first.requires_grad_(), second.requires_grad_()]

    def chance(actions: str) -> torch.Tensor:
        return torch.stack([logits[t].softmax(0)["ab".index(a)] for t, a in enumerate(actions)]).prod()

    goal = sum(chance(actions) * reward for actions, reward in worth.items())
    true = torch.autograd.grad(goal, logits)
    expected = [torch.zeros(2, dtype=torch.float64) for _ in logits]
    for one in worth:
        for other in worth:
            for forked in "ab":
                fork = one[0] + forked
                episodes = [make_episode(a, (0.0, worth[a])) for a in (one, other)]
                values = advantages([*episodes, make_episode(fork, (worth[fork],), forked_turn=1)])[0]
                weight = (chance(one) * chance(other) * logits[1].softmax(0)["ab".index(forked)]).detach()
                for turn, action in enumerate(one):
                    score = torch.autograd.grad(logits[turn].log_softmax(0)["ab".index(action)], logits[turn])[0]
                    expected[turn] += weight * values[2 * turn] * score
    assert all(torch.allclose(part, whole, atol=1e-12) for part, whole in zip(expected, true, strict=True))
    assert all(part.abs().max() > 1e-2 for part in true)


def test_forks_are_planned_where_the_group_has_too_few_continuations() -> None:
    episodes = [make_episode("ab", (0, 1)), make_episode("ac", (0, 0)), make_episode("de", (0, 0))]
    broken = make_episode("fg", (0, 0), judged=False)
    plans = [Plan(0, "t", 0, 0, seed) for seed in range(4)]
    forks = plan_forks(list(zip(plans, [*episodes, broken], strict=True)), 2)
    # the first state has two others for each; after "a" one other, so one fork; after "d" none, so two
    assert [(plan.start.turn, plan.start.snapshot["before"]) for plan in forks] == [(1, "a"), (1, "d"), (1, "d")]
    assert [plan.start.token_ids.tolist() for plan in forks[:2]] == [[90, 91, 97, 98, 99], [90, 91, 100, 101, 99]]
    assert len({plan.sampling_seed for plan in [*plans, *forks]}) == 7
    assert plan_forks([(plans[0], episodes[0])], 3)[0].start.turn == 0  # of a group of one the first turn lacks all


def test_a_count_of_forks_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="forks must be at least 1"):
        GRPOConfig(advantages="turn_fork", forks=0)


@pytest.fixture(scope="module")
def warm_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warm") / "model"
    sft(SFTConfig(envs=(CALCULATOR,), output=str(folder), steps=100, batch_size=64, demonstrations=512))
    return folder


def forked(model: Path, run: Path, **changes: object) -> TrainConfig:
    values = {"model": str(model), "run": str(run), "envs": (CALCULATOR,), "steps": 4, "groups": 3, "group_size": 3}
    values |= {"deterministic": True, "checkpoint_every": 2, "tensorboard": False}
    return build(TrainConfig, values | {"grpo": {"lr": 3e-4, "advantages": "turn_fork", "forks": 3}} | changes)


def test_a_run_plays_forks_from_exactly_the_states_of_its_turns(warm_start: Path, tmp_path: Path) -> None:
    run = train(forked(warm_start, tmp_path / "run", deterministic=False))
    rows = [row for row in run.metrics if "forks" in row]
    assert len(rows) == 4
    for row in rows:
        stored = list(RunFolder(run.folder).episodes(row["step"]))
        played = [episode for episode in stored if episode.forked_turn is None]
        forks = [episode for episode in stored if episode.forked_turn is not None]
        assert (row["episodes"], row["forks"]) == (len(played), len(forks))
        assert row["fork_tokens"] == sum(episode.num_policy_tokens for episode in forks) > 0
        for fork in forks:
            start = fork.turns[0].start
            assert not fork.mask[:start].any()
            twins = [
                other
                for other in played
                if other.group_id == fork.group_id
                and len(other.turns) > fork.forked_turn
                and other.turns[fork.forked_turn].start == start
                and other.token_ids[:start].tolist() == fork.token_ids[:start].tolist()
            ]
            assert twins
            said = len(twins[0].messages) - len(fork.messages)
            assert said == 0 or twins[0].task_id == fork.task_id
            assert fork.versions[fork.mask].tolist() == [row["step"] - 1] * fork.num_policy_tokens
        # each turn of each played episode has three other continuations at least
        starts = [(e.group_id, e.token_ids[: t.start].tobytes()) for e in stored for t in e.turns]
        turns = [(e.group_id, e.token_ids[: t.start].tobytes()) for e in played for t in e.turns]
        assert min(starts.count(state) for state in turns) >= 4


def test_a_forked_run_resumes_to_the_bit(warm_start: Path, tmp_path: Path) -> None:
    whole = train(forked(warm_start, tmp_path / "whole"))
    shutil.copytree(whole.folder, tmp_path / "part")
    shutil.rmtree(RunFolder(tmp_path / "part").latest())
    resume(tmp_path / "part")
    folders = [RunFolder(path) for path in (whole.folder, tmp_path / "part")]
    rows = [[{k: v for k, v in row.items() if not k.startswith("time/")} for row in f.metrics()] for f in folders]
    assert rows[0] == rows[1]
    one, other = (load_file(folder.latest() / "model.safetensors") for folder in folders)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(row["grad_norm"] > 0 for row in rows[0] if "grad_norm" in row)


class Plain(gym.Env[str, str]):
    """An environment that cannot be forked."""

    def __init__(self) -> None:
        self.observation_space = self.action_space = TextSpace()

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[str, dict[str, object]]:
        super().reset(seed=seed)
        return "1 + 1?", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, object]]:
        return "", float(action == "2"), True, False, {}


def test_an_environment_without_snapshots_is_refused_by_name(warm_start: Path, tmp_path: Path) -> None:
    gym.register("test/Plain-v0", Plain)
    with pytest.raises(ConfigError, match="test/Plain-v0 cannot be forked"):
        train(forked(warm_start, tmp_path / "run", envs=(EnvSpec("test/Plain-v0"),)))
    assert not (tmp_path / "run").exists()


def test_a_fork_is_written_and_read() -> None:
    fork = make_episode("ab", (1.0,), forked_turn=1)
    again = Episode.from_json(json.loads(json.dumps(fork.to_json())))
    assert again.forked_turn == 1
    assert again.mask.tolist() == fork.mask.tolist()
