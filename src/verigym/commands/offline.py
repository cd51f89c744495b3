"""`verigym reward-model`, `verigym dpo`, `verigym rft`: training on pairs and on stored episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from verigym.cli import parse_options
from verigym.commands._arguments import key_values, take
from verigym.config import build, read_recipe
from verigym.offline_config import DPOConfig, OfflineConfig, RewardModelConfig, RFTConfig
from verigym.tasks.errors import ConfigError

Command = TypeVar("Command", bound="_Offline")

_USAGE = """  verigym {name} --model MODEL {pairs}--episodes RUN_OR_FILE ... [--field value ...]
  verigym {name} --model MODEL --env ID [--option key=value ...] [--field value ...]
  verigym {name} RECIPE.yaml [--field value ...]
  verigym {name} --resume RUN [--field value ...]

`--option` is a keyword argument of the environment. Below are the fields with their defaults.
"""


@dataclass(frozen=True)
class _Offline:
    """What the three share: where the configuration is from, progress, and the table at the end."""

    config: Any
    resume: bool

    kind: ClassVar[type[OfflineConfig]]
    name: ClassVar[str]

    @classmethod
    def parse(cls: type[Command], arguments: Sequence[str]) -> Command:
        """A recipe, a run to go on with, or a model and its data; and fields to replace."""
        runs, rest = take(arguments, "--resume")
        if runs:
            from verigym.passes import resumed

            default = resumed(cls.kind, runs[-1])
            return cls(parse_options(cls.kind, f"{cls.name} --resume {runs[-1]}", rest, default), True)
        ids, rest = take(rest, "--env")
        options, rest = take(rest, "--option")
        if not ids and rest and rest[0] in ("-h", "--help"):
            print(_USAGE.format(name=cls.name, pairs="" if cls.kind is RFTConfig else "--pairs FILE | "))
            default = build(cls.kind, {"model": "MODEL", "episodes": ["RUN_OR_FILE"]})
            return cls(parse_options(cls.kind, cls.name, rest, default), False)
        from_recipe = bool(rest) and not rest[0].startswith("-")
        values = read_recipe(rest.pop(0)) if from_recipe else {}
        if ids:
            values["envs"] = [{"id": env_id, "kwargs": key_values(options)} for env_id in ids]
        for field in ("model", "pairs"):
            given, rest = take(rest, f"--{field}")
            values |= {field: given[-1]} if given else {}
        stored, rest = _several(rest, "--episodes")
        values |= {"episodes": stored} if stored else {}
        where = "the recipe" if from_recipe else f"verigym {cls.name}"
        if "model" not in values:
            raise ConfigError(f"--model is missing; see verigym {cls.name} --help")
        return cls(parse_options(cls.kind, cls.name, rest, build(cls.kind, values, where)), False)

    def run(self) -> int:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task(self.name, total=None)

            def show(step: int, steps: int, metrics: dict[str, float]) -> None:
                progress.update(task, completed=step, total=steps, description=f"loss {metrics['loss']:.3f}")

            finished = self.learn()(self.config, resume=self.resume, on_step=show)
        _print(console, finished.report)
        print(f"model {finished.model}")
        return 0

    def learn(self) -> Callable[..., Any]:
        """The function that trains."""
        raise NotImplementedError


@dataclass(frozen=True)
class RewardModel(_Offline):
    """Train a reward model on preferences."""

    kind, name = RewardModelConfig, "reward-model"

    def learn(self) -> Callable[..., Any]:
        from verigym.reward_model import train_reward_model

        return train_reward_model


@dataclass(frozen=True)
class DPO(_Offline):
    """Train a policy on preferences."""

    kind, name = DPOConfig, "dpo"

    def learn(self) -> Callable[..., Any]:
        from verigym.offline import dpo

        return dpo


@dataclass(frozen=True)
class RFT(_Offline):
    """Fine-tune a policy on its own right episodes."""

    kind, name = RFTConfig, "rft"

    def learn(self) -> Callable[..., Any]:
        from verigym.offline import rft

        return rft


def _several(arguments: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """The values after `name`, up to the next option, and the other arguments."""
    values: list[str] = []
    rest: list[str] = []
    within = False
    for argument in arguments:
        if argument.startswith(f"{name}="):
            values.append(argument.removeprefix(f"{name}="))
        elif argument.startswith("-"):
            within = argument == name
            rest += [] if within else [argument]
        else:
            (values if within else rest).append(argument)
    return values, rest


def _print(console: Any, report: dict[str, Any]) -> None:
    """The report's figures, a column for each side of the split."""
    from rich.table import Table

    sides = {name: figures for name, figures in report.items() if isinstance(figures, dict)}
    table = Table("", *([name.replace("_", "-") for name in sides] or ["number"]))
    for name, value in report.items():
        if name not in sides:
            table.add_row(name.replace("_", " "), str(value))
    for name in next(iter(sides.values()), {}):
        if name not in ("low", "high"):
            table.add_row(name.replace("_", " "), *[_cell(name, figures) for figures in sides.values()])
    console.print(table)


def _cell(name: str, figures: dict[str, Any]) -> str:
    value = figures[name]
    interval = f" [{figures['low']:.3f}, {figures['high']:.3f}]" if name == "accuracy" else ""
    return (f"{value:.3f}" if isinstance(value, float) else str(value)) + interval
