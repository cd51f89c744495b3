"""What every policy-gradient learner does: the loss on the policy, step by step, over batches of whole episodes."""

# B episodes of a step, M policy tokens of a forward

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from verigym.agents.attention import install
from verigym.agents.episode import Episode
from verigym.agents.learners.advantages import group_statistics, informative_groups, overlong_penalty
from verigym.agents.learners.batch import MicroBatch, Sequences, Values, check_packing
from verigym.agents.learners.config import PolicyConfig
from verigym.agents.learners.layers import compile_layers, recompute_layers
from verigym.agents.learners.losses import (
    KLKind,
    cispo_loss,
    clip_shares,
    episode_means,
    gspo_loss,
    importance_weights,
    kl_estimate,
    kl_loss,
    policy_loss,
    policy_metrics,
    reduce,
    sapo_loss,
    sequence_mask,
    token_weights,
)
from verigym.agents.learners.optimizer import Optimizer
from verigym.agents.learners.schedules import adapt_kl_coefficient, lr_schedule
from verigym.agents.learners.scoring import Entropies, score_tokens
from verigym.agents.learners.sharding import ALONE, Ranks
from verigym.agents.lora import adapter_off, has_adapter
from verigym.tasks.errors import ConfigError


@dataclass(frozen=True)
class Forward:
    """What the metrics need of one forward's policy tokens, those of its `episodes` in turn: all (M,).

    `log_ratio` is what the loss clips: of each token, or of its episode. `kept` is False where the loss was masked.
    """

    episodes: Sequence[Episode]

    logprobs: Tensor
    old_logprobs: Tensor
    sampler_logprobs: Tensor
    advantages: Tensor
    log_ratio: Tensor
    kept: Tensor
    entropy: Tensor
    kl: Tensor

    def tensors(self) -> list[Tensor]:
        """All but the episodes, in order, off the device."""
        return [getattr(self, field.name).cpu() for field in fields(self)[1:]]


# Of an episode that was learned from, by name, one value for each policy token in order: `advantages`, the learner's
# own `logprobs` before its step if there was a forward, and the critic's `values` if there is one.
Columns = dict[Episode, dict[str, Values]]


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    loss: float
    grad_norm: float
    skipped: bool


class PolicyLearner(ABC):
    """A learner says what the advantages are and how a batch is passed over; the steps on the policy are here.

    Args:
        model: trained in place, in its own precision; dropout stays off.
        reference: frozen; needed if and only if `config.kl_coefficient` is above 0 and `model` has no adapter: of one
            that has, the reference is the model with the adapter switched off.
        temperature: the sampler's, which also divides the learner's logits.
        max_policy_tokens: the budget of policy tokens per episode, for the dr_grpo reduction.
        steps: the run's, of which each is one `update`; a learning rate that falls needs to know.
        autocast: run forwards in this precision (bfloat16 on GPU); weights and losses stay as they are.
        ranks: the processes that share the models. Each makes the same learner, whose models are cut into shards here,
            and calls the same methods with the same episodes: each learns from its share, all get the same results.

    After an `update`, `columns` says what it knew of each token of the episodes that it learned from.
    """

    kl: KLKind = "k3"  # estimator of the KL loss, where there is one

    def __init__(
        self,
        model: PreTrainedModel,
        config: PolicyConfig,
        *,
        reference: PreTrainedModel | None = None,
        temperature: float = 1.0,
        max_policy_tokens: int = 1024,
        steps: int | None = None,
        autocast: torch.dtype | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        if (reference is not None) != (config.kl_coefficient > 0 and not has_adapter(model)):
            raise ConfigError(
                "a reference model goes with kl_coefficient > 0, and only with it; a model with an adapter is its own"
            )
        self.ranks = ranks
        for network in (model, *([reference] if reference is not None else [])):
            install(network)
            self._prepare(network, config)
            ranks.shard(network, autocast)
        self.model, self.reference, self.config = model, reference, config
        self.temperature, self.max_policy_tokens, self.autocast = temperature, max_policy_tokens, autocast
        self.steps, self.kl_coefficient = steps, config.kl_coefficient
        self.optimizer = self._optimizer(model, config.lr)
        self.columns: Columns = {}

    @staticmethod
    def _prepare(network: PreTrainedModel, config: PolicyConfig) -> None:
        """How the layers of a model, or of a critic's trunk, run; and that packed episodes do not meet in them."""
        if config.compile:
            compile_layers(network)
        if config.gradient_checkpointing:
            recompute_layers(network)
        check_packing(network)

    @abstractmethod
    def advantages(self, episodes: Sequence[Episode]) -> Any:
        """How much better than expected each episode, or each of its tokens, went; for `update`."""

    @abstractmethod
    def update(self, episodes: Sequence[Episode], advantages: Any) -> dict[str, float]:
        """Passes over the batch; returns its metrics."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs beside the model's weights."""
        return {"optimizer": self.optimizer.state_dict(), "kl_coefficient": self.kl_coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.config.kl_control == "adaptive":
            self.kl_coefficient = state["kl_coefficient"]

    def statistics(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Shares of the groups whose returns are all equal; see `group_statistics`."""
        return group_statistics(*self._returns(episodes))

    def informative(self, episodes: Sequence[Episode]) -> list[Episode]:
        """The episodes of groups that teach something: their returns are not all equal."""
        returns, group_ids = self._returns(episodes)
        teaching = set(informative_groups(returns, group_ids).tolist())
        return [episode for episode in episodes if episode.group_id in teaching]

    def _returns(self, episodes: Sequence[Episode]) -> tuple[Tensor, Tensor]:
        """What the group compares (B,), NaN where an episode could not be judged, and group ids (B,)."""
        returns = torch.tensor([episode.reward for episode in episodes], dtype=torch.float64)
        if self.config.overlong == "penalise":
            returns = returns + torch.tensor(
                [float(self._penalty(episode)) for episode in episodes], dtype=torch.float64
            )
        return returns, torch.tensor([episode.group_id for episode in episodes], dtype=torch.int64)

    def _penalty(self, episode: Episode) -> Tensor:
        """That of its longest turn, each by its own budget; of an episode whose prompt left no room, -1."""
        lengths = torch.tensor([turn.end - turn.start for turn in episode.turns], dtype=torch.float64)
        limits = torch.tensor([turn.limit for turn in episode.turns], dtype=torch.float64)
        penalties = overlong_penalty(lengths, limits, buffer=self.config.overlong_buffer)
        worst = torch.full((1,), -1.0 if episode.overlong else 0.0, dtype=torch.float64)
        return torch.cat([penalties, worst]).min()

    def _step(self, batch: Sequences, seen: list[Forward]) -> Step:
        """One optimizer step: the gradient is that of the whole minibatch, however it is cut."""
        config, loss_sum = self.config, torch.zeros((), device=self.model.device)
        for micro in self._share(self.model, batch):
            logprobs, entropy = self._scores(self.model, micro, self._entropies)  # (M,)
            # With one step per batch the policy is still the one that sampled: its ratio is 1, its gradient is not 0.
            old_logprobs = logprobs.detach() if micro.old_logprobs is None else micro.old_logprobs
            kept = self._kept(old_logprobs, micro)  # (M,)
            losses = self._policy_losses(logprobs, old_logprobs, kept, micro)
            losses = losses * self._corrections(old_logprobs, kept, micro)
            kl = torch.zeros_like(logprobs.detach())
            if micro.ref_logprobs is not None:
                losses = losses + self.kl_coefficient * kl_loss(logprobs, micro.ref_logprobs, kept, kind=self.kl)
                kl = kl_estimate(logprobs.detach(), micro.ref_logprobs, "k3")
            losses = losses - config.entropy_coefficient * entropy
            loss = reduce(losses, self._weights(micro, batch, kept, logprobs.dtype))
            loss.backward()
            loss_sum += loss.detach()
            seen.append(
                Forward(
                    [batch.episodes[i] for i in micro.indices],
                    logprobs.detach(),
                    old_logprobs,
                    micro.sampler_logprobs,
                    micro.advantages,
                    self._log_ratio(logprobs.detach() - old_logprobs, micro),
                    kept,
                    entropy.detach(),
                    kl,
                )
            )
        step = self.optimizer.step()
        return Step(self.ranks.sum(loss_sum), step["grad_norm"], bool(step["skipped"]))

    def _policy_losses(self, logprobs: Tensor, old_logprobs: Tensor, kept: Tensor, micro: MicroBatch) -> Tensor:
        """The loss of each policy token (M,), before it is weighed."""
        config = self.config
        inputs = (logprobs, old_logprobs, micro.advantages.to(logprobs.dtype), kept)
        if config.loss == "gspo":
            return gspo_loss(*inputs, micro.rows, clip_low=config.gspo_clip_low, clip_high=config.gspo_clip_high)
        if config.loss == "cispo":
            return cispo_loss(*inputs, ratio_max=config.cispo_max)
        if config.loss == "sapo":
            above, below = config.sapo_positive, config.sapo_negative
            return sapo_loss(*inputs, positive_temperature=above, negative_temperature=below)
        return policy_loss(*inputs, clip_low=config.clip_low, clip_high=config.clip_high, dual_clip=config.dual_clip)

    def _log_ratio(self, log_ratio: Tensor, micro: MicroBatch) -> Tensor:
        """What the loss clips: the log-ratio of each token (M,), or the mean of its episode's."""
        by_episode = self.config.loss == "gspo"
        return episode_means(log_ratio, torch.ones_like(log_ratio), micro.rows) if by_episode else log_ratio

    def _kept(self, old_logprobs: Tensor, micro: MicroBatch) -> Tensor:
        """True (M,) on the tokens of episodes that the sampler saw much as the learner does."""
        return sequence_mask(
            old_logprobs,
            micro.sampler_logprobs,
            torch.ones_like(micro.targets),
            micro.rows,
            max_gap=self.config.mask_gap,
            max_ratio=self.config.mask_ratio,
        )

    def _corrections(self, old_logprobs: Tensor, kept: Tensor, micro: MicroBatch) -> Tensor:
        """The importance weight of each policy token (M,)."""
        config = self.config
        return importance_weights(
            old_logprobs,
            micro.sampler_logprobs,
            kept,
            micro.rows,
            level=config.correction,
            maximum=config.correction_max,
        )

    def _weights(self, micro: MicroBatch, batch: Sequences, kept: Tensor, dtype: torch.dtype) -> Tensor:
        return token_weights(
            kept,
            micro.lengths,
            reduction=self.config.reduction,
            num_episodes=batch.num_episodes,
            num_tokens=batch.num_tokens,
            max_tokens=self.max_policy_tokens,
            dtype=dtype,
        )

    def _metrics(self, seen: Sequence[Forward]) -> dict[str, float]:
        """Means over the policy tokens of all forwards."""

        def flat(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in seen]) if seen else torch.zeros(0)

        kl, entropy, kept = flat("kl"), flat("entropy"), flat("kept")
        every, count = torch.ones_like(kl), max(1, len(kl))
        low, high = self.config.clip_bounds
        metrics = policy_metrics(flat("logprobs"), flat("old_logprobs"), flat("sampler_logprobs"), every)
        metrics |= clip_shares(flat("log_ratio"), flat("advantages"), every, low=low, high=high)
        metrics |= {"entropy": entropy.sum() / count, "kl": kl.sum() / count, "masked_share": (kept == 0).sum() / count}
        return {name: float(value) for name, value in metrics.items()}

    def _optimizer(self, network: torch.nn.Module, lr: float) -> Optimizer:
        config = self.config
        schedule = lr_schedule(config.lr_schedule, warmup=config.lr_warmup, steps=self.steps)
        return Optimizer(network, lr, config.adam_beta2, config.weight_decay, config.max_grad_norm, schedule=schedule)

    def _advance(self, kl: float, episodes: int) -> dict[str, float]:
        """To the run's next step: the learning rate and the KL's weight of this one, as metrics, and those to come."""
        metrics = {"lr": self.optimizer.lr, "kl_coefficient": self.kl_coefficient}
        self.optimizer.advance()
        if self.config.kl_control == "adaptive":
            self.kl_coefficient = adapt_kl_coefficient(
                self.kl_coefficient,
                kl,
                target=self.config.kl_target,
                episodes=episodes,
                horizon=self.config.kl_horizon,
            )
        return metrics

    @torch.no_grad()
    def _logprobs(self, model: PreTrainedModel, batch: Sequences) -> list[Values]:
        """Log-probabilities of every policy token, episode by episode."""
        found: dict[int, Values] = {}
        for micro in self._share(model, batch):
            found |= micro.split(self._scores(model, micro, "none")[0])
        everyones = dict(self.ranks.gather([*found.items()]))
        return [everyones[i] for i in range(len(batch.episodes))]

    def _reference_logprobs(self, batch: Sequences) -> list[Values]:
        """Those under the reference model."""
        if self.reference is not None:
            return self._logprobs(self.reference, batch)
        with adapter_off(self.model):
            return self._logprobs(self.model, batch)

    def _share(self, model: PreTrainedModel, batch: Sequences) -> Iterator[MicroBatch]:
        """What this rank passes through a model of the batch."""
        tokens, device = self.config.tokens_per_forward, model.device
        return self.ranks.share(batch, tokens, device, lambda micro: self._scores(model, micro, "none")[0])

    def _everyones(self, seen: Sequence[Forward], episodes: Sequence[Episode]) -> list[Forward]:
        """The forwards of all ranks; they are of `episodes`."""
        numbers = {episode: number for number, episode in enumerate(episodes)}
        own = [([numbers[episode] for episode in part.episodes], part.tensors()) for part in seen]
        return [Forward([episodes[i] for i in places], *tensors) for places, tensors in self.ranks.gather(own)]

    @property
    def _entropies(self) -> Entropies:
        return "gradient" if self.config.entropy_coefficient > 0 else "value"

    def _scores(self, model: PreTrainedModel, micro: MicroBatch, entropies: Entropies) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies (M,)."""
        with torch.autocast(model.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return score_tokens(model, micro, self.temperature, entropies=entropies)
