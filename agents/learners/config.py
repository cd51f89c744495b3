"""The settings of each learner. Imports no torch, so that the command line starts at once."""

import math
from dataclasses import dataclass
from typing import Literal

from verigym.tasks.errors import ConfigError


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters: the policy's own weights stay as they are, and only the adapters learn."""

    rank: int = 0
    """Rank of the adapters; 0 trains all weights and needs no peft (pip install 'verigym[lora]')."""
    alpha: float = 32.0
    """What the adapters add is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Linear layers to adapt, by the last part of their names, such as q_proj; default: all but the head."""

    def __post_init__(self) -> None:
        if self.rank < 0 or not 0 < self.alpha < math.inf:
            raise ConfigError("lora: rank must be at least 0 and alpha above 0")


@dataclass(frozen=True)
class PolicyConfig:
    """What every policy-gradient learner is told."""

    lr: float = 1e-6
    """Learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up: constant, or down to 0 at the run's end, linear or cosine."""
    lr_warmup: int = 0
    """First steps of the run over which the learning rate rises to its full height."""
    loss: Literal["ppo", "gspo", "cispo", "sapo"] = "ppo"
    """What is held back: each token's ratio (ppo), an episode's (gspo), its weight alone (cispo), or softly (sapo)."""
    reduction: Literal["grpo", "dapo", "dr_grpo"] = "dapo"
    """Mean of the loss over episodes (grpo; meant for gspo, sapo), over tokens (dapo), or a fixed length (dr_grpo)."""
    clip_low: float = 0.2
    """ppo: the ratio is clipped from below at 1 - clip_low."""
    clip_high: float = 0.28
    """ppo: the ratio is clipped from above at 1 + clip_high (clip-higher, DAPO)."""
    dual_clip: float = math.inf
    """ppo: the largest ratio of a token with a negative advantage, such as 3 (dual clip)."""
    gspo_clip_low: float = 3e-4
    """gspo: an episode's ratio is clipped from below at 1 - gspo_clip_low."""
    gspo_clip_high: float = 4e-4
    """gspo: an episode's ratio is clipped from above at 1 + gspo_clip_high."""
    cispo_max: float = 5.0
    """cispo: the largest weight of a token."""
    sapo_positive: float = 1.0
    """sapo: temperature of the gate of tokens with a positive advantage; higher closes it sooner."""
    sapo_negative: float = 1.05
    """sapo: temperature of the gate of the other tokens."""
    correction: Literal["none", "token", "sequence"] = "none"
    """Importance weights for a sampler that is not the learner (noise, lag): of each token, or of whole episodes."""
    correction_max: float = 2.0
    """The largest importance weight."""
    mask_gap: float = math.inf
    """Episodes whose mean |log-probability of learner less sampler| is above this have no loss, in nats per token."""
    mask_ratio: float = math.inf
    """Episodes whose probability differs by more than this factor between learner and sampler have no loss."""
    entropy_coefficient: float = 0.0
    """Weight of the policy's entropy, which the loss rewards."""
    overlong: Literal["judge", "mask", "penalise"] = "judge"
    """An episode out of tokens: judge it as it stands, mask its loss, or penalise what comes near a turn's budget."""
    overlong_buffer: float = 0.2
    """Share of a turn's budget over which penalise grows from 0 to 1."""
    kl_coefficient: float = 0.0
    """Weight of the KL to the reference model; 0 loads no reference model."""
    kl_control: Literal["fixed", "adaptive"] = "fixed"
    """Keep kl_coefficient, or move it so that the KL comes to kl_target."""
    kl_target: float = 0.01
    """adaptive: the KL to hold, in nats per token."""
    kl_horizon: int = 10_000
    """adaptive: episodes over which kl_coefficient changes by up to a fifth."""
    minibatches: int = 1
    """Optimizer steps per pass over a batch; each takes whole episodes."""
    tokens_per_forward: int = 8192
    """Tokens of one forward and backward; gradients accumulate and do not depend on it."""
    gradient_checkpointing: bool = False
    """Keep only what enters each layer, and compute layers again for the gradient: less memory, a forward more."""
    compile: bool = False
    """Compile the learner's layers, which needs a C++ compiler: time at the start, less memory at each step."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    adam_beta2: float = 0.95
    """Second-moment decay of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf or min(self.minibatches, self.tokens_per_forward) < 1 or self.lr_warmup < 0:
            raise ConfigError("lr must be above 0, minibatches and tokens_per_forward at least 1, lr_warmup at least 0")
        self._check_loss()
        if not (self.correction_max >= 1 and self.mask_gap > 0 and self.mask_ratio > 1):
            raise ConfigError("correction_max must be at least 1, mask_gap above 0 and mask_ratio above 1")
        if not all(0 <= value < math.inf for value in (self.kl_coefficient, self.weight_decay)):
            raise ConfigError("kl_coefficient and weight_decay must be at least 0")
        if self.kl_control == "adaptive" and not (self.kl_coefficient > 0 < self.kl_target < math.inf):
            raise ConfigError("kl_control adaptive needs kl_coefficient, where it begins, and kl_target above 0")
        if self.kl_horizon < 1:
            raise ConfigError(f"kl_horizon must be at least 1, not {self.kl_horizon}")
        if not 0 <= self.entropy_coefficient < math.inf:
            raise ConfigError("entropy_coefficient must be at least 0")
        if not 0 < self.overlong_buffer <= 1:
            raise ConfigError(f"overlong_buffer is a share of the budget, in (0, 1], not {self.overlong_buffer}")
        if not (self.max_grad_norm > 0 and 0 <= self.adam_beta2 < 1):
            raise ConfigError("max_grad_norm must be above 0 and adam_beta2 lie in [0, 1)")

    def _check_loss(self) -> None:
        lows, highs = (self.clip_low, self.gspo_clip_low), (self.clip_high, self.gspo_clip_high)
        if not (all(0 <= low < 1 for low in lows) and all(0 <= high < math.inf for high in highs)):
            raise ConfigError("clip_low must lie in [0, 1) and clip_high be at least 0, those of gspo too")
        if not (self.dual_clip > 1 + self.clip_high and self.cispo_max > 0):
            raise ConfigError("dual_clip must be above 1 + clip_high, and cispo_max above 0")
        if not all(0 < temperature < math.inf for temperature in (self.sapo_positive, self.sapo_negative)):
            raise ConfigError("sapo_positive and sapo_negative must be above 0")

    @property
    def clip_bounds(self) -> tuple[float, float]:
        """The ratios beyond which the loss holds a token back."""
        return {
            "ppo": (1 - self.clip_low, 1 + self.clip_high),
            "gspo": (1 - self.gspo_clip_low, 1 + self.gspo_clip_high),
            "cispo": (0.0, self.cispo_max),
            "sapo": (0.0, math.inf),
        }[self.loss]


@dataclass(frozen=True)
class GRPOConfig(PolicyConfig):
    """How GRPO turns a group's rewards into a step; its KL is a loss."""

    advantages: Literal["grpo", "dr_grpo", "rloo", "maxrl", "reinforce++", "reinforce++_baseline", "turn_fork"] = "grpo"
    """What a return is compared with: its group, the batch, or other continuations of its turns (docs/learners.md)."""
    forks: int = 4
    """turn_fork: other continuations of a turn's state, at least; what the group lacks of them is played."""
    kl: Literal["k2", "k3"] = "k3"
    """Estimator of the KL loss: k2 or k3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.advantages == "maxrl" and self.overlong == "penalise":
            raise ConfigError("maxrl divides by a group's mean return, which overlong penalise may turn negative")
        if self.forks < 1:
            raise ConfigError(f"forks must be at least 1, not {self.forks}")


@dataclass(frozen=True)
class PPOConfig(PolicyConfig):
    """How PPO turns rewards and a critic's values into steps; its KL is part of the reward."""

    clip_high: float = 0.2
    """ppo: the ratio is clipped from above at 1 + clip_high."""
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
