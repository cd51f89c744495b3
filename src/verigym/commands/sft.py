"""`verigym sft --env ID --output FOLDER [--field value]`: supervised warm start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verigym.cli import parse_options
from verigym.commands._arguments import key_values, take
from verigym.config import SFTConfig, build, read_recipe
from verigym.envs.mixture import EnvSpec
from verigym.tasks.errors import ConfigError

USAGE = """  verigym sft --env ID --output FOLDER [--option key=value ...] [--field value ...]
  verigym sft RECIPE.yaml [--field value ...]

`--option` is a keyword argument of the environment. Below are the fields with their defaults.
"""


@dataclass(frozen=True)
class SFT:
    """Warm-start a model on an environment's demonstrations."""

    config: SFTConfig

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> SFT:
        """A recipe, or an environment and an output folder; and fields to replace."""
        ids, rest = take(arguments, "--env")
        options, rest = take(rest, "--option")
        outputs, rest = take(rest, "--output")
        if not ids and rest and rest[0] in ("-h", "--help"):
            print(USAGE)
            return cls(parse_options(SFTConfig, "sft", rest, SFTConfig(envs=(EnvSpec("ID"),), output="FOLDER")))
        values = read_recipe(rest.pop(0)) if rest and not rest[0].startswith("-") else {}
        if ids:
            values["envs"] = [{"id": env_id, "kwargs": key_values(options)} for env_id in ids]
        if outputs:
            values["output"] = outputs[-1]
        for name, flag in (("envs", "--env ID"), ("output", "--output FOLDER")):
            if name not in values:
                raise ConfigError(f"{flag} is missing; see verigym sft --help")
        return cls(parse_options(SFTConfig, "sft", rest, build(SFTConfig, values, "the recipe")))

    def run(self) -> int:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from verigym.supervised import sft

        console = Console()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("demonstrations", total=self.config.steps)

            def show(step: int, metrics: dict[str, float]) -> None:
                progress.update(task, completed=step, description=f"loss {metrics['loss']:.3f}")

            finished = sft(self.config, show)
        print(f"loss {finished.loss:.3f} after {finished.tokens:,} tokens; checkpoint {finished.folder}")
        return 0
