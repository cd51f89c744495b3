"""Learning curves on Calculator: held-out pass rates of online and offline runs from one warm start."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from verigym.agents.agent import load_chat
from verigym.config import SFTConfig, TrainConfig, build, read_recipe
from verigym.envs.mixture import EnvSpec
from verigym.evaluation import play, summarise
from verigym.offline import dpo, rft
from verigym.offline_config import DPOConfig, RFTConfig
from verigym.passes import play_groups
from verigym.players import LocalPlayer
from verigym.run_folder import RunFolder
from verigym.supervised import sft
from verigym.training import train

RECIPES = Path(__file__).parents[1] / "recipes"
CALCULATOR = EnvSpec("verigym/Calculator-v0", kwargs={"max_tokens_per_turn": 24})
# Tasks that training never sees: the other split, drawn by another seed.
HELD_OUT = EnvSpec(CALCULATOR.id, kwargs={**CALCULATOR.kwargs, "split": "test", "seed": 5})
OFFLINE = {"rft": (RFTConfig, rft), "dpo": (DPOConfig, dpo)}


@dataclass(frozen=True)
class Sizes:
    """How much is played and learned."""

    warm_steps: int = 400
    demonstrations: int = 8192
    steps: int = 40
    groups: int = 32
    group_size: int = 8
    eval_every: int = 5
    eval_tasks: int = 256

    @property
    def budget(self) -> int:
        """The episodes that each algorithm may play."""
        return self.steps * self.groups * self.group_size


@dataclass(frozen=True)
class Point:
    """A held-out pass rate after so many episodes (forks are some too), tokens that the policy sampled, and seconds.

    The seconds are those of collecting, learning and handing weights over, without evaluations. Those of an offline
    run have its checkpoints in them, and the reading of the stored episodes.
    """

    episodes: int
    tokens: int
    seconds: float
    pass_rate: float


@dataclass(frozen=True)
class Algorithm:
    """A way to learn: a recipe for online learning or one of the offline learners, and the settings it changes."""

    name: str
    title: str
    settings: Mapping[str, Any]
    recipe: str | None = None
    """A file of recipes/; without one the algorithm is offline, and its name that of its learner."""

    def curve(self, model: Path, sizes: Sizes, seed: int, folder: Path) -> list[Point]:
        """The points of one run in an empty folder."""
        learn = _online if self.recipe else _offline
        return learn(self, model, sizes, seed, folder)


def warm_start(sizes: Sizes, seed: int, output: Path) -> None:
    """A tiny model that knows the two forms of an answer, but not which of them pays."""
    played = {"steps": sizes.warm_steps, "demonstrations": sizes.demonstrations}
    sft(SFTConfig(envs=(CALCULATOR,), output=str(output), seed=seed, **played))


def online_config(algorithm: Algorithm, model: Path, sizes: Sizes, seed: int, folder: Path) -> TrainConfig:
    """The recipe at the benchmark's sizes, in lockstep, so that its pass rates repeat."""
    values = read_recipe(RECIPES / str(algorithm.recipe))
    values |= {"model": str(model), "run": str(folder), "envs": (CALCULATOR,), "eval_envs": (HELD_OUT,), "seed": seed}
    values |= {"steps": sizes.steps, "groups": sizes.groups, "group_size": sizes.group_size, "stop_at": None}
    values |= {"eval_every": sizes.eval_every, "eval_tasks": sizes.eval_tasks, "checkpoint_every": sizes.steps}
    values |= {"deterministic": True, "tensorboard": False}
    config: TrainConfig = build(TrainConfig, values | _merged(values, algorithm.settings))
    return config


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes, those of a section put over what the section has."""
    return {
        name: {**values.get(name, {}), **change} if isinstance(change, Mapping) else change
        for name, change in changes.items()
    }


def _online(algorithm: Algorithm, model: Path, sizes: Sizes, seed: int, folder: Path) -> list[Point]:
    curve = points(train(online_config(algorithm, model, sizes, seed, folder)).metrics)
    return [point for point in curve if point.episodes <= sizes.budget]  # forks come on top of the steps' episodes


def points(rows: Iterable[Mapping[str, Any]]) -> list[Point]:
    """The evaluations in a run's metrics, each with what was played and learned before it."""
    found, episodes, tokens, seconds = [], 0, 0, 0.0
    for row in rows:
        if "reward" in row:
            episodes += row["episodes"] + row["forks"]
            tokens += row["policy_tokens"] + row["fork_tokens"]
            seconds += sum(row[f"time/{part}"] for part in ("collect", "update", "sync"))
        if "eval/pass_rate" in row:
            found.append(Point(episodes, tokens, seconds, row["eval/pass_rate"]))
    return found


def _offline(algorithm: Algorithm, model: Path, sizes: Sizes, seed: int, folder: Path) -> list[Point]:
    """The whole budget is played by the warm start and stored; then it is learned from."""
    kind, learn = OFFLINE[algorithm.name]
    budget = {"tasks": sizes.steps * sizes.groups, "samples": sizes.group_size, "seed": seed}
    values = {"model": str(model), "run": str(folder / "run"), "envs": (CALCULATOR,), **budget, **algorithm.settings}
    config = build(kind, values)
    watch = _Watch(config, sizes)
    first = watch.pass_rate(model)
    watch.start()
    episodes = play_groups(config, load_chat(model)[1])
    watch.stop()
    tokens = sum(episode.num_policy_tokens for episode in episodes)
    stored = RunFolder(folder / "played")
    stored.create({})
    stored.write_episodes(0, episodes)
    played = watch.seconds
    watch.start()
    learned = learn(replace(config, envs=(), episodes=(str(stored.path),)), on_step=watch)
    watch.finish(learned.model)
    curve = [Point(0, 0, 0.0, first), Point(len(episodes), tokens, played, first)]
    return curve + [Point(len(episodes), tokens, *found) for found in watch.found]


class _Watch:
    """The seconds of an offline run, and the pass rates of its checkpoints, whose evaluation takes none."""

    def __init__(self, config: Any, sizes: Sizes) -> None:
        self.config, self.sizes, self.seconds = config, sizes, 0.0
        self.found: list[tuple[float, float]] = []
        self._started = 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self._started

    def __call__(self, step: int, steps: int, metrics: dict[str, float]) -> None:
        """After a step; the checkpoint of the step before, if it was due, is there by now."""
        before = self.seconds
        self.stop()
        if step > 1 and (step - 1) % self.config.checkpoint_every == 0:
            self.found.append((before, self.pass_rate(RunFolder(self.config.run).latest())))
        self.start()

    def finish(self, model: Path) -> None:
        """The trained model's; what came after the last step was its report."""
        self.found.append((self.seconds, self.pass_rate(model)))

    def pass_rate(self, model: Path) -> float:
        player = LocalPlayer(model, deterministic=True)
        episodes = play(player, HELD_OUT, tasks=self.sizes.eval_tasks, seed=self.config.seed)
        return summarise(episodes).pass_rate
