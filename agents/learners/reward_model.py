"""Training of a reward model on preferences (Ouyang et al. 2022, arXiv:2203.02155)."""

# P pairs of a step, B episodes, N tokens of a micro-batch end to end

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from verigym.agents.episode import Episode
from verigym.agents.learners.batch import MicroBatch, Sequences, check_packing
from verigym.agents.learners.optimizer import Optimizer
from verigym.agents.learners.pairs import Pair, pair_micro_batches
from verigym.agents.learners.preference import bradley_terry_loss, ranked_right
from verigym.agents.scalar import ScalarModel

Scores = NDArray[np.float64]


class RewardLearner:
    """Trains a scalar model, in place, to score the chosen conversation above the rejected one.

    A conversation's score is the head's number after its last token. The head's bias cancels in every pair, so it
    does not learn; `centre` sets it.
    """

    def __init__(
        self,
        model: ScalarModel,
        *,
        lr: float = 1e-5,
        tokens_per_forward: int = 8192,
        autocast: torch.dtype | None = None,
    ) -> None:
        check_packing(model.trunk)
        model.head.bias.requires_grad_(False)
        self.model, self.tokens_per_forward, self.autocast = model, tokens_per_forward, autocast
        self.optimizer = Optimizer(model, lr)

    def update(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """One optimizer step on the mean Bradley-Terry loss of the pairs, however they are cut into forwards."""
        totals = torch.zeros(3, device=self.model.device)
        for _, micro in pair_micro_batches(pairs, self.tokens_per_forward, self.model.device):
            chosen, rejected = _last_scores(self.model, micro, self.autocast).view(-1, 2).unbind(1)
            loss = bradley_terry_loss(chosen, rejected).sum() / len(pairs)
            loss.backward()
            sums = (loss.detach(), ranked_right(chosen, rejected).sum(), (chosen - rejected).sum())
            totals += torch.stack([part.detach().to(totals.dtype) for part in sums])
        loss_sum, right, margin = totals.tolist()
        means = {"loss": loss_sum, "accuracy": right / len(pairs), "margin": margin / len(pairs)}
        return {**means, **self.optimizer.step()}

    def scores(self, episodes: Sequence[Episode]) -> Scores:
        """The score (B,) of each conversation."""
        return score(self.model, episodes, self.tokens_per_forward, self.autocast)

    @torch.no_grad()
    def centre(self, pairs: Sequence[Pair]) -> None:
        """Moves the scores so that those of these pairs, chosen and rejected, have mean 0."""
        scores = self.scores([episode for pair in pairs for episode in (pair.chosen, pair.rejected)])
        self.model.head.bias.sub_(float(scores.mean()))

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside the trunk's weights."""
        return {"optimizer": self.optimizer.state_dict(), "head": self.model.head.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.model.head.load_state_dict(state["head"])


@torch.no_grad()
def score(
    model: ScalarModel, episodes: Sequence[Episode], tokens_per_forward: int, autocast: torch.dtype | None = None
) -> Scores:
    """The number (B,) that a scalar model has after each episode's last token."""
    found = np.zeros(len(episodes))
    for micro in Sequences.of(episodes).micro_batches(tokens_per_forward, model.device):
        found[micro.indices] = _last_scores(model, micro, autocast).cpu().numpy()
    return found


def _last_scores(model: ScalarModel, micro: MicroBatch, autocast: torch.dtype | None) -> Tensor:
    with torch.autocast(model.device.type, dtype=autocast, enabled=autocast is not None):
        return model(micro)[micro.last]  # type: ignore[no-any-return]  # (B,)
