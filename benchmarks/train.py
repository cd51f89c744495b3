"""Training speed: GRPO on Calculator from a warm start until its held-out pass rate is 0.95.

    python benchmarks/train.py [--seeds 0 1] [--threads 2] [--recipe FILE] [--output FILE]

Each seed is a run of its own in a temporary folder: a tiny model, a supervised warm start, then the recipe.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
import tyro

from verigym.config import SFTConfig, TrainConfig, build, read_recipe
from verigym.supervised import sft
from verigym.training import train


@dataclass(frozen=True)
class Options:
    """Seconds and tokens per second until the pass rate is reached."""

    seeds: tuple[int, ...] = (0, 1)
    """One run each."""
    threads: int = 2
    """Threads of torch."""
    recipe: Path = Path(__file__).parents[1] / "recipes" / "calculator.yaml"
    """The run's configuration; model, folder, seed and goal are replaced."""
    warm_steps: int = 400
    """Supervised steps of the warm start."""
    stop_at: float = 0.95
    """The pass rate to reach."""
    output: Path | None = None
    """A JSON file for the figures."""


@dataclass(frozen=True)
class Result:
    """One run. `training` leaves evaluations, checkpoints and start-up out, `wall` leaves out the warm start alone."""

    seed: int
    warm_start: float
    first_pass_rate: float
    pass_rate: float
    steps: int
    episodes: int
    policy_tokens: int
    collect: float
    update: float
    sync: float
    wall: float

    @property
    def training(self) -> float:
        return self.collect + self.update + self.sync


def measure(options: Options, seed: int, folder: Path) -> Result:
    """One seed, from nothing to the goal."""
    config: TrainConfig = build(TrainConfig, {**read_recipe(options.recipe), "model": str(folder / "model")})
    config = replace(config, run=str(folder / "run"), seed=seed, stop_at=options.stop_at, tensorboard=False)
    started = time.perf_counter()
    sft(SFTConfig(envs=config.envs, output=config.model, steps=options.warm_steps, seed=seed))
    warm = time.perf_counter()
    rows = train(config).metrics
    ended = time.perf_counter()
    steps = [row for row in rows if "reward" in row]
    rates = [row["eval/pass_rate"] for row in rows if "eval/pass_rate" in row]

    def total(name: str) -> Any:
        return sum(row[name] for row in steps)

    return Result(
        seed,
        warm_start=warm - started,
        first_pass_rate=rates[0],
        pass_rate=rates[-1],
        steps=len(steps),
        episodes=total("episodes"),
        policy_tokens=total("policy_tokens"),
        collect=total("time/collect"),
        update=total("time/update"),
        sync=total("time/sync"),
        wall=ended - warm,
    )


def report(results: Sequence[Result], options: Options) -> str:
    """A table with a line for each seed."""
    columns = {
        "seed": [f"{r.seed}" for r in results],
        "warm start s": [f"{r.warm_start:.1f}" for r in results],
        "pass rate": [f"{r.first_pass_rate:.2f}-{r.pass_rate:.3f}" for r in results],
        "steps": [f"{r.steps}" for r in results],
        "episodes": [f"{r.episodes}" for r in results],
        "collect s": [f"{r.collect:.1f}" for r in results],
        "update s": [f"{r.update:.1f}" for r in results],
        "sync s": [f"{r.sync:.1f}" for r in results],
        "training s": [f"{r.training:.1f}" for r in results],
        "wall s": [f"{r.wall:.1f}" for r in results],
        "episodes/s": [f"{r.episodes / r.training:.0f}" for r in results],
        "policy tokens/s": [f"{r.policy_tokens / r.training:.0f}" for r in results],
    }
    widths = [max(map(len, [name, *cells])) for name, cells in columns.items()]
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    missed = [str(r.seed) for r in results if r.pass_rate < options.stop_at]
    return "\n".join(
        [
            f"{options.recipe.name} until {options.stop_at} held out, {options.threads} threads; "
            f"torch {torch.__version__}, transformers {transformers.__version__}",
            *("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows),
            *([f"not reached by seed {', '.join(missed)}"] if missed else []),
        ]
    )


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    results = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(options, seed, Path(folder)))
    print(report(results, options))
    if options.output:
        figures = [asdict(result) | {"training": result.training} for result in results]
        options.output.write_text(json.dumps({"threads": options.threads, "runs": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
