"""Offline beside online: five ways to learn Calculator from one warm start, at the same budget of episodes.

    python benchmarks/algorithms.py --output DIR [--quick] [--seeds 0 1 2] [--write-docs]

Every run is a process of its own. Those whose figures are in the folder already are not done again, so a benchmark
that was cut off goes on. The folder gets a JSON file of each run, figures.json, table.md and the pictures;
`--write-docs` puts them into docs/learners.md.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from _credit import Credited, as_table, measure, show
from _curves import Algorithm, Point, Sizes, online_config, warm_start
from _report import Jobs, new_figure, paragraph, spread, table, write_docs

from verigym.agents.episode import Episode, Turn
from verigym.agents.learners.grpo import GRPO
from verigym.agents.learners.pairs import written_episode
from verigym.agents.learners.policy import PolicyLearner
from verigym.agents.learners.ppo import PPO
from verigym.agents.scalar import ScalarModel
from verigym.agents.tiny import tiny_model
from verigym.verifiers import Outcome, Verdict

# The settings of the offline learners were chosen on seed 100, which is not among the benchmark's.
ALGORITHMS = (
    Algorithm("grpo", "GRPO", {}, recipe="calculator.yaml"),
    Algorithm("fork", "GRPO, forked baselines", {"grpo": {"advantages": "turn_fork"}}, recipe="calculator.yaml"),
    Algorithm("ppo", "PPO", {}, recipe="calculator_ppo.yaml"),
    Algorithm(
        "rft",
        "RFT",
        {"lr": 3e-4, "epochs": 4, "batch_size": 64, "episodes_per_task": 8, "checkpoint_every": 20},
    ),
    Algorithm(
        "dpo",
        "DPO",
        {"lr": 1e-4, "epochs": 1, "batch_size": 64, "pairs_per_task": 4, "beta": 2.0, "checkpoint_every": 10},
    ),
)
FULL = Sizes()
QUICK = Sizes(warm_steps=100, demonstrations=1024, steps=12, groups=8, eval_every=4, eval_tasks=64)

# The learners whose memory is measured.
_LARGER = {"hidden_size": 512, "layers": 8, "heads": 8, "intermediate_size": 1536}
_VOCABULARY, _EPISODES, _TOKENS = 300, 16, 32


@dataclass(frozen=True)
class Options:
    """Pass rate against episodes, tokens and wall time; memory; credit."""

    output: Path
    """Folder for the figures; what is in it is not done again."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One warm start and one run of each algorithm each."""
    quick: bool = False
    """A smoke test: small sizes, nothing learns much."""
    threads: int = 2
    """Threads of torch."""
    goal: float = 0.9
    """The pass rate whose price the table shows."""
    write_docs: bool = False
    """Put table and pictures into docs/learners.md."""
    job: str | None = None
    """Do this one job in this process; for the benchmark's own use."""

    @property
    def sizes(self) -> Sizes:
        return QUICK if self.quick else FULL


def jobs(options: Options) -> list[str]:
    """What there is to do, in order."""
    of_seeds = [f"{name}-{seed}" for seed in options.seeds for name in ("warm", *(a.name for a in ALGORITHMS))]
    return [*of_seeds, "memory-grpo", "memory-ppo", "credit"]


def do(options: Options, job: str, folder: Path) -> Any:
    """One job in an empty folder; what it found."""
    name, _, which = job.partition("-")
    seed = int(which) if which.isdigit() else options.seeds[0]
    model = options.output / "warm" / str(seed)
    if name == "warm":
        warm_start(options.sizes, seed, model)
        return {}
    if name == "memory":
        return _memory(_named(which), options.sizes)
    if name == "credit":
        return measure(_named("ppo"), model, options.sizes, seed, folder)
    before = peak()
    curve = _named(name).curve(model, options.sizes, seed, folder)
    return {"megabytes": peak() - before, "curve": [asdict(point) for point in curve]}


def _named(name: str) -> Algorithm:
    return next(algorithm for algorithm in ALGORITHMS if algorithm.name == name)


def peak() -> float:
    """The most memory that this process has had, in MB (of Linux: `ru_maxrss` begins with the parent's)."""
    status = Path("/proc/self/status").read_text()
    return next(float(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def _memory(algorithm: Algorithm, sizes: Sizes) -> dict[str, float]:
    """Peak memory of a learner, without an engine: two steps of a larger model, above that after start."""
    before = peak()
    config, model = online_config(algorithm, Path(), sizes, 0, Path()), tiny_model(_VOCABULARY, **_LARGER)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    learner: PolicyLearner
    small = {"tokens_per_forward": 256, "minibatches": 1}  # what is held, not what a forward needs in passing
    if algorithm.name == "grpo":
        learner = GRPO(model, replace(config.grpo, **small))
    else:
        critic = ScalarModel(copy.deepcopy(model.base_model))
        learner = PPO(model, replace(config.ppo, critic_warmup=0, **small), critic=critic)
    episodes = [_random_episode(number) for number in range(_EPISODES)]
    for _ in range(2):
        learner.update(episodes, learner.advantages(episodes))
    return {"parameters": parameters, "megabytes": peak() - before}


def _random_episode(number: int) -> Episode:
    """Random tokens, half of them the policy's; of two of a group one is right."""
    ids = np.random.default_rng(number).integers(0, _VOCABULARY, 2 * _TOKENS).tolist()
    episode = written_episode(ids, [False] * _TOKENS + [True] * _TOKENS)
    reward = float(number % 2)
    turn = Turn(_TOKENS, 2 * _TOKENS, reward, "stop", limit=_TOKENS)
    verdict = Verdict(reward, Outcome.CORRECT if reward else Outcome.WRONG, "random")
    return replace(episode, group_id=number // 2, turns=(turn,), verdict=verdict)


# What was found.


@dataclass(frozen=True)
class Figures:
    """All runs of an algorithm: a curve for each seed, and peak memory in MB."""

    algorithm: Algorithm
    curves: list[list[Point]]
    megabytes: list[float]

    @classmethod
    def of(cls, algorithm: Algorithm, runs: Sequence[Mapping[str, Any]]) -> Figures:
        curves = [[Point(**point) for point in run["curve"]] for run in runs]
        return cls(algorithm, curves, [run["megabytes"] for run in runs])

    def row(self, goal: float) -> list[str]:
        """A line of the table."""
        reached = [point for curve in self.curves if (point := _first(curve, goal)) is not None]
        count = f"{len(reached)} of {len(self.curves)}"
        price = [f"{spread((getattr(p, axis) for p in reached), _short) if reached else '-'}" for axis in AXES]
        best = [max(point.pass_rate for point in curve) for curve in self.curves]
        whole = [curve[-1].seconds for curve in self.curves]
        last = [curve[-1].pass_rate for curve in self.curves]
        return [
            self.algorithm.title,
            spread((curve[0].pass_rate for curve in self.curves), "{:.2f}".format),
            spread(last, "{:.3f}".format),
            spread(best, "{:.3f}".format),
            count,
            *price,
            spread(whole, "{:.0f}".format),
            spread(self.megabytes, "{:.0f}".format),
        ]


AXES = {"episodes": "episodes played", "tokens": "tokens sampled by the policy", "seconds": "seconds of training"}


def _first(curve: Sequence[Point], goal: float) -> Point | None:
    return next((point for point in curve if point.pass_rate >= goal), None)


def _short(number: float) -> str:
    return f"{number:.0f}" if number < 10_000 else f"{number / 1000:.0f}k"


def head(goal: float) -> list[str]:
    return [
        *("", "warm start", "last pass rate", "best", f"reached {goal:g}"),
        *(f"{name} to {goal:g}" for name in AXES),
        *("seconds in all", "peak MB"),
    ]


def draw(figures: Sequence[Figures], path: Path) -> None:
    """A panel for each axis: the mean over the seeds, and the range."""
    figure, panels = new_figure(len(AXES))
    for axes, (axis, label) in zip(panels, AXES.items(), strict=True):
        for number, found in enumerate(figures):
            points = list(zip(*found.curves, strict=False))
            across = [sum(getattr(p, axis) for p in column) / len(column) for column in points]
            rates = [[p.pass_rate for p in column] for column in points]
            style = "o-" if found.algorithm.recipe else "s--"
            color = f"C{number}"
            means = [sum(column) / len(column) for column in rates]
            axes.plot(across, means, style, color=color, markersize=3, label=found.algorithm.title)
            axes.fill_between(across, list(map(min, rates)), list(map(max, rates)), color=color, alpha=0.15)
        axes.set_xlabel(label)
        axes.xaxis.set_major_formatter(lambda number, _: f"{number / 1000:g}k" if number >= 1000 else f"{number:g}")
        axes.set_ylim(0, 1.02)
    panels[0].set_ylabel("held-out pass rate")
    panels[-1].legend(frameon=False)
    figure.savefig(path, dpi=120)


def text(options: Options, figures: Sequence[Figures], memory: Mapping[str, Any], episodes: Sequence[Credited]) -> str:
    """The section of docs/learners.md."""
    sizes, seeds = options.sizes, ", ".join(map(str, options.seeds))
    threads = "1 thread" if options.threads == 1 else f"{options.threads} threads"
    setting = (
        f"`python benchmarks/algorithms.py`: verigym/Calculator-v0, warm starts of {sizes.warm_steps} supervised "
        f"steps, seeds {seeds} (mean, lowest to highest), at most {sizes.budget} episodes played by each (a fork is "
        f"one too), {threads}, torch {torch.__version__}. Pass rates are of {sizes.eval_tasks} "
        "held-out tasks; seconds leave evaluations out. The offline learners play the whole budget and then learn "
        "from what is stored. " + " ".join(f"{a.title}: {_settings(a)}." for a in ALGORITHMS)
    )
    credit = (
        "Credit: a right episode and a wrong one of the same task, played when PPO's critic had warmed up. PPO's "
        "advantage of a token is the return less what the critic expected before it (learning then whitens it over "
        "the batch); GRPO's is one number for the episode."
    )
    return "\n\n".join(
        [
            paragraph(setting),
            table([head(options.goal), *(found.row(options.goal) for found in figures)]),
            "![pass rate against episodes, tokens and seconds](learners/algorithms.png)",
            paragraph(_of_memory(**memory)),
            paragraph(credit),
            "![advantage of each token](learners/credit.png)",
            as_table(episodes),
        ]
    )


def _settings(algorithm: Algorithm) -> str:
    if algorithm.recipe is None:
        return ", ".join(
            f"{name} {value:g}" for name, value in algorithm.settings.items() if name != "checkpoint_every"
        )
    changes = [f"{name} {value}" for section in algorithm.settings.values() for name, value in section.items()]
    return ", ".join([f"`recipes/{algorithm.recipe}`", *changes])


def _of_memory(grpo: Mapping[str, float], ppo: Mapping[str, float]) -> str:
    return (
        f"Memory: of a learner without an engine (two steps of {_EPISODES} episodes, a model of "
        f"{grpo['parameters'] / 1e6:.0f} M parameters in float32, a process of its own), the peak above that after "
        f"start is {grpo['megabytes']:.0f} MB with GRPO and {ppo['megabytes']:.0f} MB with PPO, whose critic has a "
        "trunk, gradients and moments of its own: "
        f"{ppo['megabytes'] / grpo['megabytes']:.2f} times as much. The peaks in the table are those of "
        "whole runs of the tiny model, with its engine."
    )


def report(options: Options, found: Mapping[str, Any]) -> None:
    """Pictures, figures.json and table.md of all jobs."""
    output = options.output
    figures = [Figures.of(a, [found[f"{a.name}-{seed}"] for seed in options.seeds]) for a in ALGORITHMS]
    memory = {name: found[f"memory-{name}"] for name in ("grpo", "ppo")}
    episodes = [Credited(**episode) for episode in found["credit"]]
    pictures = [output / "algorithms.png", output / "credit.png"]
    draw(figures, pictures[0])
    show(episodes, pictures[1])
    (output / "figures.json").write_text(json.dumps(found, indent=1) + "\n")
    section = text(options, figures, memory, episodes)
    (output / "table.md").write_text(section + "\n", encoding="utf-8")
    print(section)
    if options.write_docs:
        write_docs("benchmarks/algorithms.py", section, pictures)


def main(options: Options) -> None:
    settings = {"sizes": asdict(options.sizes), "algorithms": [asdict(algorithm) for algorithm in ALGORITHMS]}
    work = Jobs(__file__, options.output, settings | {"threads": options.threads})
    if options.job is None:
        report(options, {job: work.run(job) for job in jobs(options)})
        return
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        work.write(options.job, do(options, options.job, Path(folder)))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
