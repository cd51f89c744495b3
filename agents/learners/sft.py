"""Supervised fine-tuning on demonstrations: the mean negative log-likelihood of the policy's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from verigym.agents.attention import install
from verigym.agents.episode import Episode
from verigym.agents.learners.batch import Sequences, check_packing
from verigym.agents.learners.optimizer import Optimizer
from verigym.agents.learners.scoring import score_tokens


class SFT:
    """The learner of a warm start. Trains `model` in place."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        lr: float = 1e-3,
        tokens_per_forward: int = 8192,
        autocast: torch.dtype | None = None,
    ):
        install(model)
        check_packing(model)
        self.model, self.tokens_per_forward, self.autocast = model, tokens_per_forward, autocast
        self.optimizer = Optimizer(model, lr)

    def update(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """One optimizer step on the tokens that the mask marks; `loss` is in nats per token."""
        tokens = sum(episode.num_policy_tokens for episode in episodes)
        total = 0.0
        for micro in Sequences.of(episodes).micro_batches(self.tokens_per_forward, self.model.device):
            with torch.autocast(self.model.device.type, dtype=self.autocast, enabled=self.autocast is not None):
                logprobs, _ = score_tokens(self.model, micro, 1.0)
            loss = -logprobs.sum() / max(1, tokens)
            loss.backward()
            total += float(loss.detach())
        return {"loss": total, "tokens": float(tokens), **self.optimizer.step()}
