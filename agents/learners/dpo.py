"""Direct preference optimisation: a policy learns from pairs (Rafailov et al. 2023, arXiv:2305.18290)."""

# P pairs of a step, B episodes, M policy tokens of a forward

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from verigym.agents.attention import install
from verigym.agents.learners.batch import MicroBatch, check_packing
from verigym.agents.learners.optimizer import Optimizer
from verigym.agents.learners.pairs import Pair, pair_micro_batches
from verigym.agents.learners.preference import dpo_loss, implicit_rewards, ranked_right
from verigym.agents.learners.scoring import score_tokens


class DPO:
    """The learner. Trains `model` in place, held to what `logprobs` gave before the first step."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        beta: float = 0.1,
        lr: float = 1e-6,
        tokens_per_forward: int = 8192,
        autocast: torch.dtype | None = None,
    ) -> None:
        install(model)
        check_packing(model)
        self.model, self.beta, self.tokens_per_forward, self.autocast = model, beta, tokens_per_forward, autocast
        self.optimizer = Optimizer(model, lr)

    @torch.no_grad()
    def logprobs(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """Log-probabilities (P, 2) of the chosen and the rejected answers, under the model as it is."""
        found = np.zeros((len(pairs), 2))
        for indices, micro in pair_micro_batches(pairs, self.tokens_per_forward, self.model.device):
            found[indices] = self._answers(micro).cpu().numpy()
        return found

    def update(self, pairs: Sequence[Pair], reference: NDArray[np.float64]) -> dict[str, float]:
        """One optimizer step on the mean loss of the pairs, however they are cut into forwards.

        `reference` (P, 2) is what `logprobs` gave for these pairs before the first step.
        """
        totals = torch.zeros(3, device=self.model.device)
        for indices, micro in pair_micro_batches(pairs, self.tokens_per_forward, self.model.device):
            chosen, rejected = self._answers(micro).unbind(1)  # (P,)
            ref = torch.from_numpy(reference[indices]).to(chosen)
            loss = dpo_loss(chosen, rejected, ref[:, 0], ref[:, 1], beta=self.beta).sum() / len(pairs)
            loss.backward()
            rewards = [implicit_rewards(*both, beta=self.beta) for both in ((chosen, ref[:, 0]), (rejected, ref[:, 1]))]
            sums = (loss, ranked_right(*rewards).sum(), (rewards[0] - rewards[1]).sum())
            totals += torch.stack([part.detach().to(totals.dtype) for part in sums])
        loss_sum, right, margin = totals.tolist()
        means = {"loss": loss_sum, "accuracy": right / len(pairs), "margin": margin / len(pairs)}
        return {**means, **self.optimizer.step()}

    def margins(self, pairs: Sequence[Pair], reference: NDArray[np.float64]) -> NDArray[np.float64]:
        """By how much (P,) the implicit reward of each chosen answer is above that of the rejected one."""
        rewards = self.beta * (self.logprobs(pairs) - reference)
        return rewards[:, 0] - rewards[:, 1]  # type: ignore[no-any-return]

    def _answers(self, micro: MicroBatch) -> Tensor:
        """Summed log-probabilities of the policy's own tokens, (P, 2)."""
        with torch.autocast(self.model.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            logprobs, _ = score_tokens(self.model, micro, 1.0)  # (M,)
        return logprobs.new_zeros(len(micro.counts)).index_add(0, micro.rows, logprobs).view(-1, 2)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside the model's weights and the reference's log-probabilities."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
