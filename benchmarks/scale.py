"""What playing beside the learner saves where environments are slow: the same episodes, in turn and beside.

    python benchmarks/scale.py [--staleness 1 4] [--delay 0.2] [--output FILE]

Whole training runs (GRPO) on a Calculator of three turns whose every answer takes 0 to `delay` seconds, by the
episode's seed. All begin from one model with random weights and play the same tasks with the same seeds. The ways take
turns in each repeat. Wall: from the start of a run to its end, with the proof of sync and the checkpoints. In step:
collecting, updating and syncing.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
import transformers
import tyro

from verigym import tasks
from verigym.agents.agent import save_checkpoint
from verigym.agents.tiny import tiny_model, tiny_tokenizer
from verigym.config import TrainConfig, build
from verigym.envs.mixture import EnvSpec
from verigym.envs.spaces import TextSpace
from verigym.training import train

TURNS, TURN_TOKENS = 3, 8


@dataclass(frozen=True)
class Options:
    """Seconds of a run, and their ratio to those of the run that takes turns."""

    staleness: tuple[int, ...] = (1, 4)
    """Runs to compare with staleness 0."""
    repeats: int = 3
    """Runs of each."""
    threads: int = 1
    """Threads of torch, for learner and engine each."""
    steps: int = 20
    """Steps of a run."""
    groups: int = 4
    """Groups of a step."""
    group_size: int = 4
    """Episodes of a group."""
    delay: float = 0.2
    """Seconds that an answer takes at most."""
    output: Path | None = None
    """A JSON file for the figures."""


@dataclass(frozen=True)
class Result:
    """One run."""

    wall: float
    in_step: float
    episodes: int
    staleness: float


class Calculator(gym.Env[str, str]):
    """Answers each turn but the last with the product, after up to `delay` seconds; any turn of even length earns."""

    observation_space = action_space = TextSpace()

    def __init__(self, delay: float) -> None:
        self.delay, self.tasks = delay, tasks.load("calculator")

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.task, self.turn = self.tasks.get((options or {})["task"]), 0
        return self.task.prompt, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        time.sleep(self.np_random.uniform(0.0, self.delay))
        return str(self.task.target), float(len(action) % 2 == 0), self.turn == TURNS, False, {}


gym.register("benchmark/SlowCalculator-v0", Calculator, disable_env_checker=True, order_enforce=False)


def measure(options: Options, model: Path, run: Path, staleness: int) -> Result:
    """One run."""
    config: TrainConfig = build(
        TrainConfig,
        {
            "model": str(model),
            "run": str(run),
            "envs": (EnvSpec("benchmark/SlowCalculator-v0", kwargs={"delay": options.delay}),),
            "steps": options.steps,
            "groups": options.groups,
            "group_size": options.group_size,
            "max_new_tokens": TURN_TOKENS,
            "staleness": staleness,
            "grpo": {"lr": 1e-5, "correction": "token"},
            "checkpoint_every": options.steps,
            "tensorboard": False,
        },
    )
    started = time.perf_counter()
    rows = train(config).metrics
    wall = time.perf_counter() - started
    return Result(
        wall,
        in_step=sum(row[f"time/{part}"] for row in rows for part in ("collect", "update", "sync")),
        episodes=sum(row["episodes"] for row in rows),
        staleness=statistics.mean(row["staleness_mean"] for row in rows),
    )


def report(found: Mapping[int, Sequence[Result]], options: Options) -> str:
    """A table with a line for each way."""
    lines = [
        f"{options.steps} steps of {options.groups} x {options.group_size} episodes, {TURNS} turns, answers after 0 to "
        f"{options.delay:g} s; {options.threads} threads, medians of {options.repeats}",
        f"torch {torch.__version__}, transformers {transformers.__version__}",
        f"{'staleness':>9}{'mean':>7}{'episodes':>10}{'wall s':>9}{'ratio':>7}{'in step s':>11}{'ratio':>7}",
    ]
    for staleness, results in found.items():
        line = f"{staleness:>9}{statistics.median(r.staleness for r in results):>7.2f}{results[0].episodes:>10}"
        for name, width in (("wall", 9), ("in_step", 11)):
            seconds, turns = ([getattr(result, name) for result in way] for way in (results, found[0]))
            ratio = statistics.median(ours / base for ours, base in zip(seconds, turns, strict=True))
            line += f"{statistics.median(seconds):>{width}.1f}{ratio:>7.2f}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    found: dict[int, list[Result]] = {staleness: [] for staleness in (0, *options.staleness)}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, model = tiny_tokenizer(), Path(folder) / "model"
        save_checkpoint(model, tiny_model(len(tokenizer)), tokenizer)
        for repeat in range(options.repeats):
            for staleness, results in found.items():
                results.append(measure(options, model, Path(folder) / f"run-{repeat}-{staleness}", staleness))
    print(report(found, options))
    if options.output:
        figures = {str(staleness): [asdict(result) for result in results] for staleness, results in found.items()}
        options.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
