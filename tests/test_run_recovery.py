"""A run that starts wrongly, or dies at a bad moment, leaves no dead end."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, BloomConfig, FalconConfig, GPTNeoConfig, MptConfig

from verigym.agents.agent import resolve_device
from verigym.agents.engines.transformers import TransformersEngine
from verigym.config import TrainConfig, build
from verigym.envs.mixture import EnvSpec
from verigym.interrupts import Interrupts
from verigym.run_folder import RunFolder
from verigym.tasks.errors import ConfigError, EngineError, UnknownNameError
from verigym.training import Trainer, _policy_token_budget, resume, train

SUMS = EnvSpec("verigym/Arithmetic-v0", kwargs={"level": 1, "max_tokens_per_turn": 8})


def small(model: Path | str, run: Path, **changes: object) -> TrainConfig:
    values = {"model": str(model), "run": str(run), "envs": (SUMS,), "steps": 2, "groups": 2, "group_size": 2}
    values |= {"deterministic": True, "tensorboard": False, "checkpoint_every": 1, "eval_tasks": 4}
    return build(TrainConfig, values | changes)


def test_a_start_that_fails_leaves_the_folder_free(warm_start: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match="no model at"):
        train(small(tmp_path / "missing", run))
    with pytest.raises(UnknownNameError, match="levl"):
        train(small(warm_start, run, envs=[{"id": SUMS.id, "kwargs": {"levl": 2}}]))
    assert not run.exists()
    assert train(small(warm_start, run)).steps == 2


def test_a_start_that_fails_closes_its_engine(
    warm_start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[TransformersEngine] = []
    monkeypatch.setattr(TransformersEngine, "close", lambda engine: closed.append(engine))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot make the run folder"):
        train(small(warm_start, tmp_path / "file" / "run"))
    assert len(closed) == 1


@pytest.mark.parametrize(("changes", "written"), [({"eval_every": 0}, [0, 1, 2]), ({"eval_every": 1}, [0, 0, 1, 2])])
def test_a_checkpoint_is_written_again_only_after_an_evaluation(
    warm_start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int], written: list[int]
) -> None:
    steps, save_step = [], RunFolder.save_step

    def noted(folder: RunFolder, step: int, *rest: object) -> Path:
        steps.append(step)
        return save_step(folder, step, *rest)

    monkeypatch.setattr(RunFolder, "save_step", noted)
    train(small(warm_start, tmp_path / "run", **changes))
    assert steps == written


def test_a_run_killed_before_its_first_checkpoint_starts_over(warm_start: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    config = small(warm_start, folder.path)
    from verigym.config import to_plain

    folder.create(to_plain(config))
    assert resume(folder.path).steps == 2


def test_a_checkpoint_that_was_being_replaced_is_put_back(warm_start: Path, tmp_path: Path) -> None:
    run = train(small(warm_start, tmp_path / "run", eval_every=2))
    best = run.folder / "checkpoints" / "best"
    latest = RunFolder(run.folder).latest()
    for path in (best, latest):
        path.rename(path.with_name(f".writing-old-{path.name}"))
    assert resume(run.folder, steps=3).checkpoint == best
    assert not list((run.folder / "checkpoints").glob(".writing-*"))


def test_a_run_that_reached_its_goal_goes_on_to_a_higher_one(warm_start: Path, tmp_path: Path) -> None:
    run = train(small(warm_start, tmp_path / "run", steps=4, eval_every=1, stop_at=0.0))
    assert run.steps == 1
    assert resume(run.folder).steps == 1
    assert resume(run.folder, stop_at=1.5).steps == 4


def test_a_resume_that_cannot_work_says_why(warm_start: Path, tmp_path: Path) -> None:
    run = train(small(warm_start, tmp_path / "run"))
    with pytest.raises(ConfigError, match="has done 2 steps already; steps is 1"):
        resume(run.folder, steps=1)
    config = small(warm_start, run.folder, grpo={"kl_coefficient": 0.1}, steps=3)
    with pytest.raises(ConfigError, match="began without a KL loss"):
        train(config, resume=True)
    with pytest.raises(ConfigError, match="the run began with learner grpo; of a run that goes on it cannot change"):
        resume(run.folder, learner="ppo")
    with pytest.raises(ConfigError, match=r"the run began with model .*; of a run that goes on it cannot change"):
        resume(run.folder, model="other", steps=3)
    with pytest.raises(ConfigError, match="the run began with 1 envs"):
        resume(run.folder, envs=(SUMS, SUMS), steps=3)


def test_a_curriculum_whose_threshold_changes_on_a_resume_follows_the_new_one(warm_start: Path, tmp_path: Path) -> None:
    changes = {"envs": (SUMS, SUMS), "curriculum": 1.0, "curriculum_window": 100}
    run = train(small(warm_start, tmp_path / "run", **changes))
    config = small(warm_start, run.folder, **changes | {"curriculum": 0.5, "curriculum_window": 7})
    with Interrupts() as interrupts, Trainer(config, interrupts, resume=True) as trainer:
        assert trainer.curriculum is not None
        assert (trainer.curriculum.threshold, trainer.curriculum.window) == (0.5, 7)
        assert len(trainer.curriculum.recent) == 8


def test_the_length_of_dr_grpo_is_the_budget_of_an_episode(tmp_path: Path) -> None:
    calculator = {"id": "verigym/Calculator-v0", "kwargs": {"max_tokens_per_turn": 24}}
    assert _policy_token_budget(small("m", tmp_path, envs=[calculator])) == 96
    calculator["kwargs"] = {"max_tokens_per_turn": 24, "max_tokens_per_episode": 60}
    assert _policy_token_budget(small("m", tmp_path, envs=[calculator, {"id": SUMS.id}])) == 256


@pytest.mark.parametrize(
    "config",
    [
        FalconConfig(vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, alibi=True),
        BloomConfig(vocab_size=32, hidden_size=32, n_layer=1, n_head=2),
        MptConfig(vocab_size=32, d_model=32, n_layers=1, n_heads=2),
        GPTNeoConfig(vocab_size=32, hidden_size=32, num_layers=1, num_heads=2, attention_types=[[["local"], 1]]),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_that_bypasses_the_attention_hook_is_refused_by_name(config: object) -> None:
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(EngineError, match=config.model_type):  # type: ignore[attr-defined]
        TransformersEngine(model)


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        resolve_device("cuda")


def test_an_environment_that_is_not_text_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no text environment: its action space is Discrete"):
        EnvSpec("CartPole-v1").make()
    with pytest.raises(ConfigError, match="CartPole-v1 takes no split: leave split out"):
        EnvSpec("CartPole-v1").with_split("test").make()
