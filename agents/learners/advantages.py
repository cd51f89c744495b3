"""Group-relative advantages: how much better an episode went than its group did."""

from typing import Literal, get_args

import torch
from torch import Tensor

from verigym.tasks.errors import UnknownNameError

# B episodes, G episodes of one group
# A reward of NaN marks an unscorable episode (INFRA_ERROR).

GroupAdvantage = Literal["grpo", "dr_grpo"]


def group_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    *,
    kind: GroupAdvantage = "grpo",
    std_epsilon: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Each episode's return against those of its group: `(advantages, valid)`, both (B,).

    - grpo (R - mean) / (std + std_epsilon) (Shao et al. 2024, arXiv:2402.03300)
    - dr_grpo R - mean (Liu et al. 2025, arXiv:2503.20783): in expectation (G-1)/G of the true gradient, to
      which grpo's is not parallel
    `rewards` (B,) are the returns of episodes, in the task's units; `group_ids` (B,) are integers, equal for
    episodes that started from one state, in any order. An unscorable episode (NaN) enters no baseline and
    comes back with advantage 0 and valid False: leave it out of the mask and of the counts B and N.
    The paper says neither: the std divides by G-1, and std_epsilon is 1e-4, as in TRL.
    Departure: a group whose scorable returns are equal, or are but one, gets exactly 0. The mean of equal
    numbers may round, and a division by std_epsilon would make a signal of the rest.
    Raises UnknownNameError for another kind, ValueError for shapes that differ or an infinite reward.
    """
    if kind not in get_args(GroupAdvantage):
        raise UnknownNameError.of("group advantage", kind, get_args(GroupAdvantage))
    rewards, valid = _check(rewards, group_ids)
    advantages = torch.zeros_like(rewards)
    for group_id in group_ids.unique():
        members = (group_ids == group_id) & valid
        group = rewards[members]  # (G,)
        if _without_variance(group):
            continue
        centred = group - group.mean()
        advantages[members] = centred if kind == "dr_grpo" else centred / (group.std(correction=1) + std_epsilon)
    return advantages, valid


def informative_groups(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """The ids of the groups whose scorable returns are not all equal, ascending; the others have no gradient.

    Dynamic sampling keeps these (Yu et al. 2025, DAPO, arXiv:2503.14476). Shapes and errors as `group_advantages`.
    """
    rewards, valid = _check(rewards, group_ids)
    groups = group_ids.unique()
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
