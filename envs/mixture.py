"""One environment of a mixture, as a run's configuration names it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import gymnasium as gym

from verigym.envs.registration import registered_ids
from verigym.tasks.errors import ConfigError
from verigym.tasks.plugins import unknown


class NoSplitError(ConfigError):
    """A split was asked for, and the environment takes none."""


@dataclass(frozen=True)
class EnvSpec:
    """An environment by id, with its share of the tasks and its keyword arguments."""

    id: str
    """Gymnasium id, such as verigym/GSM8K-v0."""
    weight: float = 1.0
    """Share of the groups, relative to the other environments'."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of gym.make: split, source, level, budgets and so on."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"the weight of {self.id} must be above 0 and finite, not {self.weight}")

    def find(self) -> str:
        """The registered id. Raises UnknownNameError if it is not registered, ConfigError for a bad module."""
        module, _, name = self.id.rpartition(":")
        try:
            if module:
                import_module(module)
        except ImportError as error:
            raise ConfigError(f"cannot import the module of '{self.id}': {error}") from error
        if name not in gym.registry:
            raise unknown("environment", name, registered_ids())
        return name

    def make(self) -> gym.Env[str, str]:
        """A new environment. Raises as `find`, and ConfigError if it cannot be made or is no text environment,
        NoSplitError if it takes no `split` and is given one."""
        name = self.find()
        try:
            env = gym.make(name, **self.kwargs)
        except (TypeError, ImportError, gym.error.Error) as error:
            if "unexpected keyword argument 'split'" in str(error):
                raise NoSplitError(f"{name} takes no split: leave split out, its tasks are the same for all") from error
            given = ", ".join(self.kwargs) or "no options"
            raise ConfigError(f"cannot make {name} with {given}: {' '.join(str(error).split())[:300]}") from error
        space = getattr(env.unwrapped, "action_space", None)
        if space is not None and not space.contains(""):
            raise ConfigError(f"{name} is no text environment: its action space is {space}")
        return env

    def with_split(self, split: str) -> "EnvSpec":
        """The same environment on another split of its tasks."""
        return EnvSpec(self.id, self.weight, {**self.kwargs, "split": split})

    def held_out(self) -> "EnvSpec":
        """The same environment on its test split, or itself if it takes no `split`. Raises as `make`."""
        test = self.with_split("test")
        try:
            test.make().close()
        except NoSplitError:
            return self
        return test

    def split(self) -> str | None:
        """The split of its tasks, as they say themselves; None if nobody names one. Raises as `make`."""
        env = self.make()
        env.close()
        named = getattr(getattr(env.unwrapped, "tasks", None), "split", None)
        return named or self.kwargs.get("split")
