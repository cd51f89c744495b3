"""The settings of each learner. Imports no torch, so that the command line starts at once."""

import math
from dataclasses import dataclass
from typing import Literal

from verigym.tasks.errors import ConfigError


@dataclass(frozen=True)
class GRPOConfig:
    """How GRPO turns a group's rewards into a step."""

    lr: float = 1e-6
    """Learning rate of AdamW."""
    advantages: Literal["grpo", "dr_grpo"] = "grpo"
    """Group baseline: grpo divides by the group's standard deviation, dr_grpo does not."""
    reduction: Literal["grpo", "dapo", "dr_grpo"] = "dapo"
    """Mean of the loss over episodes (grpo), over tokens (dapo), or over a fixed length (dr_grpo)."""
    clip_low: float = 0.2
    """The ratio is clipped from below at 1 - clip_low."""
    clip_high: float = 0.28
    """The ratio is clipped from above at 1 + clip_high (clip-higher, DAPO)."""
    kl_coefficient: float = 0.0
    """Weight of the KL loss against the reference model; 0 loads no reference model."""
    kl: Literal["k2", "k3"] = "k3"
    """Estimator of the KL loss: k2 or k3."""
    overlong: Literal["judge", "mask", "penalise"] = "judge"
    """An episode that ran out of tokens: judge it as it stands, mask it (no loss; DAPO's overlong filtering), or
    penalise also what comes near the budget of a turn (DAPO's soft overlong punishment)."""
    overlong_buffer: float = 0.2
    """Share of a turn's budget over which penalise grows from 0 to 1."""
    minibatches: int = 1
    """Optimizer steps per batch; each takes whole groups."""
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
            raise ConfigError("grpo: lr must be above 0, minibatches and tokens_per_forward at least 1")
        if not (0 <= self.clip_low < 1 and 0 <= self.clip_high < math.inf):
            raise ConfigError("grpo: clip_low must lie in [0, 1) and clip_high be at least 0")
        if not (0 <= self.kl_coefficient < math.inf and 0 <= self.weight_decay < math.inf):
            raise ConfigError("grpo: kl_coefficient and weight_decay must be at least 0")
        if not 0 < self.overlong_buffer <= 1:
            raise ConfigError(f"grpo: overlong_buffer is a share of the budget, in (0, 1], not {self.overlong_buffer}")
        if not (self.max_grad_norm > 0 and 0 <= self.adam_beta2 < 1):
            raise ConfigError("grpo: max_grad_norm must be above 0 and adam_beta2 lie in [0, 1)")
