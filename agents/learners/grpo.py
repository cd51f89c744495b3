"""Group-relative policy optimisation: advantages, loss and update (Shao et al. 2024, arXiv:2402.03300)."""

# B episodes of a step, M policy tokens of a forward

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from verigym.agents.attention import IMPLEMENTATION, require_full_attention
from verigym.agents.episode import Episode
from verigym.agents.learners.advantages import group_advantages, group_statistics
from verigym.agents.learners.batch import MicroBatch, Sequences, check_packing, packed_logits
from verigym.agents.learners.config import GRPOConfig
from verigym.agents.learners.losses import (
    entropy,
    kl_estimate,
    kl_loss,
    policy_loss,
    policy_metrics,
    reduce,
    token_logprobs,
    token_weights,
)
from verigym.agents.learners.optimizer import Optimizer
from verigym.tasks.errors import ConfigError


class GRPO:
    """The learner: `advantages` from rewards, `update` from episodes and advantages.

    Args:
        model: trained in place, in its own precision; dropout stays off.
        reference: frozen; needed if and only if `config.kl_coefficient` is above 0.
        temperature: the sampler's, which also divides the learner's logits.
        max_policy_tokens: the budget of policy tokens per episode, for the dr_grpo reduction.
        autocast: run forwards in this precision (bfloat16 on GPU); weights and losses stay as they are.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: GRPOConfig,
        *,
        reference: PreTrainedModel | None = None,
        temperature: float = 1.0,
        max_policy_tokens: int = 1024,
        autocast: torch.dtype | None = None,
    ) -> None:
        if (reference is not None) != (config.kl_coefficient > 0):
            raise ConfigError("grpo: a reference model goes with kl_coefficient > 0, and only with it")
        for network in (model, *([reference] if reference is not None else [])):
            require_full_attention(network.config)
            network.set_attn_implementation(IMPLEMENTATION)
            check_packing(network.eval(), network.config.get_text_config().vocab_size, network.device)
        self.model, self.reference, self.config = model, reference, config
        self.temperature, self.max_policy_tokens, self.autocast = temperature, max_policy_tokens, autocast
        self.optimizer = Optimizer(model, config.lr, config.adam_beta2, config.weight_decay, config.max_grad_norm)

    def advantages(self, episodes: Sequence[Episode]) -> NDArray[np.float32]:
        """One advantage per episode (B,); NaN for one that could not be judged."""
        rewards = torch.tensor([episode.reward for episode in episodes], dtype=torch.float64)
        groups = torch.tensor([episode.group_id for episode in episodes])
        values, valid = group_advantages(rewards, groups, kind=self.config.advantages)
        return torch.where(valid, values, math.nan).float().numpy()  # type: ignore[no-any-return]

    def update(self, episodes: Sequence[Episode], advantages: NDArray[np.float32]) -> dict[str, float]:
        """One pass over the batch, in `minibatches` optimizer steps; returns the metrics of the pass."""
        batch = self._sequences(episodes, advantages)
        if self.config.minibatches > 1:
            batch = replace(batch, old_logprobs=self._logprobs(self.model, batch))
        if self.reference is not None:
            batch = replace(batch, ref_logprobs=self._logprobs(self.reference, batch))
        steps = [self._step(minibatch) for minibatch in _minibatches(batch, self.config.minibatches)]
        return {
            **group_statistics(
                torch.tensor([episode.reward for episode in episodes], dtype=torch.float64),
                torch.tensor([episode.group_id for episode in episodes]),
            ),
            **{name: float(np.mean([step[name] for step in steps])) for name in (steps[0] if steps else {})},
        }

    def _step(self, batch: Sequences) -> dict[str, float]:
        """One optimizer step: the gradient is that of the whole minibatch, however it is cut."""
        config, seen, kl, loss_sum = self.config, [], 0.0, 0.0
        for micro in batch.micro_batches(config.tokens_per_forward, self.model.device):
            logits = self._forward(self.model, micro)  # (M, V)
            logprobs = token_logprobs(logits, micro.targets, self.temperature)  # (M,)
            # With one step per batch the policy is still the one that sampled: its ratio is 1, its gradient is not 0.
            old_logprobs = logprobs.detach() if micro.old_logprobs is None else micro.old_logprobs
            mask = torch.ones_like(micro.targets)
            losses = policy_loss(
                logprobs,
                old_logprobs,
                micro.advantages,
                mask,
                clip_low=config.clip_low,
                clip_high=config.clip_high,
            )
            if micro.ref_logprobs is not None:
                losses = losses + config.kl_coefficient * kl_loss(logprobs, micro.ref_logprobs, mask, kind=config.kl)
                kl += float(kl_estimate(logprobs.detach(), micro.ref_logprobs, "k3").sum())
            loss = reduce(losses, self._weights(micro, batch))
            loss.backward()
            loss_sum += float(loss.detach())
            seen.append((logprobs.detach(), old_logprobs, micro, entropy(logits.detach(), self.temperature).sum()))
        return {
            "loss": loss_sum,
            "kl": kl / max(1, batch.num_tokens),
            **self._metrics(seen),
            **self.optimizer.step(),
        }

    def _weights(self, micro: MicroBatch, batch: Sequences) -> Tensor:
        return token_weights(
            torch.ones_like(micro.targets),
            micro.lengths,
            reduction=self.config.reduction,
            num_episodes=batch.num_episodes,
            num_tokens=batch.num_tokens,
            max_tokens=self.max_policy_tokens,
        )

    def _metrics(self, seen: list[tuple[Tensor, Tensor, MicroBatch, Tensor]]) -> dict[str, float]:
        if not seen:
            return {}
        flat = [torch.cat(part) for part in zip(*((new, old) for new, old, _, _ in seen), strict=True)]
        sampler = torch.cat([micro.sampler_logprobs for _, _, micro, _ in seen])
        advantages = torch.cat([micro.advantages for _, _, micro, _ in seen])
        bounds = {"clip_low": self.config.clip_low, "clip_high": self.config.clip_high}
        metrics = policy_metrics(*flat, sampler, advantages, torch.ones_like(sampler), **bounds)
        total = sum(float(amount) for *_, amount in seen)
        return {name: float(value) for name, value in metrics.items()} | {"entropy": total / max(1, len(sampler))}

    def _sequences(self, episodes: Sequence[Episode], advantages: NDArray[np.float32]) -> Sequences:
        """The scorable episodes that have a loss; the counts are of all scorable ones."""
        valid = [i for i in range(len(episodes)) if not math.isnan(advantages[i]) and episodes[i].num_policy_tokens]
        # Without a KL loss an advantage of 0 is a gradient of 0: no forward is spent on it.
        kept = [i for i in valid if advantages[i] != 0 or self.config.kl_coefficient > 0]
        return Sequences(
            [episodes[i] for i in kept],
            [np.full(episodes[i].num_policy_tokens, advantages[i], np.float32) for i in kept],
            num_episodes=len(valid),
            num_tokens=sum(episodes[i].num_policy_tokens for i in valid),
        )

    @torch.no_grad()
    def _logprobs(self, model: PreTrainedModel, batch: Sequences) -> list[NDArray[np.float32]]:
        """Log-probabilities of every policy token, episode by episode."""
        found: dict[int, NDArray[np.float32]] = {}
        for micro in batch.micro_batches(self.config.tokens_per_forward, model.device):
            logits = self._forward(model, micro)
            found |= micro.split(token_logprobs(logits, micro.targets, self.temperature))
        return [found[i] for i in range(len(batch.episodes))]

    def _forward(self, model: PreTrainedModel, micro: MicroBatch) -> Tensor:
        with torch.autocast(model.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return packed_logits(model, micro)


def _minibatches(batch: Sequences, count: int) -> list[Sequences]:
    """Whole groups dealt out in order; each part has the counts of its own episodes, scaled to the batch's."""
    if count == 1:
        return [batch]
    groups = list(dict.fromkeys(episode.group_id for episode in batch.episodes))
    parts = [set(part.tolist()) for part in np.array_split(np.array(groups), count) if len(part)]
    return [_part(batch, [i for i, e in enumerate(batch.episodes) if e.group_id in part], len(parts)) for part in parts]


def _part(batch: Sequences, indices: list[int], parts: int) -> Sequences:
    def pick(values: Sequence[NDArray[np.float32]] | None) -> list[NDArray[np.float32]] | None:
        return None if values is None else [values[i] for i in indices]

    return Sequences(
        [batch.episodes[i] for i in indices],
        [batch.advantages[i] for i in indices],
        num_episodes=max(1, round(batch.num_episodes / parts)),
        num_tokens=max(1, round(batch.num_tokens / parts)),
        old_logprobs=pick(batch.old_logprobs),
        ref_logprobs=pick(batch.ref_logprobs),
    )
