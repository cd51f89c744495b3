"""One environment of a mixture, as a run's configuration names it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from verigym.tasks.errors import ConfigError, UnknownNameError


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
        if self.weight <= 0:
            raise ConfigError(f"the weight of {self.id} must be above 0, not {self.weight}")

    def make(self) -> gym.Env[str, str]:
        """A new environment. Raises UnknownNameError for an id that is not registered."""
        name = self.id.rpartition(":")[2]
        if ":" not in self.id and name not in gym.registry:
            known = [env_id for env_id in gym.registry if env_id.startswith("verigym/")] or list(gym.registry)
            raise UnknownNameError.of("environment", name, known)
        return gym.make(self.id, **self.kwargs)

    def with_split(self, split: str) -> "EnvSpec":
        """The same environment on another split of its tasks."""
        return EnvSpec(self.id, self.weight, {**self.kwargs, "split": split})
