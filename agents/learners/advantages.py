"""Advantages: how much better an episode went than its group did, or a token than the critic expected."""

from typing import Literal, get_args

import torch
from torch import Tensor

from verigym.tasks.errors import ConfigError, UnknownNameError

# B episodes, T tokens, G episodes of one group
# A reward of NaN marks an unscorable episode (INFRA_ERROR).

GroupAdvantage = Literal["grpo", "dr_grpo", "rloo", "maxrl", "reinforce++", "reinforce++_baseline"]


def group_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    *,
    kind: GroupAdvantage = "grpo",
    std_epsilon: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Each episode's return against those of its group, or of the batch: `(advantages, valid)`, both (B,).

    - grpo (R - mean) / (std + std_epsilon) (Shao et al. 2024, arXiv:2402.03300)
    - dr_grpo R - mean (Liu et al. 2025, arXiv:2503.20783): in expectation (G-1)/G of the true gradient, to
      which grpo's is not parallel
    - rloo G/(G-1) (R - mean), the return less the mean of the other G-1 (Ahmadian et al. 2024, arXiv:2402.14740):
      in expectation the true gradient
    - maxrl (R - mean) / mean, 0 where the mean is 0 (Tajwar, Zeng et al. 2026, "Maximum Likelihood Reinforcement
      Learning", arXiv:2602.02710, algorithm 1). For a chance p of success it is in expectation
      (1 - (1-p)^(G-1)) / p times the true gradient: that of log p as G grows
    - reinforce++ (R - mean) / (std + std_epsilon) of the batch, not of the group (Hu 2025, arXiv:2501.03262)
    - reinforce++_baseline R less its group's mean, over the batch's std of that (the same paper, for G > 1)
    `rewards` (B,) are the returns of episodes, in the task's units; `group_ids` (B,) are integers, equal for
    episodes that started from one state, in any order. An unscorable episode (NaN) enters no baseline and
    comes back with advantage 0 and valid False: leave it out of the mask and of the counts B and N.
    The papers say neither: the std divides by G-1 (B-1), and std_epsilon is 1e-4, as in TRL.
    Departures: a group whose scorable returns are equal, or are but one, gets exactly 0, and so does a batch for
    reinforce++. The mean of equal numbers may round, and a division by std_epsilon would make a signal of the rest.
    reinforce++ counts episodes, not tokens, in its batch statistics, so that long ones weigh no more; its KL is the
    learner's loss, not k1 in the reward; the batch mean of centred returns, 0 but for rounding, is not subtracted.
    maxrl, which the paper derives for returns of 0 and 1, takes any return of at least 0.
    Raises UnknownNameError for another kind, ValueError for shapes that differ or an infinite reward, ConfigError
    for a negative return with maxrl, whose sign its mean would turn.
    """
    if kind not in get_args(GroupAdvantage):
        raise UnknownNameError.of("group advantage", kind, get_args(GroupAdvantage))
    rewards, valid = _check(rewards, group_ids)
    if kind == "maxrl" and (rewards < 0).any():
        raise ConfigError(f"maxrl needs returns of at least 0, not {float(rewards[valid].min()):g}: use rloo or grpo")
    advantages = torch.zeros_like(rewards)
    if kind == "reinforce++":
        group_ids = torch.zeros_like(group_ids)  # the batch is one group
    for group_id in group_ids.unique():
        members = (group_ids == group_id) & valid
        if not _without_variance(rewards[members]):
            advantages[members] = _against_the_group(rewards[members], kind, std_epsilon)
    if kind == "reinforce++_baseline" and not _without_variance(advantages[valid]):
        advantages[valid] /= advantages[valid].std(correction=1) + std_epsilon
    return advantages, valid


def informative_groups(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """The ids of the groups whose scorable returns are not all equal, ascending; the others have no gradient.

    Dynamic sampling keeps these (Yu et al. 2025, DAPO, arXiv:2503.14476). Shapes and errors as `group_advantages`.
    """
    rewards, valid = _check(rewards, group_ids)
    groups: Tensor = group_ids.unique()
    varied = [not _without_variance(rewards[(group_ids == group_id) & valid]) for group_id in groups]
    return groups[torch.tensor(varied, dtype=torch.bool)]


def overlong_penalty(lengths: Tensor, limits: Tensor, *, buffer: float) -> Tensor:
    """Soft overlong punishment (Yu et al. 2025, DAPO, arXiv:2503.14476, equation 13): from 0 down to -1.

    `lengths` (B,) in tokens and `limits` (B,), the most tokens each could have had. 0 up to (1 - buffer) * limit,
    then linear, and -1 at the limit. `buffer`, a share in (0, 1], is the paper's L_cache / L_max.
    Raises ValueError for a buffer outside (0, 1].
    """
    if not 0 < buffer <= 1:
        raise ValueError(f"buffer is a share of the limit, in (0, 1], not {buffer}")
    return ((1 - buffer) * limits - lengths).div(buffer * limits).clamp(-1, 0)


def group_statistics(
    rewards: Tensor,
    group_ids: Tensor,
    *,
    failed_reward: float = 0.0,
    solved_reward: float = 1.0,
) -> dict[str, float]:
    """Shares of the groups that teach nothing, because all their scorable returns are equal.

    `zero_variance_share` is the sum of `all_failed_share` (returns <= failed_reward: the task is too hard),
    `all_solved_share` (returns >= solved_reward: too easy) and `all_other_share` (something in between).
    A group of one scorable episode has no variance; one of none is not counted. Without any group all are 0.
    Shapes, units and errors are those of `group_advantages`.
    """
    rewards, valid = _check(rewards, group_ids)
    groups = [rewards[(group_ids == group_id) & valid] for group_id in group_ids[valid].unique()]
    constant = [group[0].item() for group in groups if _without_variance(group)]
    failed = sum(reward <= failed_reward for reward in constant)
    solved = sum(reward >= solved_reward for reward in constant)
    total = max(len(groups), 1)
    return {
        "zero_variance_share": len(constant) / total,
        "all_failed_share": failed / total,
        "all_solved_share": solved / total,
        "all_other_share": (len(constant) - failed - solved) / total,
    }


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    bootstrap: Tensor,
    *,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the policy's own tokens (Schulman et al. 2015, arXiv:1506.02438).

    delta_t = r_t + gamma V_next - V_t and A_t = delta_t + gamma lam A_next, where next is the policy's next token,
    across the words of tools and users. `rewards`, `values` (V_t of the state before token t) and `mask` (1 on the
    policy's tokens) are (B, T); `bootstrap` (B,) is the value after the last token: 0 where the task ended.
    Returns `(advantages, returns)`, both (B, T), returns = advantages + values; 0 off the mask, whatever is there.
    Raises ValueError for shapes that differ, and for gamma or lam outside [0, 1].
    """
    if not (rewards.shape == values.shape == mask.shape and bootstrap.shape == rewards.shape[:1]):
        raise ValueError(
            f"rewards {tuple(rewards.shape)}, values {tuple(values.shape)} and mask {tuple(mask.shape)} must have one "
            f"shape (B, T), and bootstrap {tuple(bootstrap.shape)} the shape (B,)"
        )
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma and lam must lie in [0, 1], not {gamma} and {lam}")
    policy = mask.bool()
    advantages = torch.zeros_like(values)
    next_value, next_advantage = bootstrap, torch.zeros_like(bootstrap)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        own = policy[:, t]
        advantages[:, t] = torch.where(own, advantage, 0.0)
        next_value = torch.where(own, values[:, t], next_value)
        next_advantage = torch.where(own, advantage, next_advantage)
    return advantages, torch.where(policy, advantages + values, 0.0)


def whiten(advantages: Tensor, mask: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """Advantages with mean 0 and standard deviation 1 over the tokens of the mask; 0 off it.

    Both are of one shape, and are those of the whole batch, before it is cut into minibatches. The variance divides
    by N - 1, as in TRL. Fewer than two tokens, or equal ones, are left as they are: they have no scale.
    Raises ValueError for shapes that differ.
    """
    if advantages.shape != mask.shape:
        raise ValueError(f"advantages {tuple(advantages.shape)} and mask {tuple(mask.shape)} must have one shape")
    policy = mask.bool()
    own = advantages[policy]
    if _without_variance(own):
        return torch.where(policy, advantages, 0.0)
    return torch.where(policy, (advantages - own.mean()) / (own.std(correction=1) + epsilon), 0.0)


def _against_the_group(group: Tensor, kind: GroupAdvantage, std_epsilon: float) -> Tensor:
    """The advantages of a group (G,) of at least two returns that differ."""
    centred = group - group.mean()
    if kind in ("grpo", "reinforce++"):
        return centred / (group.std(correction=1) + std_epsilon)
    if kind == "rloo":
        return centred * (len(group) / (len(group) - 1))
    if kind == "maxrl":
        return centred / group.mean()
    return centred


def _check(rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """`(rewards, valid)`, the rewards as floats; raise ValueError for what cannot be grouped."""
    if rewards.dim() != 1 or rewards.shape != group_ids.shape:
        raise ValueError(
            f"rewards {tuple(rewards.shape)} and group_ids {tuple(group_ids.shape)} must have one shape (B,)"
        )
    if rewards.isinf().any():
        raise ValueError("a reward is infinite: a return must be finite, or NaN for an unscorable episode")
    rewards = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    return rewards, ~rewards.isnan()


def _without_variance(group: Tensor) -> bool:
    """Whether the returns of a group (G,) are all equal, as those of none or of one are."""
    return group.numel() == 0 or bool((group == group[0]).all())
