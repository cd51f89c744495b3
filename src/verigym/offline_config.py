"""What learning from stored or freshly played episodes does: the configurations of `rft`, `dpo` and `reward-model`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from verigym.envs.mixture import EnvSpec
from verigym.tasks.errors import ConfigError


@dataclass(frozen=True)
class OfflineConfig:
    """What every training on stored or freshly played episodes is told."""

    model: str
    """Checkpoint to start from, which also plays the environments: a folder or a hub id."""
    run: str
    """Folder of the run; it must not hold another run. The trained model is its folder model."""
    episodes: tuple[str, ...] = ()
    """Stored episodes to learn from: run folders, or what verigym eval wrote to its --folder or --output."""
    envs: tuple[EnvSpec, ...] = ()
    """Environments to play first, several times per task; several are a mixture by weight."""
    tasks: int = 256
    """Tasks to play."""
    samples: int = 8
    """Episodes to play of each task."""
    temperature: float = 1.0
    """Sampling temperature of the episodes that are played."""
    max_new_tokens: int = 1024
    """Tokens per turn where the environment sets no budget."""
    slots: int = 256
    """Requests that the rollout engine runs at a time."""
    epochs: int = 1
    """Passes over the data, each in another order."""
    batch_size: int = 64
    """Pairs, or episodes, of one optimizer step."""
    lr: float = 1e-6
    """Learning rate of AdamW."""
    tokens_per_forward: int = 8192
    """Tokens of one forward and backward; gradients accumulate and do not depend on it."""
    checkpoint_every: int = 100
    """Write a checkpoint after every so many steps, and at the end."""
    seed: int = 0
    """Seed of everything: tasks, episodes, sampling, the choice and the order of what is learned."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model lives."""

    def __post_init__(self) -> None:
        for name in (
            *("tasks", "samples", "max_new_tokens", "slots", "epochs", "batch_size"),
            *("tokens_per_forward", "checkpoint_every"),
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("lr", "temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if len(self.sources) != 1:
            given = f"both {' and '.join(self.sources)} are given" if self.sources else "no data is given"
            raise ConfigError(f"{given}; name one of {', '.join(self.possible_sources)}")

    @property
    def possible_sources(self) -> tuple[str, ...]:
        """The fields that say where the data is from; one of them is set."""
        return "episodes", "envs"

    @property
    def sources(self) -> list[str]:
        """Those that are set."""
        return [name for name in self.possible_sources if getattr(self, name)]


@dataclass(frozen=True)
class PreferenceConfig(OfflineConfig):
    """What every training on preferences is told."""

    pairs: str | None = None
    """Preferences to learn from: a file (JSONL or Parquet) of rows with prompt, chosen and rejected."""
    pairs_per_task: int = 4
    """At most so many pairs of one task's episodes, a right one above a wrong one."""
    held_out: float = 0.1
    """Share of the tasks, or prompts, whose pairs are kept for the report and never learned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs_per_task < 1:
            raise ConfigError(f"pairs_per_task must be at least 1, not {self.pairs_per_task}")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out is a share of the tasks, between 0 and 1, not {self.held_out}")

    @property
    def possible_sources(self) -> tuple[str, ...]:
        return "pairs", "episodes", "envs"


@dataclass(frozen=True)
class RewardModelConfig(PreferenceConfig):
    """A reward model, trained on preferences."""

    run: str = "runs/reward-model"
    """Folder of the run; it must not hold another run. The trained model is its folder model."""
    lr: float = 1e-5
    """Learning rate of AdamW."""


@dataclass(frozen=True)
class DPOConfig(PreferenceConfig):
    """A policy, trained on preferences by direct preference optimisation."""

    run: str = "runs/dpo"
    """Folder of the run; it must not hold another run. The trained model is its folder model."""
    beta: float = 0.1
    """How much a change of log-probability counts as reward: lower lets the policy move further away."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < float("inf"):
            raise ConfigError(f"beta must be above 0, not {self.beta}")


@dataclass(frozen=True)
class RFTConfig(OfflineConfig):
    """A policy, fine-tuned on its own right episodes (rejection sampling)."""

    run: str = "runs/rft"
    """Folder of the run; it must not hold another run. The trained model is its folder model."""
    lr: float = 1e-5
    """Learning rate of AdamW."""
    episodes_per_task: int = 4
    """At most so many different right episodes of one task, so that easy tasks do not outweigh the others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes_per_task < 1:
            raise ConfigError(f"episodes_per_task must be at least 1, not {self.episodes_per_task}")
