"""Forked baselines: the mean return of other continuations from the state in which a turn began."""

# B episodes, N turns of all of them, T policy tokens of an episode

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from verigym.agents.episode import Episode, Plan, Start, derive_seed
from verigym.agents.learners.advantages import group_advantages
from verigym.agents.learners.batch import Values


def turn_advantages(episodes: Sequence[Episode], returns: Tensor) -> list[Values]:
    """For each episode the advantages (T,) of its policy tokens: what a turn brought less what others bring from there.

    A_t = G_t - mean of G over the other continuations of the state before turn t (that of the first turn is the
    group's own), where G is the sum of rewards from there on. No critic: it is Monte Carlo's baseline of each state, as
    in VinePPO (Kazemnejad et al. 2024, arXiv:2410.01679), and in expectation the true gradient. Other continuations
    are those of the group's other episodes and of forks (`plan_forks`). `returns` (B,) are the episodes', a penalty for
    length included. An unscorable episode (NaN) is in no baseline, and it and a fork come back as NaN: without a loss.
    A turn of whose state there is no other continuation has the advantage 0.
    Departures: states are those before turns, not before steps of reasoning; G_t is the turn's own return, not the
    baseline of the state after it, so that an error of a baseline cannot bias; no loss is taken on forks.
    """
    if not episodes:  # dynamic sampling may leave none
        return []
    to_go = [_to_go(episode, float(total)) for episode, total in zip(episodes, returns, strict=True)]
    numbers = dict[tuple[int, bytes], int]()
    states = [numbers.setdefault(state, len(numbers)) for episode in episodes for state in _states(episode)]
    flat, valid = group_advantages(torch.from_numpy(np.concatenate(to_go)), torch.tensor(states), kind="rloo")
    by_turn = np.split(torch.where(valid, flat, torch.nan).numpy(), np.cumsum([len(part) for part in to_go])[:-1])
    return [_of_tokens(episode, values) for episode, values in zip(episodes, by_turn, strict=True)]


def plan_forks(played: Sequence[tuple[Plan, Episode]], continuations: int) -> list[Plan]:
    """The episodes to play from turns' states, so that each turn has at least so many other continuations.

    A state is one for all of its group that reached it by the same tokens. Unscorable episodes are left out.
    """
    judged = [(plan, episode) for plan, episode in played if not np.isnan(episode.reward)]
    members = Counter(state for _, episode in judged for state in _states(episode))
    forks = []
    for plan, episode in judged:
        for turn, state in enumerate(_states(episode)):
            lacking = continuations + 1 - members.pop(state, continuations + 1)  # a state is forked once
            start = Start(turn, episode.token_ids[: episode.turns[turn].start], episode.snapshots[turn])
            seeds = [derive_seed(plan.sampling_seed, "fork", turn, number) for number in range(lacking)]
            forks += [Plan(plan.env, plan.task_id, plan.group_id, plan.seed, seed, start) for seed in seeds]
    return forks


def _states(episode: Episode) -> list[tuple[int, bytes]]:
    """The state before each turn: the same group and the same tokens are the same state of the environment."""
    return [(episode.group_id, episode.token_ids[: turn.start].tobytes()) for turn in episode.turns]


def _to_go(episode: Episode, total: float) -> Values:
    """The return from each turn on, where that of the whole episode is `total`."""
    rewards = np.array([turn.reward for turn in episode.turns], np.float64)
    return total - (np.cumsum(rewards) - rewards)


def _of_tokens(episode: Episode, by_turn: Values) -> Values:
    if episode.forked_turn is not None:
        return np.full(episode.num_policy_tokens, np.nan)
    return np.repeat(by_turn, [turn.end - turn.start for turn in episode.turns])
