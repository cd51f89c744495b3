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


def refuse_drift(metrics: Mapping[str, float], config: TrainConfig, step: int) -> None:
    """Raises RunError if the engine sampled from another distribution than the learner's, and nothing corrects it."""
    gap = metrics["sampler_gap_mean"]
    if not gap <= config.max_drift and config.policy.correction == "none":
        raise RunError(
            f"in step {step} the engine's log-probabilities are {gap:.2g} nats per token off the learner's, above "
            f"max_drift {config.max_drift:g}; find out why, or set correction to token in the settings of "
            f"{config.learner} to go on with importance weights"
        )
