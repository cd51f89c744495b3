"""What a step is logged with: its episodes, its sync, its seconds; and how far engine and learner may drift apart."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from verigym.agents.engines.sync import SyncReport
from verigym.agents.episode import Episode, Truncation, mean_reward
from verigym.config import TrainConfig
from verigym.tasks.errors import RunError
from verigym.verifiers.verdict import Outcome


class Times:
    """Seconds between marks, as metrics `time/...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def mark(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[f"time/{name}"] = now - self._last
        self._last = now


def episode_metrics(episodes: Sequence[Episode]) -> dict[str, Any]:
    """How the episodes of a step went."""
    judged = [episode for episode in episodes if not math.isnan(episode.reward)]
    tokens = [episode.num_policy_tokens for episode in episodes]
    return {
        "reward": mean_reward(episodes),
        "pass_rate": float(np.mean([e.verdict.outcome is Outcome.CORRECT for e in judged])) if judged else math.nan,
        "episodes": len(episodes),
        "infra_errors": len(episodes) - len(judged),
        "truncated_share": float(np.mean([episode.truncated for episode in episodes])),
        **{f"truncated/{why}": float(np.mean([e.truncation is why for e in episodes])) for why in Truncation},
        "turns": float(np.mean([len(episode.turns) for episode in episodes])),
        "policy_tokens": int(sum(tokens)),
        "policy_tokens_per_episode": float(np.mean(tokens)),
    }


def sync_metrics(report: SyncReport) -> dict[str, Any]:
    """What the sync after a step proved."""
    return {"sync/version": report.version, "sync/slope": report.slope, "sync/proven": float(report.proven)}


def staleness_metrics(episodes: Sequence[Episode], version: int, allowed: int) -> dict[str, float]:
    """Versions between the weights that sampled each policy token and `version`, which learns from it.

    Raises RunError for a token that is more than `allowed` versions old, or newer than the learner.
    """
    ages = version - np.concatenate([episode.versions[episode.mask] for episode in episodes] or [np.zeros(0, np.int64)])
    if not ages.size:
        return {"staleness_mean": 0.0, "staleness_max": 0.0}
    if not (ages.min() >= 0 and ages.max() <= allowed):
        raise RunError(
            f"step {version + 1} would learn from tokens that are {ages.min()} to {ages.max()} versions old; at most "
            f"{allowed} are allowed (staleness)"
        )
    return {"staleness_mean": float(ages.mean()), "staleness_max": float(ages.max())}


def refuse_drift(metrics: Mapping[str, float], config: TrainConfig, step: int) -> None:
    """Raises RunError if the engine samples from another distribution than the learner's, on the same weights.

    A correction that is set for that lets the run go on. One that is set for staleness does not: it is meant for
    what older weights sampled, and with staleness `sampler_gap_mean` is of one version (`Beside.gaps`).
    """
    gap = metrics["sampler_gap_mean"]
    if gap <= config.max_drift or (config.policy.correction != "none" and not config.staleness):
        return
    remedy = "raise max_drift" if config.staleness else f"set correction to token in the settings of {config.learner}"
    raise RunError(
        f"in step {step} the engine's log-probabilities are {gap:.2g} nats per token off the learner's, above "
        f"max_drift {config.max_drift:g}; find out why, or {remedy} to go on with importance weights"
    )
