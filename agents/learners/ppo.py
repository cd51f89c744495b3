"""Proximal policy optimisation with a critic (Schulman et al. 2017, arXiv:1707.06347), for multi-turn episodes."""

# B episodes of a batch, T policy tokens of its longest, M policy tokens of a forward

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from verigym.agents.episode import Episode, Truncation, derive_seed
from verigym.agents.learners.advantages import generalized_advantages, whiten
from verigym.agents.learners.batch import MicroBatch, Sequences, Values
from verigym.agents.learners.config import PPOConfig
from verigym.agents.learners.losses import kl_estimate, value_loss
from verigym.agents.learners.policy import Forward, PolicyLearner, Step
from verigym.agents.scalar import ScalarModel

_BUDGETS = (Truncation.TOKENS, Truncation.TURNS, Truncation.CONTEXT)


@dataclass(frozen=True)
class Credit:
    """What PPO knows of each policy token of each learned episode, in the order of the tokens.

    `episodes` are the indices of those that have a loss. `values` are the critic's, of the state before the token;
    `returns` its targets; `advantages` what the policy learns from; `old_logprobs` those before the first step.
    """

    episodes: list[int]
    advantages: list[Values]
    returns: list[Values]
    values: list[Values]
    old_logprobs: list[Values]
    metrics: dict[str, float]


class PPO(PolicyLearner):
    """The learner: `advantages` by the critic, `update` of policy and critic. Arguments as `PolicyLearner`, and

    critic: a scalar model with a trunk of its own, trained in place.
    seed: of the order of episodes in each pass.
    Departure: Adam's epsilon is torch's 1e-8, as GRPO's, not the 1e-5 of openai/baselines.
    """

    config: PPOConfig

    def __init__(
        self, model: PreTrainedModel, config: PPOConfig, *, critic: ScalarModel, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(model, config, **options)
        self._prepare(critic.trunk, config)
        self.ranks.shard(critic, self.autocast)
        self.critic, self.seed, self.updates = critic, seed, 0
        self.critic_optimizer = self._optimizer(critic, config.critic_lr)

    def advantages(self, episodes: Sequence[Episode]) -> Credit:
        """Generalised advantages of every policy token; a turn's reward is that of its last token."""
        kept = [i for i, episode in enumerate(episodes) if self._learned(episode)]
        learned = [episodes[i] for i in kept]
        batch = Sequences.of(learned)
        old_logprobs = self._logprobs(self.model, batch)
        rewards, kl = self._rewards(batch, old_logprobs)
        values, last_values = self._values(batch)
        bootstrap = np.array([self._goes_on(e) * value for e, value in zip(learned, last_values, strict=True)])
        advantages, returns = self._estimate(learned, rewards, values, bootstrap)
        metrics = {"kl": kl, **_value_metrics(values, returns)}
        if self.config.whiten and learned:
            flat = torch.from_numpy(np.concatenate(advantages))
            advantages = _split(whiten(flat, torch.ones_like(flat)).numpy(), advantages)
        return Credit(kept, advantages, returns, values, old_logprobs, metrics)

    def update(self, episodes: Sequence[Episode], advantages: Credit) -> dict[str, float]:
        """`epochs` passes over the batch, each in `minibatches` steps of policy and critic; returns the metrics.

        In the first `critic_warmup` batches the policy stays as it is.
        """
        credit, seen = advantages, list[Forward]()
        policy_steps, critic_steps = list[Step](), list[Step]()
        learned = [episodes[i] for i in credit.episodes]
        whole = replace(Sequences.of(learned, credit.advantages), old_logprobs=credit.old_logprobs)
        minibatches = min(self.config.minibatches, max(1, len(learned)))
        for epoch in range(self.config.epochs):
            rng = np.random.default_rng(derive_seed(self.seed, "ppo", self.updates, epoch))
            for part in np.array_split(rng.permutation(len(learned)), minibatches):
                batch = _part(whole, part.tolist())
                if self.updates >= self.config.critic_warmup:
                    policy_steps.append(self._step(batch, seen))
                critic_steps.append(self._critic_step(batch, credit, part.tolist()))
        parts = zip(credit.advantages, credit.old_logprobs, credit.values, strict=True)
        rows = (dict(zip(("advantages", "logprobs", "values"), part, strict=True)) for part in parts)
        self.columns = dict(zip(learned, rows, strict=True))
        self.updates += 1
        self.critic_optimizer.advance()
        moved = len(learned) if policy_steps else 0  # the KL of a policy that is held says nothing of its weight
        return {
            **_means(policy_steps, ""),
            **_means(critic_steps, "critic_"),
            **self._metrics(self._everyones(seen, learned)),
            **credit.metrics,
            **self._advance(credit.metrics["kl"], moved),
        }

    def state_dict(self) -> dict[str, Any]:
        critic = {"critic": self.critic.state_dict(), "critic_optimizer": self.critic_optimizer.state_dict()}
        return {**super().state_dict(), **critic, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.critic.load_state_dict(state["critic"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.updates = state["updates"]

    def _learned(self, episode: Episode) -> bool:
        """Whether an episode has a loss: it was judged, has tokens, and is not masked as overlong."""
        masked = self.config.overlong == "mask" and episode.overlong
        return not np.isnan(episode.reward) and episode.num_policy_tokens > 0 and not masked

    def _goes_on(self, episode: Episode) -> bool:
        return self.config.at_budget == "bootstrap" and episode.truncation in _BUDGETS

    def _rewards(self, batch: Sequences, old_logprobs: Sequence[Values]) -> tuple[list[Values], float]:
        """The reward of each policy token, less the KL's share, and the mean KL by k3.

        The penalty is k1 of each token, the sampled form of KL(policy || reference) (Stiennon et al. 2020,
        arXiv:2009.01325).
        """
        rewards = [self._turn_rewards(episode) for episode in batch.episodes]
        if self.config.kl_coefficient == 0 or not rewards:
            return rewards, 0.0
        kl = list[Values]()
        for reward, old, ref in zip(rewards, old_logprobs, self._reference_logprobs(batch), strict=True):
            here, there = torch.from_numpy(old), torch.from_numpy(ref)
            reward -= self.kl_coefficient * kl_estimate(here, there, "k1").numpy()
            kl.append(kl_estimate(here, there, "k3").numpy())
        return rewards, float(np.concatenate(kl).mean())

    def _turn_rewards(self, episode: Episode) -> Values:
        rewards = np.zeros(episode.num_policy_tokens)
        for turn, end in zip(episode.turns, _turn_ends(episode), strict=True):
            rewards[end - 1] += turn.reward
        if self.config.overlong == "penalise":
            rewards[-1] += float(self._penalty(episode))
        return rewards

    @torch.no_grad()
    def _values(self, batch: Sequences) -> tuple[list[Values], Values]:
        """The critic's values of the state before each policy token, and after each episode's last token."""
        found: dict[int, tuple[Values, float]] = {}
        for micro in self._share_critic(batch):
            numbers = self._judge(micro)
            before, after = micro.split(numbers[micro.predicting]), numbers[micro.last].tolist()
            found |= {i: (before[i], value) for i, value in zip(micro.indices, after, strict=True)}
        everyones = dict(self.ranks.gather([*found.items()]))
        values = [everyones[i] for i in range(len(batch.episodes))]
        return [row.astype(np.float64) for row, _ in values], np.array([after for _, after in values])

    def _estimate(
        self, episodes: Sequence[Episode], rewards: list[Values], values: list[Values], bootstrap: Values
    ) -> tuple[list[Values], list[Values]]:
        """Advantages and returns of each token; by turns, a turn is one action whose tokens share its advantage."""
        by_turn = self.config.credit == "turn"
        ends = [_turn_ends(episode) for episode in episodes]
        starts = [[0, *end[:-1]] for end in ends]
        if by_turn:
            rewards = [np.add.reduceat(reward, start) for reward, start in zip(rewards, starts, strict=True)]
            values = [value[start] for value, start in zip(values, starts, strict=True)]
        padded, mask = _padded(rewards)
        found = generalized_advantages(
            padded,
            _padded(values)[0],
            mask,
            torch.from_numpy(bootstrap),
            gamma=self.config.gamma,
            lam=self.config.lam,
        )
        advantages, returns = ([row[own].numpy() for row, own in zip(part, mask, strict=True)] for part in found)
        if not by_turn:
            return advantages, returns
        lengths = [np.diff([0, *end]) for end in ends]
        return (
            [np.repeat(part, length) for part, length in zip(advantages, lengths, strict=True)],
            [np.repeat(part, length) for part, length in zip(returns, lengths, strict=True)],
        )

    def _critic_step(self, batch: Sequences, credit: Credit, part: Sequence[int]) -> Step:
        """One optimizer step on the clipped value loss, its mean over tokens."""
        returns, old_values = ([column[i] for i in part] for column in (credit.returns, credit.values))
        total = torch.zeros((), device=self.critic.device)
        for micro in self._share_critic(batch):
            values = self._judge(micro)[micro.predicting]  # (M,)
            targets, old = (micro.flat(column).to(values.dtype) for column in (returns, old_values))
            losses = value_loss(values, old, targets, torch.ones_like(values), clip=self.config.value_clip)
            loss = losses.sum() / batch.num_tokens
            loss.backward()
            total += loss.detach()
        step = self.critic_optimizer.step()
        return Step(self.ranks.sum(total), step["grad_norm"], bool(step["skipped"]))

    def _share_critic(self, batch: Sequences) -> Iterator[MicroBatch]:
        """What this rank passes through the critic of the batch."""
        return self.ranks.share(batch, self.config.tokens_per_forward, self.critic.device, self._judge)

    def _judge(self, micro: MicroBatch) -> Tensor:
        with torch.autocast(self.critic.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return self.critic(micro)  # type: ignore[no-any-return]


def _part(whole: Sequences, part: Sequence[int]) -> Sequences:
    """Some of the episodes, as a batch of their own."""
    batch = Sequences.of([whole.episodes[i] for i in part], [whole.advantages[i] for i in part])
    assert whole.old_logprobs is not None
    return replace(batch, old_logprobs=[whole.old_logprobs[i] for i in part])


def _turn_ends(episode: Episode) -> list[int]:
    """Where each turn ends among the episode's policy tokens."""
    return [int(end) for end in np.cumsum([turn.end - turn.start for turn in episode.turns])]


def _padded(rows: Sequence[Values]) -> tuple[Tensor, Tensor]:
    """Rows as one tensor (B, T), zeros behind their ends, and the mask of what is theirs."""
    width = max((len(row) for row in rows), default=0)
    padded = np.zeros((len(rows), width))
    mask = np.zeros((len(rows), width), np.bool_)
    for row, target, own in zip(rows, padded, mask, strict=True):
        target[: len(row)], own[: len(row)] = row, True
    return torch.from_numpy(padded), torch.from_numpy(mask)


def _split(flat: Values, like: Sequence[Values]) -> list[Values]:
    return np.split(flat, np.cumsum([len(row) for row in like])[:-1])


def _value_metrics(values: Sequence[Values], returns: Sequence[Values]) -> dict[str, float]:
    """Mean value and return, and the share of the returns' variance that the values explain."""
    if not values:
        return {"value_mean": 0.0, "return_mean": 0.0, "explained_variance": 0.0}
    value, target = np.concatenate(list(values)), np.concatenate(list(returns))
    variance = float(np.var(target))
    explained = 1 - float(np.var(target - value)) / variance if variance > 0 else 0.0
    return {"value_mean": float(value.mean()), "return_mean": float(target.mean()), "explained_variance": explained}


def _means(steps: Sequence[Step], prefix: str) -> dict[str, float]:
    """Means over the steps, and how many were skipped; 0 if there were none."""
    return {
        f"{prefix}loss": float(np.mean([step.loss for step in steps])) if steps else 0.0,
        f"{prefix}grad_norm": float(np.mean([step.grad_norm for step in steps])) if steps else 0.0,
        f"{prefix}skipped_steps": float(sum(step.skipped for step in steps)),
    }
