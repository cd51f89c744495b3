"""A learner over several devices: it is the learner on one, whatever the ranks have to do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from verigym.agents.learners.batch import Sequences
from verigym.agents.learners.pairs import written_episode
from verigym.cli import main
from verigym.config import TrainConfig, build, to_plain
from verigym.envs.mixture import EnvSpec
from verigym.ranks import refuse_unshared
from verigym.run_folder import RunFolder
from verigym.tasks.errors import ConfigError
from verigym.training import resume, train

HERE = Path(__file__).parent
HANGS = 600.0  # seconds
NAMES = [
    *("grpo", "means over episodes", "adaptive", "logits in chunks", "recomputed", "tied", "one episode"),
    *("no episode", "not finite", "adapter", "ppo", "ppo by turns"),
]


SUMS = EnvSpec("verigym/Arithmetic-v0", kwargs={"level": 1, "max_tokens_per_turn": 8})


def start(*arguments: str | int | Path) -> subprocess.Popen[str]:
    """A script or, after -m, a module on two ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([str(part) for part in command], env=environment, text=True, **pipes)


def torchrun(*arguments: str | int | Path) -> tuple[int, str, str]:
    """Exit status and output of what was started; what hangs is ended."""
    process = start(*arguments)
    late = Timer(HANGS, process.terminate)
    late.start()
    output, errors = process.communicate()
    late.cancel()
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By case, what one rank learned and what two did."""
    file = tmp_path_factory.mktemp("learned") / "results.pt"
    status, _, errors = torchrun(HERE / "sharded_learners.py", file)
    assert status == 0, errors
    results: dict[str, Any] = torch.load(file, weights_only=False)
    return results


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_learn_what_one_does(learned: dict[str, Any], name: str) -> None:
    one, two = learned[name]["one"], learned[name]["many"]
    for alone, together in zip(one, two, strict=True):
        assert together["metrics"].keys() == alone["metrics"].keys()
        for metric, value in alone["metrics"].items():
            assert together["metrics"][metric] == pytest.approx(value, rel=1e-5, abs=1e-5, nan_ok=True), metric
        for mine, theirs in zip(alone["columns"], together["columns"], strict=True):
            assert mine.keys() == theirs.keys()
            for column, values in mine.items():
                np.testing.assert_allclose(theirs[column], values, rtol=1e-4, atol=1e-5)
    changed = relative_change(one[-1]["weights"], one[0]["weights"])
    assert (changed > 1e-2) == (name not in ("no episode", "not finite"))
    assert relative_change(two[-1]["weights"], one[-1]["weights"]) < 1e-5


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_a_batch_is_dealt_out_whole_in_about_equal_parts(ranks: int) -> None:
    lengths = np.random.default_rng(0).integers(4, 40, 60)
    episodes = [
        written_episode([number % 7] * 3 + [1] * (n - 3), [False] * 3 + [True] * (n - 3))
        for number, n in enumerate(lengths)
    ]
    packs = Sequences.of(episodes).packs(100, ranks)
    assert len(packs) == ranks
    assert sorted(i for part in packs for pack in part for i in pack) == list(range(60))
    assert all(sum(lengths[i] for i in pack) <= 100 for part in packs for pack in part)
    tokens = [sum(lengths[i] for pack in part for i in pack) for part in packs]
    assert max(tokens) - min(tokens) <= 2 * max(lengths)
    assert [len(part) for part in Sequences.of(episodes[:1]).packs(100, ranks)].count(1) == 1


def relative_change(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """That of the tensor that changed most."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / other[name].norm().clamp(min=1e-12)) for name in one)


# Whole runs.


def small(model: Path, run: Path, **changes: object) -> TrainConfig:
    values: dict[str, object] = {"model": str(model), "run": str(run), "envs": (SUMS,), "steps": 4, "groups": 4}
    values |= {"group_size": 4, "deterministic": True, "checkpoint_every": 2, "eval_every": 2, "eval_tasks": 8}
    return build(TrainConfig, values | {"tensorboard": False} | changes)


def write(config: TrainConfig, recipe: Path) -> Path:
    recipe.write_text(json.dumps(to_plain(config)))
    return recipe


def refuse_differences(one: Path, other: Path) -> None:
    """The same episodes, and metrics and weights within rounding."""
    rows, others = (RunFolder(run).metrics() for run in (one, other))
    assert [row.keys() for row in rows] == [row.keys() for row in others]
    for row, its in zip(rows, others, strict=True):
        for name, value in row.items():
            if not name.startswith("time/"):
                assert its[name] == pytest.approx(value, rel=1e-4, abs=1e-5), (row["step"], name)
    for step in (1, 2, 3, 4):
        mine, theirs = ([e.token_ids.tolist() for e in RunFolder(run).episodes(step)] for run in (one, other))
        assert mine == theirs
    weights, its = (load_file(RunFolder(run).latest() / "model.safetensors") for run in (one, other))
    assert relative_change(weights, its) < 1e-5


SETTINGS: dict[str, dict[str, object]] = {
    "grpo": {"grpo": {"lr": 3e-4, "kl_coefficient": 0.05, "minibatches": 2}},
    "lora": {"lora": {"rank": 4}, "grpo": {"lr": 3e-4, "kl_coefficient": 0.05}},
    "ppo": {"learner": "ppo", "ppo": {"lr": 3e-4, "critic_lr": 1e-3, "critic_warmup": 1, "kl_coefficient": 0.05}},
}


@pytest.mark.parametrize("kind", ["grpo", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_run_of_two_ranks_goes_on_with_one_as_if_there_had_been_no_other(
    warm_start: Path, tmp_path: Path, kind: str
) -> None:
    whole = train(small(warm_start, tmp_path / "whole", **SETTINGS[kind]))
    part = small(warm_start, tmp_path / "part", steps=2, **SETTINGS[kind])
    status, output, errors = torchrun("-m", "verigym.cli", "train", write(part, tmp_path / "recipe.yaml"))
    assert status == 0, errors
    assert output.count("checkpoint ") == 1  # one rank speaks
    assert resume(tmp_path / "part", steps=4).steps == 4
    refuse_differences(whole.folder, tmp_path / "part")
    assert whole.metrics[-2]["kl"] > 0


def test_a_run_of_one_rank_goes_on_with_two(warm_start: Path, tmp_path: Path) -> None:
    whole = train(small(warm_start, tmp_path / "whole", **SETTINGS["ppo"]))
    train(small(warm_start, tmp_path / "part", steps=2, **SETTINGS["ppo"]))
    status, _, errors = torchrun("-m", "verigym.cli", "train", "--resume", tmp_path / "part", "--steps", "4")
    assert status == 0, errors
    refuse_differences(whole.folder, tmp_path / "part")


@pytest.mark.slow
def test_a_run_of_two_ranks_that_goes_on_with_two_has_the_same_bits(warm_start: Path, tmp_path: Path) -> None:
    for run, steps in (("whole", 4), ("part", 2)):
        config = small(warm_start, tmp_path / run, steps=steps, **SETTINGS["ppo"])
        assert torchrun("-m", "verigym.cli", "train", write(config, tmp_path / "recipe.yaml"))[0] == 0
    assert torchrun("-m", "verigym.cli", "train", "--resume", tmp_path / "part", "--steps", "4")[0] == 0
    whole, part = ((RunFolder(tmp_path / run).latest() / "model.safetensors").read_bytes() for run in ("whole", "part"))
    assert whole == part


@pytest.mark.slow
def test_two_ranks_learn_while_the_engine_plays(warm_start: Path, tmp_path: Path) -> None:
    settings = {"lr": 3e-4, "correction": "token", "critic_warmup": 1, "gradient_checkpointing": True}
    changes: dict[str, object] = {"learner": "ppo", "ppo": settings, "deterministic": False, "dtype": "bfloat16"}
    config = small(warm_start, tmp_path / "run", staleness=1, **changes)
    status, _, errors = torchrun("-m", "verigym.cli", "train", write(config, tmp_path / "recipe.yaml"))
    assert status == 0, errors
    rows = [row for row in RunFolder(tmp_path / "run").metrics() if "loss" in row]
    assert [row["staleness_max"] for row in rows] == [0, 1, 1, 1]
    assert all(row["critic_grad_norm"] > 0 and row["skipped_steps"] == 0 for row in rows)


@pytest.mark.parametrize(
    ("rank", "fault"), [(0, "error"), (1, "error"), pytest.param(1, "kill", marks=pytest.mark.slow)]
)
def test_a_fault_on_one_rank_ends_all_with_a_line_that_says_so(
    warm_start: Path, tmp_path: Path, rank: int, fault: str
) -> None:
    recipe = write(small(warm_start, tmp_path / "run", steps=100), tmp_path / "recipe.yaml")
    status, _, errors = torchrun(HERE / "sharded_fault.py", rank, fault, "train", recipe)
    assert status != 0
    names = ["verigym train: ", "verigym train: rank 1: "]  # rank 0 speaks for the run
    lines = errors.splitlines()
    assert [
        line for line in lines if line.startswith(f"{names[1 - rank]}another rank is lost, whose own lines say why")
    ]
    assert (fault == "error") == (f"{names[rank]}its disk is full" in lines)
    assert RunFolder(tmp_path / "run").has_checkpoint()


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "fault"), [(0, "still"), (1, "still"), (1, "freeze")])
def test_a_rank_that_stands_still_between_calls_or_in_one_is_lost(
    warm_start: Path, tmp_path: Path, rank: int, fault: str
) -> None:
    recipe = write(small(warm_start, tmp_path / "run", steps=100), tmp_path / "recipe.yaml")
    status, _, errors = torchrun("--shutdown-timeout", 1, HERE / "sharded_fault.py", rank, fault, "train", recipe)
    assert status != 0
    speaker = ["verigym train: rank 1: ", "verigym train: "][rank]
    (line,) = (line for line in errors.splitlines() if line.startswith("verigym train: "))
    assert line.startswith(f"{speaker}no sign of life for 0.2 min from rank {rank} (on ")
    assert line.endswith("go on from the last checkpoint with --resume")
    assert RunFolder(tmp_path / "run").has_checkpoint()


@pytest.mark.slow
def test_a_rank_0_that_is_busy_for_longer_is_waited_for(warm_start: Path, tmp_path: Path) -> None:
    recipe = write(small(warm_start, tmp_path / "run", steps=2, eval_every=0), tmp_path / "recipe.yaml")
    status, _, errors = torchrun(HERE / "sharded_fault.py", 0, "busy", "train", recipe)
    assert status == 0, errors


@pytest.mark.slow
def test_a_rank_that_is_asked_says_what_it_waits_for_and_goes_on(warm_start: Path, tmp_path: Path) -> None:
    recipe = write(small(warm_start, tmp_path / "run", steps=2, eval_every=0), tmp_path / "recipe.yaml")
    status, _, errors = torchrun(HERE / "sharded_fault.py", 1, "ask", "train", recipe)
    assert status == 0, errors
    assert errors.count("what the run waits for") == 1


@pytest.mark.slow
def test_an_interrupted_run_of_two_ranks_leaves_a_checkpoint(warm_start: Path, tmp_path: Path) -> None:
    config = small(warm_start, tmp_path / "run", steps=500, checkpoint_every=500, eval_every=0)
    process = start("-m", "verigym.cli", "train", write(config, tmp_path / "recipe.yaml"))
    folder = RunFolder(tmp_path / "run")
    while not folder.metrics() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert f"--resume {tmp_path / 'run'}" in errors
    assert errors.count("ending in order") == 1
    assert int(folder.latest().name) == folder.metrics()[-1]["step"] >= 1


def test_what_ranks_cannot_share_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ConfigError, match=r"WORLD_SIZE is 2, but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"
    ):
        train(small(tmp_path, tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"engine\.kind vllm takes over torch\.distributed"):
        refuse_unshared(small(tmp_path, tmp_path / "run", deterministic=False, engine={"kind": "vllm"}))
    assert main(["sft", "--output", str(tmp_path / "model")]) == 2
    assert "verigym sft: it runs in one process" in capsys.readouterr().err
