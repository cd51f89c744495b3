"""The family of losses, and what stands beside them: each formula against numbers worked by hand."""

import math

import pytest
import torch
from torch import Tensor

from verigym.agents.learners.config import GRPOConfig, PPOConfig
from verigym.agents.learners.losses import (
    cispo_loss,
    episode_means,
    gspo_loss,
    importance_weights,
    policy_loss,
    reduce,
    sapo_loss,
    sequence_mask,
    token_weights,
)
from verigym.config import TrainConfig, build, to_plain
from verigym.tasks.errors import ConfigError, UnknownNameError

# B episodes, T tokens

RATIO = [[1.5, 1.1, 0.5], [1.5, 0.9, 0.5]]
ADVANTAGES = [[2.0], [-1.0]]
MASK = [[1, 1, 1], [1, 1, 0]]
EPISODES = [[0, 0, 0], [1, 1, 1]]
LOSSES = {
    "ppo": lambda *inputs, episodes: policy_loss(*inputs, clip_low=0.2, clip_high=0.28),
    "dual": lambda *inputs, episodes: policy_loss(*inputs, clip_low=0.2, clip_high=0.28, dual_clip=1.4),
    "gspo": lambda *inputs, episodes: gspo_loss(*inputs, episodes, clip_low=0.2, clip_high=0.28),
    "cispo": lambda *inputs, episodes: cispo_loss(*inputs, ratio_max=1.2),
    "sapo": lambda *inputs, episodes: sapo_loss(*inputs, positive_temperature=1.0, negative_temperature=1.05),
}


def tensor(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(actual: Tensor, expected: list | Tensor) -> bool:
    return torch.allclose(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=1e-12)


def worked(name: str, ratio: list = RATIO, advantages: list = ADVANTAGES, mask: list = MASK) -> tuple[Tensor, Tensor]:
    """The loss and its gradient by the log-probabilities; those of the old policy are all -2."""
    old = torch.full_like(tensor(ratio), -2.0)
    logprobs = (old + tensor(ratio).log()).requires_grad_()
    episodes = torch.arange(len(ratio))[:, None].expand_as(old)
    loss = LOSSES[name](logprobs, old, tensor(advantages), torch.tensor(mask), episodes=episodes)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    return loss.detach(), gradient


def test_gspo_has_one_ratio_for_an_episode_the_geometric_mean_of_its_tokens() -> None:
    # (1.5 1.1 .5)^(1/3) is inside the clip; (1.5 .9)^(1/2) of the masked second row is not clipped, because A < 0
    first, second = (1.5 * 1.1 * 0.5) ** (1 / 3), (1.5 * 0.9) ** (1 / 2)
    loss, gradient = worked("gspo")
    assert near(loss, [[-2 * first] * 3, [second, second, 0.0]])
    # each token carries what it moves the mean by, times the three tokens that share it
    assert near(gradient, [[-2 * first] * 3, [second, second, 0.0]])


@pytest.mark.parametrize(
    ("ratio", "advantage", "kept"), [(1.27, 1, True), (1.29, 1, False), (0.81, -1, True), (0.79, -1, False)]
)
def test_gspo_clips_an_episode_as_a_whole(ratio: float, advantage: float, kept: bool) -> None:
    # two tokens far from the old policy, whose geometric mean is the ratio
    _, gradient = worked("gspo", [[ratio * 3, ratio / 3]], [[advantage]], [[1, 1]])
    assert near(gradient, [[-ratio * advantage * kept] * 2])


def test_gspo_of_packed_tokens_in_any_order_is_that_of_rows() -> None:
    loss, gradient = worked("gspo")
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    old = torch.full((6,), -2.0, dtype=torch.float64)
    logprobs = (old + tensor(RATIO).flatten()[order].log()).requires_grad_()
    advantages = tensor(ADVANTAGES).expand(2, 3).flatten()[order]
    mask, episodes = (torch.tensor(part).flatten()[order] for part in (MASK, EPISODES))
    packed = gspo_loss(logprobs, old, advantages, mask, episodes, clip_low=0.2, clip_high=0.28)
    assert near(packed.detach(), loss.flatten()[order])
    assert near(torch.autograd.grad(packed.sum(), logprobs)[0], gradient.flatten()[order])


def test_cispo_cuts_the_weight_of_a_token_but_keeps_its_gradient() -> None:
    loss, gradient = worked("cispo")
    weights = [[1.2, 1.1, 0.5], [1.2, 0.9, 0.0]]
    logprobs = tensor(RATIO).log() - 2.0
    assert near(gradient, -tensor(weights) * tensor(ADVANTAGES))
    assert near(loss, -tensor(weights) * tensor(ADVANTAGES) * logprobs)


def test_sapo_gates_each_token_by_a_sigmoid_of_its_ratio() -> None:
    def gate(ratio: float, temperature: float) -> float:
        return 1 / (1 + math.exp(-temperature * (ratio - 1)))

    loss, gradient = worked("sapo")
    gates = [[gate(r, 1.0) for r in RATIO[0]], [gate(1.5, 1.05), gate(0.9, 1.05), 0.0]]
    assert near(loss, [[-8 * g for g in gates[0]], [4 / 1.05 * g for g in gates[1]]])
    slopes = [[4 * g * (1 - g) * r for g, r in zip(*pair, strict=True)] for pair in zip(gates, RATIO, strict=True)]
    assert near(gradient, -tensor(slopes) * tensor(ADVANTAGES))


def test_sapo_uses_the_negative_temperature_for_an_advantage_of_zero_or_less() -> None:
    for advantage, temperature in ((1.0, 1.0), (-1.0, 1.05)):
        loss, _ = worked("sapo", [[2.0]], [[advantage]], [[1]])
        assert near(loss, [[-4 / temperature / (1 + math.exp(-temperature)) * advantage]])


def test_the_dual_clip_bounds_the_loss_of_a_negative_advantage_and_nothing_else() -> None:
    ratio, advantages = [[9.0, 1.39, 9.0]], [[-1.0, -1.0, 1.0]]
    loss, gradient = worked("dual", ratio, advantages, [[1, 1, 1]])
    assert near(loss, [[1.4, 1.39, -1.28]])
    assert near(gradient, [[0.0, 1.39, 0.0]])
    assert near(worked("ppo", ratio, advantages, [[1, 1, 1]])[0], [[9.0, 1.39, -1.28]])


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_at_the_old_policy_has_the_gradient_of_reinforce(name: str) -> None:
    _, gradient = worked(name, [[1.0, 1.0], [1.0, 1.0]], [[3.0], [-0.5]], [[1, 1], [1, 0]])
    assert near(gradient, [[-3.0, -3.0], [0.5, 0.0]])


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_is_exactly_zero_off_the_mask_whatever_stands_there(name: str) -> None:
    expected, expected_gradient = worked(name)
    for garbage in (math.nan, math.inf, -math.inf, 1e30):
        old = torch.full((2, 3), -2.0, dtype=torch.float64)
        logprobs = old + tensor(RATIO).log()
        advantages = tensor(ADVANTAGES).expand(2, 3).clone()
        for values in (old, logprobs, advantages):
            values[1, 2] = garbage
        logprobs.requires_grad_()
        loss = LOSSES[name](logprobs, old, advantages, torch.tensor(MASK), episodes=torch.tensor(EPISODES))
        (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
        assert torch.equal(loss.detach(), expected)
        assert torch.equal(gradient, expected_gradient)
        assert loss[1, 2] == gradient[1, 2] == 0


@pytest.mark.parametrize("name", LOSSES)
def test_an_overflowing_log_ratio_leaves_each_loss_finite(name: str) -> None:
    logprobs = torch.tensor([[-1.0], [-1.0], [-900.0], [-900.0]], requires_grad=True)
    old = torch.tensor([[-900.0], [-900.0], [-1.0], [-1.0]])
    episodes = torch.arange(4)[:, None]
    loss = LOSSES[name](
        logprobs, old, torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), torch.ones(4, 1), episodes=episodes
    )
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), logprobs)[0].isfinite().all()


@pytest.mark.parametrize("name", ["ppo", "dual", "gspo", "sapo"])
def test_gradient_of_an_episodes_loss_matches_finite_differences_away_from_the_kinks(name: str) -> None:
    old = tensor([[-1.0, -2.0, -0.5], [-1.5, -0.2, -3.0]])
    logprobs = (old + tensor([[0.1, 0.5, -0.6], [0.2, 0.3, -0.1]])).requires_grad_()
    mask, episodes = torch.tensor(MASK), torch.tensor(EPISODES)
    assert torch.autograd.gradcheck(
        lambda x: LOSSES[name](x, old, tensor([[1.3], [-0.7]]), mask, episodes=episodes).sum(-1), (logprobs,)
    )


def test_cispo_where_the_weight_is_cut_is_a_plain_log_likelihood() -> None:
    logprobs = tensor([[-1.0, -0.5]]).requires_grad_()
    old, mask = logprobs.detach() - 2.0, torch.ones(1, 2)
    assert torch.autograd.gradcheck(
        lambda x: cispo_loss(x, old, tensor([[1.3, -0.4]]), mask, ratio_max=1.2), (logprobs,)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_advantages_that_would_broadcast_along_the_wrong_axis_are_refused_by_each_loss(name: str) -> None:
    square = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"advantages has shape \(3,\)"):
        LOSSES[name](square, square, torch.zeros(3), square, episodes=square.long())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["grpo", "dapo", "dr_grpo"])
def test_the_gradient_of_each_loss_does_not_change_with_micro_batches_or_order(name: str, reduction: str) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    advantages = torch.randn(5, 1, generator=generator, dtype=torch.float64).expand(5, 6)
    mask = (torch.rand(5, 6, generator=generator) < 0.6).long()
    episodes, lengths = torch.arange(5)[:, None].expand(5, 6), mask.sum(-1, keepdim=True).expand(5, 6)

    def gradient(parts: list[Tensor]) -> Tensor:
        logprobs = (values[0] - 3).requires_grad_()
        for part in parts:
            old = values[0].detach() - 3 + 0.3 * values[1]
            inputs = [x[part].flatten() for x in (logprobs, old, advantages, mask)]
            losses = LOSSES[name](*inputs, episodes=episodes[part].flatten())
            weights = token_weights(
                inputs[3],
                lengths[part].flatten(),
                reduction=reduction,
                num_episodes=5,
                num_tokens=int(mask.sum()),
                max_tokens=7,
                dtype=torch.float64,
            )
            reduce(losses, weights).backward()
        assert logprobs.grad is not None
        return logprobs.grad

    whole = gradient([torch.arange(5)])
    assert whole.abs().max() > 1e-3
    assert (whole[mask == 0] == 0).all()
    for order in ([[0], [1], [2], [3], [4]], [[4, 1], [0, 3, 2]], [[3, 4, 2, 0, 1]]):
        assert torch.allclose(gradient([torch.tensor(part) for part in order]), whole, rtol=1e-12, atol=1e-14)


def test_episode_means_are_over_policy_tokens_only() -> None:
    values = tensor([[1.0, 3.0, math.nan], [5.0, math.inf, 7.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 1]])
    assert near(episode_means(values, mask, torch.tensor(EPISODES)), [[2.0, 2.0, 0.0], [6.0, 0.0, 6.0]])
    empty = torch.zeros(0)
    assert episode_means(empty, empty, empty.long()).shape == (0,)
    with pytest.raises(ValueError, match="episodes has shape"):
        episode_means(values, mask, torch.arange(2))


GAP = [[0.5, -0.25, 9.0], [1.0, 0.25, -0.5]]  # old - sampler
GAP_MASK = [[1, 1, 0], [1, 1, 1]]


def weights_of(level: str, maximum: float = 2.0) -> Tensor:
    old = torch.full((2, 3), -3.0, dtype=torch.float64).requires_grad_()
    weights = importance_weights(
        old, old.detach() - tensor(GAP), torch.tensor(GAP_MASK), torch.tensor(EPISODES), level=level, maximum=maximum
    )
    assert not weights.requires_grad
    return weights


def test_importance_weights_are_ratios_of_tokens_or_of_sequences_cut_at_the_maximum() -> None:
    e = math.exp
    assert near(weights_of("none"), torch.ones(2, 3))
    assert near(weights_of("token"), [[e(0.5), e(-0.25), 1.0], [2.0, e(0.25), e(-0.5)]])
    assert near(weights_of("token", 1.2), [[1.2, e(-0.25), 1.0], [1.2, 1.2, e(-0.5)]])
    assert near(weights_of("sequence"), [[e(0.25), e(0.25), 1.0], [2.0, 2.0, 2.0]])
    assert near(weights_of("sequence", 3.0)[1], [e(0.75)] * 3)
    with pytest.raises(UnknownNameError, match="did you mean 'token'"):
        weights_of("tokens")


@pytest.mark.parametrize(
    ("max_gap", "max_ratio", "kept"),
    [
        (math.inf, math.inf, (True, True)),
        (0.4, math.inf, (True, False)),  # mean |gap| .375 and .5833
        (0.37, math.inf, (False, False)),
        (math.inf, 2.0, (True, False)),  # ratios e^.25 and e^.75
        (math.inf, 1.2, (False, False)),
    ],
)
def test_sequence_masks_drop_whole_episodes_beyond_a_limit(
    max_gap: float, max_ratio: float, kept: tuple[bool, bool]
) -> None:
    for sign in (1, -1):  # a sampler that found the episode likelier is as far off as one that found it less likely
        old = torch.full((2, 3), -3.0, dtype=torch.float64)
        mask = sequence_mask(
            old,
            old - sign * tensor(GAP),
            torch.tensor(GAP_MASK),
            torch.tensor(EPISODES),
            max_gap=max_gap,
            max_ratio=max_ratio,
        )
        assert mask.tolist() == [[bool(m) and stays for m in row] for row, stays in zip(GAP_MASK, kept, strict=True)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"dual_clip": 1.28},
        {"cispo_max": 0.0},
        {"sapo_negative": 0.0},
        {"gspo_clip_low": 1.0},
        {"correction_max": 0.5},
        {"mask_ratio": 1.0},
        {"mask_gap": 0.0},
        {"kl_control": "adaptive"},
        {"kl_control": "adaptive", "kl_coefficient": 0.1, "kl_target": 0.0},
        {"kl_horizon": 0},
        {"lr_warmup": -1},
        {"advantages": "maxrl", "overlong": "penalise"},
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        GRPOConfig(**wrong)


def test_every_option_of_the_family_is_a_setting_of_both_learners_and_survives_the_run_folder() -> None:
    for loss in ("ppo", "gspo", "cispo", "sapo"):
        for kind in (GRPOConfig, PPOConfig):
            config = kind(loss=loss, correction="token", mask_gap=0.5)
            assert build(kind, to_plain(config)) == config
    run = {"model": "m", "envs": [{"id": "verigym/Arithmetic-v0"}], "group_size": 1}
    assert build(TrainConfig, {**run, "grpo": {"advantages": "reinforce++"}}).group_size == 1
    with pytest.raises(ConfigError, match="dynamic_sampling compares the episodes of a group"):
        build(TrainConfig, {**run, "learner": "ppo", "dynamic_sampling": 1})
    with pytest.raises(ConfigError, match="a group of one has no baseline"):
        build(TrainConfig, {**run, "grpo": {"advantages": "reinforce++_baseline"}})
