import itertools
import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from verigym.agents.learners.advantages import (
    GroupAdvantage,
    generalized_advantages,
    group_advantages,
    group_statistics,
    informative_groups,
    overlong_penalty,
    whiten,
)
from verigym.agents.learners.losses import policy_loss
from verigym.tasks.errors import ConfigError, UnknownNameError

NAN = math.nan
KINDS = get_args(GroupAdvantage)
POLICY = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
ARM_REWARDS = torch.tensor([1.0, 0.2, 0.0], dtype=torch.float64)


def test_grpo_advantages_of_one_success_in_four_worked_by_hand() -> None:
    # mean .25; std with ddof 1 is .5: .75 / .5001 and -.25 / .5001
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
    advantages, valid = group_advantages(rewards, torch.zeros(4, dtype=torch.long))
    assert advantages.tolist() == pytest.approx([1.4997, -0.4999, -0.4999, -0.4999], abs=1e-5)
    assert valid.all()
    # the other convention, which is not ours
    with_ddof_0 = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-4)
    assert with_ddof_0.tolist() == pytest.approx([1.73165, -0.57722, -0.57722, -0.57722], abs=1e-5)


def test_the_epsilon_of_the_std_is_one_in_ten_thousand_unless_told() -> None:
    rewards, group_ids = torch.tensor([0.001, 0.0], dtype=torch.float64), torch.tensor([0, 0])
    std = 0.001 / math.sqrt(2)
    advantages, _ = group_advantages(rewards, group_ids)
    assert advantages.tolist() == pytest.approx([0.0005 / (std + 1e-4), -0.0005 / (std + 1e-4)], rel=1e-12)
    advantages, _ = group_advantages(rewards, group_ids, std_epsilon=0.0)
    assert advantages.tolist() == pytest.approx([1 / math.sqrt(2), -1 / math.sqrt(2)], rel=1e-12)


def test_dr_grpo_advantages_are_returns_less_the_group_mean() -> None:
    advantages, _ = group_advantages(torch.tensor([1, 0, 0, 0]), torch.zeros(4, dtype=torch.long), kind="dr_grpo")
    assert advantages.tolist() == [0.75, -0.25, -0.25, -0.25]


def test_rloo_advantages_are_returns_less_the_mean_of_the_others() -> None:
    advantages, _ = group_advantages(torch.tensor([1.0, 0.5, 0, 0]), torch.zeros(4, dtype=torch.long), kind="rloo")
    assert advantages.tolist() == pytest.approx([1 - 0.5 / 3, 0.5 - 1 / 3, -0.5, -0.5])
    # an unscorable episode is none of the others
    advantages, _ = group_advantages(torch.tensor([1.0, NAN, 0, 0]), torch.zeros(4, dtype=torch.long), kind="rloo")
    assert advantages.tolist() == pytest.approx([1.0, 0.0, -0.5, -0.5])


def test_maxrl_advantages_are_over_the_share_of_successes() -> None:
    rewards, group_ids = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0, 0, 0, NAN]), torch.tensor([0] * 4 + [1] * 4 + [2] * 3)
    advantages, _ = group_advantages(rewards, group_ids, kind="maxrl")
    assert advantages.tolist() == pytest.approx([3, -1, -1, -1, 1 / 3, 1 / 3, 1 / 3, -1, 0, 0, 0])
    with pytest.raises(ConfigError, match=r"maxrl needs returns of at least 0, not -0.5"):
        group_advantages(torch.tensor([1.0, -0.5]), torch.tensor([0, 0]), kind="maxrl")


def test_reinforce_plus_plus_normalises_over_the_batch_whatever_the_groups() -> None:
    rewards = torch.tensor([1.0, 0, 0, 3, NAN], dtype=torch.float64)
    std = math.sqrt(6 / 3)  # mean 1, squares 0 1 1 4, ddof 1
    advantages, valid = group_advantages(rewards, torch.tensor([0, 1, 2, 3, 4]), kind="reinforce++")
    assert advantages.tolist() == pytest.approx([value / (std + 1e-4) for value in (0, -1, -1, 2)] + [0], rel=1e-12)
    assert valid.tolist() == [True] * 4 + [False]
    alike, _ = group_advantages(torch.full((3,), 0.1), torch.tensor([0, 1, 2]), kind="reinforce++")
    assert alike.tolist() == [0, 0, 0]


def test_reinforce_plus_plus_with_a_baseline_divides_the_centred_returns_by_their_std_over_the_batch() -> None:
    rewards = torch.tensor([1.0, 0, 0, 5, 3, NAN, 0.1, 0.1, 0.1], dtype=torch.float64)
    centred = [2 / 3, -1 / 3, -1 / 3, 1, -1, 0, 0, 0]
    std = math.sqrt(sum(value**2 for value in centred) / 7)
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    advantages, _ = group_advantages(rewards, groups, kind="reinforce++_baseline")
    expected = [value / (std + 1e-4) for value in centred]
    assert advantages.tolist() == pytest.approx([*expected[:5], 0, *expected[5:]], rel=1e-12)
    assert advantages[6:].tolist() == [0, 0, 0]


def test_groups_go_by_id_in_any_order() -> None:
    rewards = torch.tensor([1.0, 10.0, 0.0, 30.0])
    advantages, _ = group_advantages(rewards, torch.tensor([7, -2, 7, -2]), kind="dr_grpo")
    assert advantages.tolist() == [0.5, -10.0, -0.5, 10.0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, 0.7, 1e30])
@pytest.mark.parametrize("size", [2, 3, 7, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_group_with_equal_rewards_gets_exactly_zero_advantage(
    kind: str, reward: float, size: int, dtype: torch.dtype
) -> None:
    rewards = torch.full((size,), reward, dtype=dtype)
    advantages, valid = group_advantages(rewards, torch.zeros(size, dtype=torch.long), kind=kind)
    assert torch.equal(advantages, torch.zeros(size, dtype=dtype))
    assert valid.all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_unscorable_episode_leaves_the_baseline_and_is_not_valid(kind: str) -> None:
    with_it, valid = group_advantages(torch.tensor([1.0, NAN, 0.0, 0.0]), torch.zeros(4, dtype=torch.long), kind=kind)
    without, _ = group_advantages(torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3, dtype=torch.long), kind=kind)
    assert valid.tolist() == [True, False, True, True]
    assert with_it.tolist() == [without[0], 0.0, without[1], without[2]]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "reinforce++"])
def test_groups_of_one_or_no_scorable_member_get_exactly_zero(kind: str) -> None:
    rewards, group_ids = torch.tensor([1.0, NAN, NAN, NAN, 0.1]), torch.tensor([0, 0, 1, 1, 2])
    advantages, valid = group_advantages(rewards, group_ids, kind=kind)
    assert advantages.tolist() == [0.0] * 5
    assert valid.tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_permuting_the_episodes_permutes_the_advantages(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(24, generator=generator, dtype=torch.float64)
    group_ids = torch.arange(24) % 5
    order = torch.randperm(24, generator=generator)
    expected, _ = group_advantages(rewards, group_ids, kind=kind)
    actual, _ = group_advantages(rewards[order], group_ids[order], kind=kind)
    assert torch.allclose(actual, expected[order], rtol=1e-12, atol=1e-12)


def test_the_rewards_are_left_as_they_were() -> None:
    rewards = torch.tensor([1.0, NAN, 0.0])
    group_advantages(rewards, torch.zeros(3, dtype=torch.long))
    assert rewards.tolist()[::2] == [1.0, 0.0]
    assert rewards[1].isnan()


def test_an_infinite_reward_a_wrong_shape_and_an_unknown_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="infinite"):
        group_advantages(torch.tensor([1.0, math.inf]), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="one shape"):
        group_advantages(torch.ones(2, 2), torch.ones(2))
    with pytest.raises(UnknownNameError, match="did you mean 'grpo'"):
        group_advantages(torch.ones(2), torch.zeros(2), kind="gpro")


def true_gradient(rewards: Tensor = ARM_REWARDS) -> Tensor:
    logits = POLICY.log().requires_grad_()
    return torch.autograd.grad((logits.softmax(-1) * rewards).sum(), logits)[0]


def expected_ascent(kind: str, group_size: int, rewards: Tensor = ARM_REWARDS) -> Tensor:
    """Minus the exact expectation of the policy loss's gradient: every group of G arms, by its chance."""
    groups = torch.tensor(list(itertools.product(range(3), repeat=group_size)))  # (3^G, G)
    group_ids = torch.arange(len(groups)).repeat_interleave(group_size)
    advantages, _ = group_advantages(rewards[groups].flatten(), group_ids, kind=kind)
    logits = POLICY.log().requires_grad_()
    logprobs = torch.log_softmax(logits, -1)[groups]  # (3^G, G)
    losses = policy_loss(
        logprobs,
        logprobs,
        advantages.view_as(logprobs),
        torch.ones_like(logprobs),
        clip_low=0.2,
        clip_high=0.2,
    )
    chances = POLICY[groups].prod(-1)  # (3^G,)
    return -torch.autograd.grad((chances * losses.mean(-1)).sum(), logits)[0]


@pytest.mark.parametrize("group_size", [2, 3, 4, 5])
def test_the_mean_baseline_gives_the_true_gradient_times_g_less_one_over_g(group_size: int) -> None:
    expected = true_gradient() * (group_size - 1) / group_size
    assert torch.allclose(expected_ascent("dr_grpo", group_size), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("group_size", [2, 3, 4, 5])
def test_the_leave_one_out_baseline_gives_the_true_gradient(group_size: int) -> None:
    assert torch.allclose(expected_ascent("rloo", group_size), true_gradient(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("group_size", [2, 3, 4, 5])
def test_maxrl_climbs_the_likelihood_of_success_truncated_at_one_less_than_the_group(group_size: int) -> None:
    # log p = -sum_k (1-p)^k / k (k up to G-1), whose gradient is (1 - (1-p)^(G-1)) / p times that of p
    rewards = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    chance = 0.2
    scale = (1 - (1 - chance) ** (group_size - 1)) / chance
    expected = true_gradient(rewards) * scale
    assert torch.allclose(expected_ascent("maxrl", group_size, rewards), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("group_size", [2, 3, 4, 5])
def test_normalising_by_the_std_points_away_from_the_true_gradient(group_size: int) -> None:
    scale = expected_ascent("grpo", group_size) / true_gradient()  # one number per arm, equal if parallel
    assert (scale > 0).all()
    assert scale.max() / scale.min() > 1.01


def test_group_statistics_split_the_groups_that_teach_nothing() -> None:
    groups = [[0, 0], [1, 1], [0.3, 0.3], [1, 0], [NAN, NAN], [1, NAN], [0, 0], [0, 0.5], [0, 0, NAN]]
    rewards = torch.tensor([float(reward) for group in groups for reward in group])
    group_ids = torch.tensor([3 * i for i, group in enumerate(groups) for _ in group])
    # the group of two NaN is not counted; that of one success and a NaN counts as solved
    assert group_statistics(rewards, group_ids) == {
        "zero_variance_share": 6 / 8,
        "all_failed_share": 3 / 8,
        "all_solved_share": 2 / 8,
        "all_other_share": 1 / 8,
    }


def test_group_statistics_take_the_rewards_of_failure_and_success() -> None:
    rewards, group_ids = torch.tensor([-1.0, -1.0, 0.0, 0.0, 5.0, 5.0]), torch.tensor([0, 0, 1, 1, 2, 2])
    actual = group_statistics(rewards, group_ids, failed_reward=-1.0, solved_reward=5.0)
    assert list(actual.values()) == pytest.approx([1.0, 1 / 3, 1 / 3, 1 / 3])


def test_group_statistics_without_a_scorable_episode_are_zero() -> None:
    assert set(group_statistics(torch.tensor([NAN, NAN]), torch.tensor([0, 1])).values()) == {0.0}


def test_overlong_penalty_is_that_of_the_paper() -> None:
    # L_max 20480, L_cache 4096: nothing up to 16384, then a line down to -1
    lengths = torch.tensor([0, 16384, 18432, 20480, 30000], dtype=torch.float64)
    penalty = overlong_penalty(lengths, torch.full((5,), 20480.0, dtype=torch.float64), buffer=4096 / 20480)
    assert penalty.tolist() == pytest.approx([0, 0, -0.5, -1, -1], abs=1e-12)
    with pytest.raises(ValueError, match="share of the limit"):
        overlong_penalty(lengths, lengths, buffer=0.0)


def test_informative_groups_have_returns_that_differ() -> None:
    rewards = torch.tensor([1.0, 0, 1, 1, NAN, 1, NAN, NAN, 0, 0.5])
    groups = torch.tensor([4, 4, 2, 2, 9, 9, 7, 7, 3, 3])
    assert informative_groups(rewards, groups).tolist() == [3, 4]
    assert informative_groups(torch.tensor([]), torch.tensor([], dtype=torch.int64)).tolist() == []


MASK = torch.tensor([[1, 1, 0, 0, 1, 1]])
VALUES = torch.tensor([[0.1, 0.2, 77.0, NAN, 0.4, 0.6]], dtype=torch.float64)
REWARDS = torch.tensor([[0.0, 0, 55, NAN, 0, 1]], dtype=torch.float64)
ENDED = torch.zeros(1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("gamma", "lam", "expected"),
    [
        (1.0, 1.0, [0.9, 0.8, 0, 0, 0.6, 0.4]),
        (1.0, 0.95, [0.81345, 0.751, 0, 0, 0.58, 0.4]),
        (0.9, 0.8, [0.417075, 0.46816, 0, 0, 0.428, 0.4]),
    ],
)
def test_gae_runs_over_the_policy_s_tokens_across_tool_text(gamma: float, lam: float, expected: list[float]) -> None:
    advantages, returns = generalized_advantages(REWARDS, VALUES, MASK, ENDED, gamma=gamma, lam=lam)
    assert advantages[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(returns[MASK == 1], advantages[MASK == 1] + VALUES[MASK == 1])
    assert returns[MASK == 0].tolist() == [0, 0]


def test_gae_bootstraps_from_the_value_after_a_cut() -> None:
    advantages, _ = generalized_advantages(REWARDS * 0, VALUES, MASK, torch.tensor([0.5]).double(), gamma=0.5, lam=0.0)
    # delta only: .5 * next value - value
    assert advantages[0].tolist() == pytest.approx([0.0, 0.0, 0, 0, -0.1, -0.35])


def test_gae_refuses_shapes_and_factors_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"bootstrap \(6,\)"):
        generalized_advantages(REWARDS, VALUES, MASK, VALUES[0], gamma=1.0, lam=1.0)
    with pytest.raises(ValueError, match="gamma and lam"):
        generalized_advantages(REWARDS, VALUES, MASK, ENDED, gamma=1.01, lam=1.0)


def test_whitening_is_over_the_mask() -> None:
    mask = torch.tensor([[1, 0, 1], [1, 0, 0]])
    whitened = whiten(torch.tensor([[1.0, 99.0, 2.0], [3.0, NAN, -50.0]]), mask)
    # mean 2, std 1 with N - 1
    assert whitened.tolist() == [[pytest.approx(-1), 0, pytest.approx(0)], [pytest.approx(1), 0, 0]]
    assert whiten(torch.tensor([3.0, 5.0]), torch.tensor([1, 0])).tolist() == [3, 0]
