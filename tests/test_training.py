"""Runs from end to end: reproducible, resumable, stoppable, and clear about what went wrong."""

import gzip
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count, groupby
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from safetensors.torch import load_file

import verigym
from verigym.agents.agent import load_chat, load_model
from verigym.config import TrainConfig, build, read_recipe, to_plain
from verigym.envs.mixture import EnvSpec
from verigym.envs.question import QuestionEnv
from verigym.envs.registration import register
from verigym.envs.text_env import Message
from verigym.run_folder import RunFolder
from verigym.task_sampler import Curriculum, TaskSampler, evaluation_plans
from verigym.tasks.errors import ConfigError, RunError, UnknownNameError
from verigym.tasks.task import Task
from verigym.training import resume, train

CALCULATOR = EnvSpec("verigym/Calculator-v0", kwargs={"max_tokens_per_turn": 24})
# One-digit sums are answered right one time in five after the warm start: groups differ.
SUMS = EnvSpec("verigym/Arithmetic-v0", weight=3.0, kwargs={"level": 1, "max_tokens_per_turn": 8})


def small(model: Path, run: Path, **changes: object) -> TrainConfig:
    values = {
        "model": str(model),
        "run": str(run),
        "envs": (CALCULATOR, SUMS),
        "steps": 4,
        "groups": 4,
        "group_size": 4,
        "deterministic": True,
        "checkpoint_every": 2,
        "eval_every": 2,
        "eval_tasks": 8,
        "tensorboard": False,
        "grpo": {"lr": 3e-4},
    }
    return build(TrainConfig, values | changes)


def figures(run: Path) -> list[dict[str, object]]:
    """Metrics without wall-clock figures."""
    rows = RunFolder(run).metrics()
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(RunFolder(run).latest() / "model.safetensors")


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def start(config: TrainConfig, recipe: Path) -> subprocess.Popen[bytes]:
    recipe.write_text(json.dumps(to_plain(config)))
    command = [sys.executable, "-m", "verigym.cli", "train", str(recipe)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        if any(row["step"] >= step for row in RunFolder(run).metrics()):
            return
        time.sleep(0.02)
    pytest.fail(f"the run ended before step {step}: {process.communicate()[1].decode()}")


def test_lockstep_runs_with_one_seed_give_the_same_weights_and_metrics(warm_start: Path, tmp_path: Path) -> None:
    train(small(warm_start, tmp_path / "one"))
    train(small(warm_start, tmp_path / "two"))
    train(small(warm_start, tmp_path / "other", seed=1))
    assert figures(tmp_path / "one") == figures(tmp_path / "two")
    assert same_weights(weights(tmp_path / "one"), weights(tmp_path / "two"))
    assert not same_weights(weights(tmp_path / "one"), weights(tmp_path / "other"))
    for name in ("000001", "000004"):
        one, two = ((tmp_path / run / "episodes" / f"{name}.jsonl.gz").read_bytes() for run in ("one", "two"))
        assert one == two


def test_episode_files_hold_what_the_learner_knew_of_each_token(warm_start: Path, tmp_path: Path) -> None:
    train(small(warm_start, tmp_path / "run", steps=2, eval_every=0))
    for file in (tmp_path / "run" / "episodes").iterdir():
        rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
        assert len(rows) == 16
        for row in rows:
            known, sampled = row["learner"], [p for p, own in zip(row["logprobs"], row["mask"], strict=True) if own]
            assert len(known["advantages"]) == sum(row["mask"])
            if any(known["advantages"]):
                # sampler and learner have the same weights, in float32
                assert known["logprobs"] == pytest.approx(sampled, abs=1e-4)
    assert any("logprobs" in row["learner"] for row in rows)


@pytest.mark.parametrize("step", [1, 3])
def test_a_killed_and_resumed_run_equals_one_that_was_not(warm_start: Path, tmp_path: Path, step: int) -> None:
    train(small(warm_start, tmp_path / "whole", steps=6))
    process = start(small(warm_start, tmp_path / "killed", steps=6), tmp_path / "recipe.yaml")
    wait_for_step(tmp_path / "killed", step, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = resume(tmp_path / "killed")
    assert finished.steps == 6
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")
    assert same_weights(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    whole, killed = (sorted(p.name for p in (tmp_path / r / "episodes").iterdir()) for r in ("whole", "killed"))
    assert whole == killed


def test_the_first_interrupt_writes_a_checkpoint_and_says_how_to_go_on(warm_start: Path, tmp_path: Path) -> None:
    config = small(warm_start, tmp_path / "run", steps=500, checkpoint_every=500, eval_every=0)
    process = start(config, tmp_path / "recipe.yaml")
    wait_for_step(tmp_path / "run", 2, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--resume {tmp_path / 'run'}" in errors.decode()
    done = int(RunFolder(tmp_path / "run").latest().name)
    assert done >= 2
    assert resume(tmp_path / "run", steps=done + 1).steps == done + 1
    assert [row["step"] for row in RunFolder(tmp_path / "run").metrics()] == list(range(1, done + 2))


def test_the_reference_model_and_minibatches_survive_a_resume(warm_start: Path, tmp_path: Path) -> None:
    settings = {"lr": 3e-4, "kl_coefficient": 0.05, "minibatches": 2, "advantages": "dr_grpo", "reduction": "dr_grpo"}
    train(small(warm_start, tmp_path / "whole", grpo=settings))
    train(small(warm_start, tmp_path / "half", grpo=settings, steps=2))
    resume(tmp_path / "half", steps=4)
    assert same_weights(weights(tmp_path / "half"), weights(tmp_path / "whole"))
    rows = [row for row in RunFolder(tmp_path / "whole").metrics() if "kl" in row]
    assert rows[0]["kl"] < 1e-2 < rows[-1]["kl"] * 1e3


def test_an_overlapped_run_learns_from_every_episode_and_exports(warm_start: Path, tmp_path: Path) -> None:
    run = train(small(warm_start, tmp_path / "run", deterministic=False))
    steps = [row for row in run.metrics if row["step"] and "reward" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert all(row["episodes"] == 16 and row["sync/version"] == row["step"] for row in steps)
    episodes = list(RunFolder(run.folder).episodes(3))
    assert len(episodes) == 16
    assert {version for episode in episodes for version in episode.versions[episode.mask]} == {2}
    run.save_pretrained(tmp_path / "export")
    load_chat(tmp_path / "export")
    assert same_weights(load_model(tmp_path / "export").state_dict(), load_model(run.checkpoint).state_dict())
    assert (run.folder / "reward.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_cannot_judge_its_episodes_stops(warm_start: Path, tmp_path: Path) -> None:
    class Broken(QuestionEnv):
        def respond(self, action: str) -> object:
            raise OSError("the disk is on fire")

    register("verigym-test/Broken-v0", entry_point=Broken, kwargs={"task_set": "calculator"})
    try:
        with pytest.raises(RunError, match=r"16 of 16 episodes could not be judged.*the disk is on fire"):
            train(small(warm_start, tmp_path / "run", envs=[{"id": "verigym-test/Broken-v0"}], eval_every=0))
    finally:
        gym.registry.pop("verigym-test/Broken-v0")
        verigym.envs.registration._IDS.remove("verigym-test/Broken-v0")


def test_a_run_says_when_it_evaluates_on_tasks_that_it_trains_on(
    warm_start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unsplit(QuestionEnv):
        def __init__(self) -> None:
            super().__init__("arithmetic", level=1, max_tokens_per_turn=8)

    register("verigym-test/Unsplit-v0", entry_point=Unsplit, kwargs={})
    try:
        train(small(warm_start, tmp_path / "run", envs=(EnvSpec("verigym-test/Unsplit-v0"), SUMS), steps=1))
    finally:
        del gym.registry["verigym-test/Unsplit-v0"]
    said = capsys.readouterr().out
    told = "Unsplit-v0 is evaluated on tasks of split train, not test: training may have seen them"
    assert " ".join(said.split()).count("is evaluated on") == 1
    assert told in " ".join(said.split())


def test_a_run_counts_the_tasks_that_it_evaluates_and_trains_on(
    warm_start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One file serves for every split."""
    rows = [{"id": str(n), "prompt": f"What is {n} + 1?", "target": str(n + 1)} for n in range(8)]
    files = [tmp_path / "train.jsonl", tmp_path / "test.jsonl"]
    for file, part in zip(
        files, (rows, [rows[5], {"id": "0", "prompt": "What is 2 + 2?", "target": "4"}]), strict=True
    ):
        file.write_text("\n".join(map(json.dumps, part)))
    mine, others = (
        EnvSpec("verigym/Custom-v0", kwargs={"source": str(file), "verifier": "math", "max_tokens_per_turn": 8})
        for file in files
    )
    for number, (changes, told) in enumerate(
        [({"eval_tasks": 4}, "4 of the 4"), ({"eval_envs": (others,)}, "1 of the 2")]
    ):
        train(small(warm_start, tmp_path / f"run{number}", envs=(mine,), steps=1, **changes))
        said = " ".join(capsys.readouterr().out.split())
        assert f"{told} tasks on which verigym/Custom-v0 is evaluated are also trained on" in said


def test_one_unjudged_episode_is_a_share_of_the_whole_step_not_of_its_last_round(
    warm_start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, opening = count(1), QuestionEnv.opening

    def fails_once(env: QuestionEnv, task: Task) -> list[Message]:
        if next(asked) == 17:  # the first of the second round
            raise OSError("the disk is on fire")
        return opening(env, task)

    monkeypatch.setattr(QuestionEnv, "opening", fails_once)
    never_right = EnvSpec("verigym/Arithmetic-v0", kwargs={"level": 5, "max_tokens_per_turn": 8})
    changes = {"envs": (never_right,), "steps": 1, "dynamic_sampling": 1, "eval_every": 0, "max_infra_error_rate": 0.05}
    (row,) = train(small(warm_start, tmp_path / "run", **changes)).metrics
    assert (row["episodes"], row["infra_errors"]) == (32, 1)


def test_a_folder_that_holds_a_run_is_not_overwritten(warm_start: Path, tmp_path: Path) -> None:
    train(small(warm_start, tmp_path / "run", steps=1, eval_every=0))
    with pytest.raises(ConfigError, match="holds a run already; go on with --resume"):
        train(small(warm_start, tmp_path / "run"))


def test_config_yaml_replays_the_run(warm_start: Path, tmp_path: Path) -> None:
    config = small(warm_start, tmp_path / "run", steps=1, eval_every=0)
    train(config)
    assert build(TrainConfig, RunFolder(tmp_path / "run").read_config()) == config


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"stepz": 3}, UnknownNameError, "no field named 'stepz'; did you mean 'steps'?"),
        ({"grpo": {"learning_rate": 1}}, UnknownNameError, "no field of grpo named 'learning_rate'"),
        ({"steps": "many"}, ConfigError, "steps must be int, not 'many'"),
        ({"steps": True}, ConfigError, "steps must be int, not True"),
        ({"group_size": 1}, ConfigError, "a group of one has no baseline"),
        ({"grpo": {"kl": "k1"}}, ConfigError, "grpo.kl must be one of k2, k3, not 'k1'"),
        ({"envs": []}, ConfigError, "envs is empty"),
        ({"envs": [{"id": "x", "weight": 0}]}, ConfigError, "the weight of x must be above 0"),
        ({"envs": [{"id": "x", "weight": math.nan}]}, ConfigError, "the weight of x must be above 0"),
        ({"curriculum": 0.5}, ConfigError, "name at least two"),
        ({"temperature": 0}, ConfigError, "temperature must be above 0 in training"),
    ],
)
def test_a_wrong_field_is_named(values: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        build(TrainConfig, {"model": "m", "envs": [{"id": "verigym/Calculator-v0"}]} | values)
    assert message in str(caught.value)


def test_recipes_in_the_project_are_valid() -> None:
    recipes = list((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        build(TrainConfig, read_recipe(recipe), str(recipe))


def test_a_mixture_follows_its_weights_and_plays_every_task_once_a_pass() -> None:
    specs = (replace(CALCULATOR, weight=3.0), EnvSpec("verigym/Arithmetic-v0", kwargs={"level": 2, "size": 20}))
    sampler = TaskSampler(specs, seed=0)
    plans, position = sampler.plan(sampler.start, groups=400, group_size=2)
    assert sum(position) == 400
    assert 270 <= position[0] <= 330
    arithmetic = [plan.task_id for plan in plans if plan.env == 1][::2]
    assert all(len(set(arithmetic[i : i + 20])) == 20 for i in range(0, len(arithmetic) - 19, 20))
    first, second = plans[0], plans[1]
    assert (first.group_id, first.task_id, first.seed) == (second.group_id, second.task_id, second.seed)
    assert first.sampling_seed != second.sampling_seed
    assert sampler.plan(sampler.start, 400, 2)[0] == plans
    half, between = sampler.plan(sampler.start, 150, 2)
    rest, end = sampler.plan(between, 250, 2)
    assert (half + rest, end) == (plans, position)


def test_ppo_runs_and_resumes_to_the_bit(warm_start: Path, tmp_path: Path) -> None:
    ppo = {"lr": 3e-4, "critic_lr": 1e-3, "critic_warmup": 1, "minibatches": 2, "kl_coefficient": 0.01}
    changes = {"learner": "ppo", "ppo": ppo, "group_size": 1, "groups": 12, "steps": 3, "checkpoint_every": 1}
    whole = train(small(warm_start, tmp_path / "whole", **changes))
    first = train(small(warm_start, tmp_path / "part", **changes | {"steps": 1}))
    assert same_weights(weights(first.folder), load_file(warm_start / "model.safetensors"))  # the critic's warm-up
    resume(first.folder, steps=3)
    rows = [row for row in figures(whole.folder) if "loss" in row]
    assert [row for row in figures(first.folder) if "loss" in row] == rows
    assert same_weights(weights(first.folder), weights(whole.folder))
    assert not same_weights(weights(whole.folder), load_file(warm_start / "model.safetensors"))
    assert all(math.isfinite(row["explained_variance"]) for row in rows)


def test_dynamic_sampling_fills_the_batch_with_groups_that_differ(warm_start: Path, tmp_path: Path) -> None:
    config = small(warm_start, tmp_path / "run", envs=(SUMS,), steps=2, dynamic_sampling=20, eval_every=0)
    run = train(config)
    ids: list[int] = []
    for row in run.metrics:
        episodes = list(RunFolder(run.folder).episodes(row["step"]))
        ids += [episode.group_id for episode in episodes]
        rewards = [[e.reward for e in group] for _, group in groupby(episodes, lambda episode: episode.group_id)]
        assert sum(len(set(group)) > 1 for group in rewards) == config.groups
        assert row["episodes"] == len(episodes) == config.group_size * len(rewards)
        assert row["used_share"] == config.groups / len(rewards)
        assert row["zero_variance_share"] == pytest.approx(1 - row["used_share"])
    assert any(row["used_share"] < 1 for row in run.metrics)
    assert ids == sorted(ids)


def test_groups_of_equal_returns_are_dropped_from_the_loss_on_request(warm_start: Path, tmp_path: Path) -> None:
    changes = {"envs": (SUMS,), "steps": 1, "groups": 8, "eval_every": 0}
    kept = train(small(warm_start, tmp_path / "kept", **changes)).metrics[-1]
    dropped = train(small(warm_start, tmp_path / "dropped", group_filter="drop", **changes)).metrics[-1]
    differ = 1 - kept["zero_variance_share"]
    assert 0 < differ < 1
    assert (kept["used_share"], dropped["used_share"]) == (1, pytest.approx(differ))
    assert dropped["episodes"] == kept["episodes"]
    # the same groups have a gradient, and fewer tokens divide it
    assert dropped["grad_norm"] > 1.05 * kept["grad_norm"]


@pytest.mark.parametrize("where", ["envs", "eval_envs"])
def test_an_unknown_environment_is_said_before_models_and_engines_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    for part in ("load_policy", "make_engine"):
        monkeypatch.setattr(f"verigym.training.{part}", lambda *_, **__: pytest.fail("it was started"))
    with pytest.raises(UnknownNameError, match=r"did you mean 'verigym/Calculator-v0'\?"):
        train(small(tmp_path / "model", tmp_path / "run", **{where: (EnvSpec("verigym/Calculater-v0"),)}))
    assert not (tmp_path / "run").exists()


def test_settings_of_ppo_without_the_learner_ppo_are_refused(warm_start: Path, tmp_path: Path) -> None:
    settings = {"lr": 1e-4, "critic_lr": 1e-3}
    with pytest.raises(ConfigError, match="set learner to ppo"):
        build(TrainConfig, {"model": str(warm_start), "run": "x", "envs": (SUMS,), "ppo": settings})
    both = {"model": str(warm_start), "run": "x", "envs": (SUMS,), "ppo": settings, "grpo": {"lr": 1e-4}}
    assert build(TrainConfig, both).policy.lr == 1e-4


def test_dynamic_sampling_ends_after_its_rounds(warm_start: Path, tmp_path: Path) -> None:
    never_right = EnvSpec("verigym/Arithmetic-v0", kwargs={"level": 5, "max_tokens_per_turn": 4})
    run = train(small(warm_start, tmp_path / "run", envs=(never_right,), steps=1, dynamic_sampling=2, eval_every=0))
    (row,) = run.metrics
    assert (row["episodes"], row["used_share"], row["all_failed_share"], row["loss"]) == (48, 0, 1, 0)


def test_an_interrupted_run_with_dynamic_sampling_resumes_to_the_bit(warm_start: Path, tmp_path: Path) -> None:
    changes = {"envs": (SUMS,), "steps": 3, "dynamic_sampling": 2, "eval_every": 0, "checkpoint_every": 1}
    whole = train(small(warm_start, tmp_path / "whole", **changes))
    first = train(small(warm_start, tmp_path / "part", **changes | {"steps": 1}))
    resume(first.folder, steps=3)
    assert figures(first.folder) == figures(whole.folder)
    assert same_weights(weights(first.folder), weights(whole.folder))


def test_a_mixture_trains_with_instructions_and_a_system_prompt_of_its_own(warm_start: Path, tmp_path: Path) -> None:
    asked = {"instructions": "Be brief.", "system_prompt": "You are a sum machine.", "max_tokens_per_turn": 8}
    envs = ({"id": "verigym/Arithmetic-v0", "kwargs": asked}, {"id": "verigym/Countdown-v0", "weight": 0.5})
    run = train(small(warm_start, tmp_path / "run", envs=envs, steps=1, groups=8, eval_every=0, max_new_tokens=8))
    seen = {}
    for episode in RunFolder(run.folder).episodes(1):
        seen.setdefault(episode.env_id, episode)
    roles = [(message["role"], message["content"]) for message in seen["verigym/Arithmetic-v0"].messages]
    assert roles[0] == ("system", "You are a sum machine.")
    assert roles[1][1].endswith("?\n\nBe brief.")
    assert seen["verigym/Countdown-v0"].messages[0]["content"].endswith("Put your final answer in \\boxed{}.")


def test_a_curriculum_unlocks_the_next_environment_when_the_newest_is_passed() -> None:
    curriculum = Curriculum(threshold=0.75, window=4)
    assert not curriculum.record([True, True, True], available=3)  # too few
    assert curriculum.record([False], available=3)
    assert (curriculum.unlocked, curriculum.recent) == (2, [])
    assert not curriculum.record([True, False, True, False], available=3)
    assert curriculum.record([True, True], available=3)  # of the last four, three
    assert not curriculum.record([True] * 9, available=3)
    assert curriculum.unlocked == 3


def test_a_run_with_a_curriculum_opens_its_environments_in_turn_and_resumes(warm_start: Path, tmp_path: Path) -> None:
    hard = replace(SUMS, weight=1.0, kwargs={"level": 2, "max_tokens_per_turn": 8})
    changes = {"envs": (SUMS, hard), "steps": 4, "curriculum": 0.01, "curriculum_window": 16, "eval_every": 0}
    whole = train(small(warm_start, tmp_path / "whole", **changes))
    first = train(small(warm_start, tmp_path / "part", **changes | {"steps": 2}))
    resume(first.folder, steps=4)
    assert figures(first.folder) == figures(whole.folder)
    assert whole.metrics[0]["unlocked_envs"] == 1
    levels = [{e.task_id.split("-")[2] for e in RunFolder(whole.folder).episodes(step)} for step in (1, 4)]
    assert levels[0] == {"level1"}
    assert whole.metrics[-1]["unlocked_envs"] == 2
    assert levels[1] <= {"level1", "level2"}


def test_evaluation_tasks_are_held_out_and_fixed() -> None:
    plans = evaluation_plans([CALCULATOR.with_split("test")], 50, seed=0)
    assert plans == evaluation_plans([CALCULATOR.with_split("test")], 50, seed=0)
    assert len({plan.task_id for plan in plans}) == 50
    assert all("test" in plan.task_id for plan in plans)


def test_the_environment_of_a_run_needs_no_main_guard(warm_start: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(to_plain(small(warm_start, tmp_path / "run", steps=1, eval_every=0))))
    script.write_text(
        "import verigym\nfrom verigym.config import TrainConfig, build, read_recipe\n"
        f"print(verigym.train(build(TrainConfig, read_recipe({str(recipe)!r}))).steps)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1"


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_a_run_says_in_which_sandbox_its_code_is_judged(warm_start: Path, tmp_path: Path) -> None:
    code = EnvSpec("verigym/TinyCode-v0", kwargs={"max_tokens_per_turn": 8})
    train(small(warm_start, tmp_path / "run", envs=(code,), steps=1, eval_every=0))
    told = (tmp_path / "run" / "sandbox.txt").read_text()  # of other tests' sandboxes, too
    assert re.search("^(docker|bubblewrap): .*Python 3", told, flags=re.MULTILINE)
