"""What changes over a run's steps: the learning rate, and the weight of the KL. Pure functions."""

import math
from collections.abc import Callable
from typing import Literal, get_args

from verigym.tasks.errors import ConfigError, UnknownNameError

LRSchedule = Literal["constant", "linear", "cosine"]


def lr_schedule(kind: LRSchedule, *, warmup: int, steps: int | None) -> Callable[[int], float]:
    """What to multiply the learning rate by at each step of the run, counted from 0, for `LambdaLR`.

    `warmup` steps rise on a line, (step + 1) / warmup; then `constant` stays at 1, `linear` falls on a line and
    `cosine` on half a wave (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts) towards 0, where they would
    be at step `steps`.
    Departure: neither the first step nor the last has a rate of 0, which would waste its batch.
    Raises UnknownNameError for another kind, ConfigError for a fall without `steps` or within the warm-up.
    """
    if kind not in get_args(LRSchedule):
        raise UnknownNameError.of("learning-rate schedule", kind, get_args(LRSchedule))
    if kind != "constant" and (steps is None or warmup >= steps):
        raise ConfigError(f"the {kind} schedule needs more steps than the {warmup} of its warm-up, not {steps}")

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if kind == "constant" or steps is None:
            return 1.0
        left = max(0.0, (steps - step) / (steps - warmup))
        return left if kind == "linear" else (1 - math.cos(math.pi * left)) / 2

    return factor


def adapt_kl_coefficient(coefficient: float, kl: float, *, target: float, episodes: int, horizon: int) -> float:
    """The weight of the KL after a batch whose KL was `kl`: larger above the target, smaller below it.

    beta (1 + clip(kl / target - 1, -.2, .2) episodes / horizon) (Ziegler et al. 2019, arXiv:1909.08593, section 2.2,
    with the horizon of their code, 10,000 episodes).
    `kl` and `target` are in nats per token, where the paper's are per sample, so that a target suits any length.
    Departure: a batch larger than the horizon counts as one horizon; beta could turn negative.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * min(1.0, episodes / horizon))
