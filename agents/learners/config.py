"""The settings of each learner. Imports no torch, so that the command line starts at once."""

import math
from dataclasses import dataclass
from typing import Literal

from verigym.tasks.errors import ConfigError


@dataclass(frozen=True)
class PolicyConfig:
    """What every policy-gradient learner is told."""

    lr: float = 1e-6
    """Learning rate of AdamW."""
    reduction: Literal["grpo", "dapo", "dr_grpo"] = "dapo"
    """Mean of the loss over episodes (grpo), over tokens (dapo), or over a fixed length (dr_grpo)."""
    clip_low: float = 0.2
    """The ratio is clipped from below at 1 - clip_low."""
    clip_high: float = 0.28
    """The ratio is clipped from above at 1 + clip_high (clip-higher, DAPO)."""
    entropy_coefficient: float = 0.0
    """Weight of the policy's entropy, which the loss rewards."""
    overlong: Literal["judge", "mask", "penalise"] = "judge"
    """An episode that ran out of tokens: judge it as it stands, mask it (no loss; DAPO's overlong filtering), or
    penalise also what comes near the budget of a turn (DAPO's soft overlong punishment)."""
    overlong_buffer: float = 0.2
    """Share of a turn's budget over which penalise grows from 0 to 1."""
    kl_coefficient: float = 0.0
    """Weight of the KL to the reference model; 0 loads no reference model."""
    minibatches: int = 1
    """Optimizer steps per pass over a batch; each takes whole episodes."""
    tokens_per_forward: int = 8192
    """Tokens of one forward and backward; gradients accumulate and do not depend on it."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    adam_beta2: float = 0.95
    """Second-moment decay of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf or self.minibatches < 1 or self.tokens_per_forward < 1:
            raise ConfigError("lr must be above 0, minibatches and tokens_per_forward at least 1")
        if not (0 <= self.clip_low < 1 and 0 <= self.clip_high < math.inf):
            raise ConfigError("clip_low must lie in [0, 1) and clip_high be at least 0")
        if not all(0 <= value < math.inf for value in (self.kl_coefficient, self.weight_decay)):
            raise ConfigError("kl_coefficient and weight_decay must be at least 0")
        if not 0 <= self.entropy_coefficient < math.inf:
            raise ConfigError("entropy_coefficient must be at least 0")
        if not 0 < self.overlong_buffer <= 1:
            raise ConfigError(f"overlong_buffer is a share of the budget, in (0, 1], not {self.overlong_buffer}")
        if not (self.max_grad_norm > 0 and 0 <= self.adam_beta2 < 1):
            raise ConfigError("max_grad_norm must be above 0 and adam_beta2 lie in [0, 1)")


@dataclass(frozen=True)
class GRPOConfig(PolicyConfig):
    """How GRPO turns a group's rewards into a step; its KL is a loss."""

    advantages: Literal["grpo", "dr_grpo"] = "grpo"
    """Group baseline: grpo divides by the group's standard deviation, dr_grpo does not."""
    kl: Literal["k2", "k3"] = "k3"
    """Estimator of the KL loss: k2 or k3."""


@dataclass(frozen=True)
class PPOConfig(PolicyConfig):
    """How PPO turns rewards and a critic's values into steps; its KL is part of the reward."""

    clip_high: float = 0.2
    """The ratio is clipped from above at 1 + clip_high."""
    minibatches: int = 4
    """Optimizer steps per pass over a batch; each takes whole episodes."""
    epochs: int = 2
    """Passes over a batch, each in another order."""
    critic_lr: float = 1e-5
    """Learning rate of the critic, about ten times the policy's."""
    critic_warmup: int = 10
    """First batches in which only the critic learns."""
    value_clip: float = 0.2
    """How far a value may move from the old one before the larger error counts."""
    gamma: float = 1.0
    """Discount from one of the policy's tokens to the next."""
    lam: float = 1.0
    """Trace decay of generalised advantage estimation."""
    credit: Literal["token", "turn"] = "token"
    """Advantages of each token, or of each turn as a whole."""
    at_budget: Literal["end", "bootstrap"] = "end"
    """An episode cut by a budget ended there, or goes on with the critic's value of what would have followed."""
    whiten: bool = True
    """Scale a batch's advantages to mean 0 and standard deviation 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 1 or self.critic_warmup < 0 or not 0 < self.critic_lr < math.inf:
            raise ConfigError("epochs must be at least 1, critic_warmup at least 0 and critic_lr above 0")
        if not (0 <= self.gamma <= 1 and 0 <= self.lam <= 1 and self.value_clip > 0):
            raise ConfigError("gamma and lam must lie in [0, 1] and value_clip be above 0")
