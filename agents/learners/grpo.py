"""Group-relative policy optimisation: a group's mean return is the baseline (Shao et al. 2024, arXiv:2402.03300)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from verigym.agents.episode import Episode
from verigym.agents.learners.advantages import group_advantages
from verigym.agents.learners.batch import Sequences
from verigym.agents.learners.config import GRPOConfig
from verigym.agents.learners.policy import Forward, PolicyLearner


class GRPO(PolicyLearner):
    """The learner: `advantages` from rewards, `update` from episodes and advantages. Arguments as `PolicyLearner`."""

    def __init__(self, model: PreTrainedModel, config: GRPOConfig, **options: Any) -> None:
        super().__init__(model, config, **options)
        self.config, self.kl = config, config.kl

    def advantages(self, episodes: Sequence[Episode]) -> NDArray[np.float64]:
        """One advantage per episode (B,); NaN for one without a loss: not judged, or overlong and masked.

        A masked episode is still in its group's baseline.
        """
        values, valid = group_advantages(*self._returns(episodes), kind=self.config.advantages)
        if self.config.overlong == "mask":
            valid &= ~torch.tensor([episode.overlong for episode in episodes], dtype=torch.bool)
        return torch.where(valid, values, math.nan).numpy()  # type: ignore[no-any-return]

    def update(self, episodes: Sequence[Episode], advantages: NDArray[np.floating[Any]]) -> dict[str, float]:
        """One pass over the batch, in `minibatches` optimizer steps; returns the metrics of the pass.

        `loss` and `grad_norm` are means over the steps, `skipped_steps` their number with a gradient that was not
        finite; the rest is over the tokens that have a loss, and 0 if there are none.
        """
        batches = self._minibatches(episodes, advantages)
        if len(batches) > 1:
            batches = [replace(batch, old_logprobs=self._logprobs(self.model, batch)) for batch in batches]
        if self.reference is not None:
            batches = [replace(batch, ref_logprobs=self._logprobs(self.reference, batch)) for batch in batches]
        seen: list[Forward] = []
        steps = [self._step(batch, seen) for batch in batches]
        metrics = self._metrics(seen)
        return {
            "loss": float(np.mean([step.loss for step in steps])),
            "grad_norm": float(np.mean([step.grad_norm for step in steps])),
            "skipped_steps": float(sum(step.skipped for step in steps)),
            **metrics,
            **self._advance(metrics["kl"], sum(batch.num_episodes for batch in batches)),
        }

    def _minibatches(self, episodes: Sequence[Episode], advantages: NDArray[np.floating[Any]]) -> list[Sequences]:
        """Whole groups dealt out in order, the scorable ones evenly; each part is one optimizer step."""
        valid = [i for i in range(len(episodes)) if not math.isnan(advantages[i]) and episodes[i].num_policy_tokens]
        groups = list(dict.fromkeys(episodes[i].group_id for i in valid))
        count = max(1, min(self.config.minibatches, len(groups)))
        parts = [set(part.tolist()) for part in np.array_split(np.array(groups), count)]
        return [
            self._sequences([(episodes[i], float(advantages[i])) for i in valid if episodes[i].group_id in part])
            for part in parts
        ]

    def _sequences(self, scored: Sequence[tuple[Episode, float]]) -> Sequences:
        """The episodes of a step that have a loss; the counts are of all its scorable ones."""
        # An advantage of 0 is a gradient of 0, unless KL or entropy have one: no forward is spent on it.
        every = self.config.kl_coefficient > 0 or self.config.entropy_coefficient > 0
        kept = [pair for pair in scored if pair[1] != 0 or every]
        return Sequences(
            [episode for episode, _ in kept],
            [np.full(episode.num_policy_tokens, advantage) for episode, advantage in kept],
            num_episodes=len(scored),
            num_tokens=sum(episode.num_policy_tokens for episode, _ in scored),
        )
