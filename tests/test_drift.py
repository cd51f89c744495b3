"""An engine beside its learner: its memory, and what a run does when the two drift apart."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from verigym.agents.agent import save_checkpoint
from verigym.agents.engines.config import EngineConfig
from verigym.agents.engines.engine import Generation
from verigym.agents.engines.sync import WeightSync
from verigym.agents.engines.transformers import TransformersEngine
from verigym.agents.learners.grpo import GRPO
from verigym.agents.tiny import tiny_model, tiny_tokenizer
from verigym.config import TrainConfig, build
from verigym.envs.mixture import EnvSpec
from verigym.evaluation import play
from verigym.players import LocalPlayer
from verigym.run_folder import RunFolder
from verigym.tasks.errors import ConfigError, RunError
from verigym.training import train

DRIFT = 0.3


@pytest.fixture
def drifting(monkeypatch: pytest.MonkeyPatch) -> None:
    """From version 1 on the engine says that its tokens were likelier than they are."""
    step = TransformersEngine.step

    def drifted(engine: TransformersEngine) -> list[Generation]:
        by = DRIFT if engine.version else 0.0
        return [replace(done, logprobs=tuple(value + by for value in done.logprobs)) for done in step(engine)]

    monkeypatch.setattr(TransformersEngine, "step", drifted)


def config(folder: Path, **changes: object) -> TrainConfig:
    tokenizer = tiny_tokenizer()
    save_checkpoint(folder / "model", tiny_model(len(tokenizer), hidden_size=32, layers=1), tokenizer)
    values = {
        "model": str(folder / "model"),
        "run": str(folder / "run"),
        "envs": [{"id": "verigym/Arithmetic-v0", "kwargs": {"max_tokens_per_turn": 4}}],
        "steps": 2,
        "groups": 2,
        "group_size": 2,
        "tensorboard": False,
    }
    # An entropy bonus gives every token a loss, however the episodes of a group compare.
    settings = {"lr": 1e-4, "entropy_coefficient": 1e-3, **changes.pop("grpo", {})}  # type: ignore[dict-item]
    return build(TrainConfig, {**values, **changes, "grpo": settings})


@pytest.mark.usefixtures("drifting")
def test_drift_beyond_the_limit_stops_the_run_in_its_step(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"in step 2 the engine's log-probabilities are 0\.3 nats .* max_drift 0\.1;"):
        train(config(tmp_path))
    assert [row["step"] for row in RunFolder(tmp_path / "run").metrics()] == [1]


@pytest.mark.usefixtures("drifting")
def test_drift_is_measured_in_every_step_and_corrected_where_that_is_asked_for(tmp_path: Path) -> None:
    first, second = train(config(tmp_path, grpo={"correction": "token"})).metrics
    assert first["sampler_gap_mean"] < 1e-5
    assert second["sampler_gap_mean"] == pytest.approx(DRIFT, abs=1e-4)
    assert second["sync/proven"] == 1.0


@pytest.mark.usefixtures("drifting")
def test_drift_stops_a_run_that_plays_beside_the_learner_though_older_tokens_are_corrected(tmp_path: Path) -> None:
    changes = {"staleness": 1, "steps": 8, "grpo": {"correction": "token"}}
    with pytest.raises(
        RunError, match=r"log-probabilities are 0\.3 nats .*; find out why, or raise max_drift to go on"
    ):
        train(config(tmp_path, **changes))
    rows = RunFolder(tmp_path / "run").metrics()
    assert max(row["sampler_gap_max"] for row in rows) < 1e-5


@pytest.mark.usefixtures("drifting")
def test_a_higher_limit_lets_a_run_go_on(tmp_path: Path) -> None:
    assert len(train(config(tmp_path, max_drift=0.5)).metrics) == 2


def test_the_engine_gives_its_memory_to_the_learner_while_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    engine = TransformersEngine
    for kind, name in ((engine, "sleep"), (engine, "wake"), (GRPO, "update"), (WeightSync, "send")):
        monkeypatch.setattr(kind, name, noted(calls, name, getattr(kind, name)))
    train(config(tmp_path, steps=1))
    assert calls == ["sleep", "update", "wake", "send"]


def noted(calls: list[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def noting(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        return function(*arguments, **options)

    return noting


def test_a_limit_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_drift must be above 0"):
        config(tmp_path, max_drift=0.0)


def test_lockstep_is_refused_for_engines_that_do_not_promise_bits(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"deterministic needs engine\.kind transformers"):
        config(tmp_path, deterministic=True, engine={"kind": "vllm"})
    sums = EnvSpec("verigym/Arithmetic-v0", kwargs={"split": "test"})
    with pytest.raises(ConfigError, match=r"deterministic needs engine\.kind transformers"):
        play(LocalPlayer(tmp_path, deterministic=True, engine=EngineConfig("vllm")), sums)
