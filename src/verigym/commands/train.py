"""`verigym train RECIPE.yaml [--field value]`, `verigym train --resume RUN [--field value]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from verigym.cli import parse_options
from verigym.commands._arguments import take
from verigym.config import TrainConfig, build, read_recipe
from verigym.envs.mixture import EnvSpec
from verigym.tasks.errors import ConfigError

USAGE = """  verigym train RECIPE.yaml [--field value ...]
  verigym train --resume RUN [--field value ...]

Below are the fields with their defaults; `verigym train RECIPE.yaml --help` has the recipe's values instead.
"""


@dataclass(frozen=True)
class Train:
    """Train an agent from a recipe, or go on with a run."""

    config: TrainConfig
    resume: bool

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Train:
        """A recipe or `--resume RUN`, and fields to replace."""
        runs, rest = take(arguments, "--resume")
        if runs:
            from verigym.run_folder import RunFolder

            values, name = RunFolder(runs[-1]).read_config(), f"train --resume {runs[-1]}"
            default = replace(build(TrainConfig, values, "config.yaml"), run=runs[-1])
        elif rest and not rest[0].startswith("-"):
            name = f"train {rest[0]}"
            default = build(TrainConfig, read_recipe(rest[0]), "the recipe")
            rest = rest[1:]
        elif rest and rest[0] in ("-h", "--help"):
            print(USAGE)
            name, default = "train RECIPE.yaml", TrainConfig(model="MODEL", envs=(EnvSpec("ID"),))
        else:
            raise ConfigError("name a recipe (verigym train RECIPE.yaml) or a run (verigym train --resume RUN)")
        return cls(parse_options(TrainConfig, name, rest, default), bool(runs))

    def run(self) -> int:
        from verigym.ranks import leads
        from verigym.training import train

        finished = train(self.config, resume=self.resume)
        if not leads():
            return 0
        if finished.best is not None:
            print(f"held-out pass rate {finished.best}")
        print(f"checkpoint {finished.checkpoint}")
        return 0
