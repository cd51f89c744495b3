"""Group-relative policy optimisation: a group's mean return is the baseline (Shao et al. 2024, arXiv:2402.03300)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from verigym.agents.episode import Episode
from verigym.agents.learners.advantages import group_advantages
from verigym.agents.learners.batch import Sequences, Values
from verigym.agents.learners.config import GRPOConfig
from verigym.agents.learners.policy import Columns, Forward, PolicyLearner
from verigym.agents.learners.turn_fork import turn_advantages


class GRPO(PolicyLearner):
    """The learner: `advantages` from rewards, `update` from episodes and advantages. Arguments as `PolicyLearner`."""

    config: GRPOConfig

    def __init__(self, model: PreTrainedModel, config: GRPOConfig, **options: Any) -> None:
        super().__init__(model, config, **options)
        self.kl = config.kl

    def advantages(self, episodes: Sequence[Episode]) -> list[Values]:
        """One advantage per episode, or (turn_fork) one per policy token of each; NaN for an episode without a loss.

        That is one that was not judged, a fork, or overlong and masked; the last is still in its group's baseline.
        """
        returns, group_ids = self._returns(episodes)
        if self.config.advantages == "turn_fork":
            values = turn_advantages(episodes, returns)
        else:
            each, valid = group_advantages(returns, group_ids, kind=self.config.advantages)
            values = list(torch.where(valid, each, math.nan).numpy())
        masked = [self.config.overlong == "mask" and episode.overlong for episode in episodes]
        return [value * math.nan if is_masked else value for value, is_masked in zip(values, masked, strict=True)]

    def update(self, episodes: Sequence[Episode], advantages: Sequence[Values]) -> dict[str, float]:
        """One pass over the batch, in `minibatches` optimizer steps; returns the metrics of the pass.

        `loss` and `grad_norm` are means over the steps, `skipped_steps` their number with a gradient that was not
        finite; the rest is over the tokens that have a loss, and 0 if there are none.
        """
        batches = self._minibatches(episodes, advantages)
        if len(batches) > 1:
            batches = [replace(batch, old_logprobs=self._logprobs(self.model, batch)) for batch in batches]
        if self.config.kl_coefficient > 0:
            batches = [replace(batch, ref_logprobs=self._reference_logprobs(batch)) for batch in batches]
        seen: list[Forward] = []
        steps = [self._step(batch, seen) for batch in batches]
        seen = self._everyones(seen, episodes)
        metrics = self._metrics(seen)
        self.columns = _columns(episodes, advantages, seen)
        return {
            "loss": float(np.mean([step.loss for step in steps])),
            "grad_norm": float(np.mean([step.grad_norm for step in steps])),
            "skipped_steps": float(sum(step.skipped for step in steps)),
            **metrics,
            **self._advance(metrics["kl"], sum(batch.num_episodes for batch in batches)),
        }

    def _minibatches(self, episodes: Sequence[Episode], advantages: Sequence[Values]) -> list[Sequences]:
        """Whole groups dealt out in order, the scorable ones evenly; each part is one optimizer step."""
        valid = [i for i, e in enumerate(episodes) if e.num_policy_tokens and not np.isnan(advantages[i]).any()]
        groups = list(dict.fromkeys(episodes[i].group_id for i in valid))
        count = max(1, min(self.config.minibatches, len(groups)))
        parts = [set(part.tolist()) for part in np.array_split(np.array(groups), count)]
        return [
            self._sequences([(episodes[i], advantages[i]) for i in valid if episodes[i].group_id in part])
            for part in parts
        ]

    def _sequences(self, scored: Sequence[tuple[Episode, Values]]) -> Sequences:
        """The episodes of a step that have a loss; the counts are of all its scorable ones."""
        # An advantage of 0 is a gradient of 0, unless KL or entropy have one: no forward is spent on it.
        every = self.config.kl_coefficient > 0 or self.config.entropy_coefficient > 0
        kept = [pair for pair in scored if np.any(pair[1]) or every]
        return Sequences(
            [episode for episode, _ in kept],
            [np.broadcast_to(advantage, episode.num_policy_tokens) for episode, advantage in kept],
            num_episodes=len(scored),
            num_tokens=sum(episode.num_policy_tokens for episode, _ in scored),
        )


def _columns(episodes: Sequence[Episode], advantages: Sequence[Values], seen: Sequence[Forward]) -> Columns:
    """The advantages of every episode with a loss, and the log-probabilities of those that had a forward."""
    columns: Columns = {
        episode: {"advantages": np.broadcast_to(advantage, episode.num_policy_tokens)}
        for episode, advantage in zip(episodes, advantages, strict=True)
        if episode.num_policy_tokens and not np.isnan(advantage).any()
    }
    for part in seen:
        ends = np.cumsum([episode.num_policy_tokens for episode in part.episodes])
        for episode, logprobs in zip(part.episodes, np.split(part.old_logprobs.numpy(), ends[:-1]), strict=True):
            columns[episode]["logprobs"] = logprobs
    return columns
