"""What a run does: the configurations of `train` and `sft`, and how plain data, such as a recipe, become one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from verigym.agents.engines.config import EngineConfig
from verigym.agents.learners.config import GRPOConfig, LoRAConfig, PolicyConfig, PPOConfig
from verigym.envs.mixture import EnvSpec
from verigym.tasks.errors import ConfigError, UnknownNameError


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Every field can be set in the recipe and replaced on the command line."""

    model: str
    """Checkpoint to start from: a folder or a hub id."""
    envs: tuple[EnvSpec, ...]
    """The environments to train on; several are a mixture by weight."""
    run: str = "runs/train"
    """Folder of the run; it must not hold another run."""
    steps: int = 100
    """Optimizer batches: each collects, learns and syncs once."""
    groups: int = 32
    """Groups per step: each is one task."""
    group_size: int = 8
    """Episodes per group."""
    curriculum: float | None = None
    """Pass rate of the newest environment that unlocks the next of the list; None: all are open from the start."""
    curriculum_window: int = 64
    """Last judged episodes of the newest environment over which its pass rate is measured."""
    group_filter: Literal["keep", "drop"] = "keep"
    """Groups whose returns are all equal: keep them in the counts that normalise the loss, or drop them from it."""
    dynamic_sampling: int = 0
    """Rounds of further groups, at most, to stand in for those whose returns are all equal (DAPO); 0 keeps them."""
    learner: Literal["grpo", "ppo"] = "grpo"
    """Group baselines, or a critic."""
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    """The settings of grpo."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """The settings of ppo."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """Train adapters in the place of all weights."""
    temperature: float = 1.0
    """Sampling temperature; it divides the learner's logits too."""
    max_new_tokens: int = 1024
    """Tokens per turn where the environment sets no budget."""
    deterministic: bool = False
    """Lockstep: the same seed gives the same bits, at some cost in speed. Otherwise episodes overlap."""
    staleness: int = 0
    """Versions that sampled tokens may lag behind the learner: above 0 the engine plays during updates."""
    seed: int = 0
    """Seed of everything: tasks, episodes, sampling."""
    eval_every: int = 0
    """Evaluate after every so many steps, and at the end, keeping the best checkpoint; 0 never does."""
    eval_envs: tuple[EnvSpec, ...] = ()
    """The environments to evaluate on; default: those of training on their test split, or on all tasks of one that
    takes no split."""
    eval_tasks: int = 256
    """Tasks of an evaluation (the first ones of each environment, by weight), one episode each."""
    stop_at: float | None = None
    """End the run when an evaluation's pass rate reaches this."""
    checkpoint_every: int = 10
    """Write a checkpoint after every so many steps, and at the end."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """What plays the episodes."""
    max_drift: float = 0.1
    """Mean gap of engine's and learner's log-probabilities of the same weights, in nats per token, that ends a run."""
    slots: int = 256
    """Requests that the rollout engine runs at a time."""
    concurrency: int = 512
    """Episodes that are played at a time."""
    env_timeout: float = 300.0
    """Seconds an environment may take for one answer before its episode is lost."""
    max_infra_error_rate: float = 0.1
    """A step in which more than this share of episodes could not be judged stops the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where model and engine live."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of rollouts and of the learner's forwards; weights stay float32. auto: bfloat16 on GPU."""
    tensorboard: bool = True
    """Write TensorBoard logs into the run folder."""
    wandb: str | None = None
    """Project of Weights & Biases to log to (pip install wandb)."""
    trackio: str | None = None
    """Project of Trackio to log to (pip install trackio)."""

    def __post_init__(self) -> None:
        if not self.envs:
            raise ConfigError("envs is empty; name at least one environment")
        for name in ("steps", "groups", "group_size", "max_new_tokens", "eval_tasks", "slots", "concurrency"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.curriculum is not None and not 0 < self.curriculum <= 1:
            raise ConfigError(f"curriculum is a pass rate above 0 and at most 1, not {self.curriculum}")
        if self.curriculum is not None and len(self.envs) < 2:
            raise ConfigError("a curriculum opens environments one after the other: name at least two, such as levels")
        if self.curriculum_window < 1:
            raise ConfigError(f"curriculum_window must be at least 1, not {self.curriculum_window}")
        if self.dynamic_sampling < 0:
            raise ConfigError(f"dynamic_sampling must be at least 0, not {self.dynamic_sampling}")
        if self.checkpoint_every < 1 or self.eval_every < 0:
            raise ConfigError("checkpoint_every must be at least 1 and eval_every at least 0")
        if self.stop_at is not None and not self.eval_every:
            raise ConfigError("stop_at needs evaluations: set eval_every")
        if not self.env_timeout > 0 or not 0 <= self.max_infra_error_rate <= 1:
            raise ConfigError("env_timeout must be above 0 and max_infra_error_rate lie in [0, 1]")
        if not self.max_drift > 0:
            raise ConfigError(f"max_drift must be above 0, not {self.max_drift}")
        if self.deterministic:
            self.engine.require_bits()
        self._check_staleness()
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be above 0 in training, not {self.temperature}")
        alone = self.grpo.advantages in ("reinforce++", "turn_fork")
        if self.group_size < 2 and self.learner == "grpo" and not alone:
            raise ConfigError("group_size must be at least 2: a group of one has no baseline")
        if self.group_size < 2 and self.filters_groups:
            name = "dynamic_sampling" if self.dynamic_sampling else "group_filter drop"
            raise ConfigError(f"{name} compares the episodes of a group: group_size must be at least 2")
        if self.learner == "grpo" and self.ppo != PPOConfig() and self.grpo == GRPOConfig():
            raise ConfigError("the settings of ppo are given, but the learner is grpo; set learner to ppo")
        if self.policy.lr_schedule != "constant" and self.policy.lr_warmup >= self.steps:
            raise ConfigError(
                f"lr_warmup is {self.policy.lr_warmup} of {self.steps} steps: the learning rate never falls"
            )

    def _check_staleness(self) -> None:
        if self.staleness < 0:
            raise ConfigError(f"staleness must be at least 0, not {self.staleness}")
        if not self.staleness:
            return
        if self.policy.correction == "none":
            raise ConfigError(
                f"staleness {self.staleness} learns from tokens of older weights: set correction to token or sequence "
                f"in the settings of {self.learner}"
            )
        if self.deterministic:
            raise ConfigError("deterministic needs staleness 0: what is played beside the learner is never the same")
        if self.forks:
            raise ConfigError("turn_fork compares continuations by one policy: it needs staleness 0")

    @property
    def policy(self) -> PolicyConfig:
        """The settings of the learner."""
        return self.grpo if self.learner == "grpo" else self.ppo

    @property
    def filters_groups(self) -> bool:
        """Whether only groups whose returns differ are learned from."""
        return self.dynamic_sampling > 0 or self.group_filter == "drop"

    @property
    def forks(self) -> int:
        """Other continuations that each turn needs for its baseline; 0 without forked baselines."""
        return self.grpo.forks if self.learner == "grpo" and self.grpo.advantages == "turn_fork" else 0


@dataclass(frozen=True)
class SFTConfig:
    """A supervised warm start on an environment's own demonstrations."""

    envs: tuple[EnvSpec, ...]
    """The environments whose demonstrations are learned; several are a mixture by weight."""
    output: str
    """Folder for the trained checkpoint; it must not exist."""
    model: str = "tiny"
    """Checkpoint to start from: a folder, a hub id, or tiny for a new model of 1M parameters."""
    steps: int = 400
    """Optimizer steps."""
    batch_size: int = 128
    """Demonstrations per step."""
    demonstrations: int = 8192
    """Different demonstrations to learn from; they are played once and then shuffled in passes."""
    lr: float = 1e-3
    """Learning rate of AdamW."""
    seed: int = 0
    """Seed of the new model, the tasks and the demonstrations."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model lives."""

    def __post_init__(self) -> None:
        if not self.envs:
            raise ConfigError("envs is empty; name at least one environment")
        for name in ("steps", "batch_size", "demonstrations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.lr < float("inf"):
            raise ConfigError(f"lr must be above 0, not {self.lr}")


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError, in one line, if there is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the recipe '{path}': {getattr(error, 'strerror', None) or error}") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the recipe '{path}' is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"the recipe '{path}' must be a mapping of fields, such as 'steps: 100'")
    return values


def build(kind: type[Any], values: Mapping[str, Any], where: str = "") -> Any:
    """A dataclass from plain data. Raises UnknownNameError for a wrong field, ConfigError for a wrong value."""
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            raise UnknownNameError.of(f"field{f' of {where}' if where else ''} named", str(name), fields)
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{where or 'the configuration'} lacks the field '{name}'")
    path = f"{where}." if where else ""
    return kind(**{name: _convert(hints[name], value, f"{path}{name}") for name, value in values.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type, or a ConfigError that names the field."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, kind):
            return value
        if isinstance(value, Mapping):
            return build(kind, value, where)
    elif origin in (Union, UnionType):
        return None if value is None else _convert(next(a for a in arguments if a is not type(None)), value, where)
    elif origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    elif origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{where} must be one of {', '.join(map(str, arguments))}, not {value!r}")
    elif origin is not None and isinstance(value, Mapping):
        return dict(value)
    elif kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-6 as text
        except ValueError:
            pass
    elif isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where} must be {getattr(kind, '__name__', kind)}, not {value!r}")


def to_plain(config: Any) -> dict[str, Any]:
    """A configuration as plain data, every field written out, for `config.yaml`."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_plain(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
