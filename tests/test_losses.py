import math

import pytest
import torch
from torch import Tensor

from verigym.agents.learners.losses import (
    clip_shares,
    entropy,
    kl_estimate,
    kl_loss,
    policy_loss,
    policy_metrics,
    reduce,
    token_logprobs,
    token_weights,
    value_loss,
)
from verigym.tasks.errors import ConfigError, UnknownNameError

# B episodes, T tokens

POLICY = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REFERENCE = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
REWARDS = torch.tensor([1.0, 0.2, 0.0], dtype=torch.float64)
REDUCTIONS = ["grpo", "dapo", "dr_grpo"]


def tensor(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(actual: Tensor, expected: list | float, tolerance: float = 1e-12) -> bool:
    return torch.allclose(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=tolerance)


def loss_and_gradient(ratio: list, advantages: list, mask: list) -> tuple[Tensor, Tensor]:
    """The loss and its gradient by the log-probabilities, with the clip at .8 and 1.28."""
    old = torch.full_like(tensor(ratio), -2.0)
    logprobs = (old + tensor(ratio).log()).requires_grad_()
    loss = policy_loss(logprobs, old, tensor(advantages), torch.tensor(mask), clip_low=0.2, clip_high=0.28)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    return loss.detach(), gradient


def test_token_logprobs_are_the_log_softmax_at_the_temperature() -> None:
    # at temperature .5 the logits (log 2, 0, 0) weigh 4, 1, 1
    logits = torch.tensor([[[math.log(2), 0.0, 0.0]] * 3])  # (1, 3, V)
    actual = token_logprobs(logits, torch.tensor([[0, 1, 2]]), 0.5)  # (1, 3)
    assert near(actual, [[math.log(4 / 6), math.log(1 / 6), math.log(1 / 6)]], 1e-6)


def test_token_logprobs_of_half_precision_logits_are_computed_in_fp32() -> None:
    logits = torch.linspace(-3, 3, 50).to(torch.bfloat16).reshape(1, 50)
    actual = token_logprobs(logits, torch.tensor([7]), 0.7)
    expected = torch.log_softmax(logits.double() / 0.7, -1)[:, 7]
    assert actual.dtype is torch.float32
    assert near(actual.double(), expected.tolist(), 1e-5)


def test_entropy_of_a_uniform_softmax_over_the_allowed_tokens_is_the_log_of_their_number() -> None:
    logits = torch.tensor([[1.0, 1.0, -math.inf, 1.0], [5.0, -math.inf, -math.inf, -math.inf]]).requires_grad_()
    actual = entropy(logits, 1.0)  # (2,)
    (gradient,) = torch.autograd.grad(actual.sum(), logits)
    assert near(actual.detach(), [math.log(3), 0.0], 1e-6)
    assert gradient.isfinite().all()


def test_entropy_divides_the_logits_by_the_temperature() -> None:
    # weights 4, 1, 1: log 6 - 4/6 log 4
    actual = entropy(tensor([math.log(2), 0.0, 0.0]), 0.5)
    assert near(actual, math.log(6) - 4 / 6 * math.log(4))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        token_logprobs(torch.zeros(1, 2), torch.tensor([0]), temperature)


def test_gradients_of_logprobs_and_entropy_match_finite_differences() -> None:
    logits = tensor([[0.3, -1.2, 0.8], [2.0, 0.1, -0.4]]).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, torch.tensor([2, 0]), 0.7), (logits,))
    assert torch.autograd.gradcheck(lambda x: entropy(x, 0.7), (logits,))


def test_policy_loss_of_two_by_three_tokens_worked_by_hand() -> None:
    loss, gradient = loss_and_gradient(
        ratio=[[1.0, 1.5, 0.5], [1.0, 1.5, 0.5]],
        advantages=[[2.0, 2.0, 2.0], [-1.0, -1.0, -1.0]],
        mask=[[1, 1, 1], [1, 1, 1]],
    )
    assert near(loss, [[-2.0, -2.56, -1.0], [1.0, 1.5, 0.8]])
    # d(-r A)/d lp = -r A where not clipped
    assert near(gradient, [[-2.0, 0.0, -1.0], [1.0, 1.5, 0.0]])


@pytest.mark.parametrize(
    ("advantage", "ratio", "kept"),
    [
        (1.0, 1.29, False),
        (1.0, 1.27, True),
        (1.0, 0.5, True),
        (-1.0, 0.79, False),
        (-1.0, 0.81, True),
        (-1.0, 3.0, True),
    ],
)
def test_clip_removes_the_gradient_only_of_a_move_that_went_too_far_the_good_way(
    advantage: float, ratio: float, kept: bool
) -> None:
    _, gradient = loss_and_gradient([[ratio]], [[advantage]], [[1]])
    assert near(gradient, [[-ratio * advantage if kept else 0.0]])


def test_policy_loss_at_the_old_policy_has_the_gradient_of_reinforce() -> None:
    logprobs = tensor([[-0.1, -2.0, -7.0]]).requires_grad_()
    loss = policy_loss(logprobs, logprobs, tensor([[3.0]]), torch.ones(1, 3), clip_low=0.2, clip_high=0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    assert torch.equal(gradient, torch.full((1, 3), -3.0, dtype=torch.float64))


def test_masked_positions_have_zero_loss_and_gradient_and_their_garbage_changes_nothing() -> None:
    mask = torch.tensor([[1, 0, 1], [0, 1, 0]])
    garbage = torch.tensor([math.nan, math.inf, -math.inf, 1e30])
    clean_logprobs = tensor([[-1.0, -2.0, -3.0], [-0.5, -0.4, -0.3]])
    clean_old = clean_logprobs + tensor([[0.1, 0.0, -0.1], [0.0, 0.2, 0.0]])
    advantages = tensor([[1.0, 1.0, 1.0], [-2.0, -2.0, -2.0]])
    lengths = mask.sum(-1, keepdim=True)
    weights = token_weights(
        mask, lengths, reduction="grpo", num_episodes=2, num_tokens=3, max_tokens=3, dtype=torch.float64
    )

    def total(logprobs: Tensor, old: Tensor, advantages: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = logprobs.clone().requires_grad_()
        losses = policy_loss(logprobs, old, advantages, mask, clip_low=0.2, clip_high=0.2)
        for kind in ("k2", "k3"):
            losses = losses + 0.1 * kl_loss(logprobs, reference, mask, kind=kind)
        assert torch.equal(losses[mask == 0], torch.zeros(3, dtype=torch.float64))
        loss = reduce(losses, weights)
        return loss.detach(), torch.autograd.grad(loss, logprobs)[0]

    expected_loss, expected_gradient = total(clean_logprobs, clean_old, advantages, clean_old)
    assert torch.equal(expected_gradient == 0, mask == 0)
    for value in garbage:
        for other in garbage:
            dirty = [
                torch.where(mask == 0, filler, clean)
                for filler, clean in [
                    (value, clean_logprobs),
                    (other, clean_old),
                    (value, advantages),
                    (other, clean_old),
                ]
            ]
            loss, gradient = total(*dirty)
            assert torch.equal(loss, expected_loss)
            assert torch.equal(gradient, expected_gradient)


def test_reduce_ignores_the_loss_of_a_token_of_weight_zero() -> None:
    assert reduce(tensor([math.nan, math.inf, 3.0]), tensor([0.0, 0.0, 0.5])).item() == 1.5


def test_an_overflowing_log_ratio_leaves_loss_and_gradient_finite() -> None:
    logprobs = torch.tensor([[-1.0, -1.0, -500.0]]).requires_grad_()
    old = torch.tensor([[-500.0, -500.0, -1.0]])
    loss = policy_loss(logprobs, old, torch.tensor([[1.0, -1.0, -1.0]]), torch.ones(1, 3), clip_low=0.2, clip_high=0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    assert loss.tolist()[0] == pytest.approx([-1.2, math.exp(20), 0.8])
    assert gradient.isfinite().all()


def test_gradient_of_policy_loss_matches_finite_differences_away_from_the_kinks() -> None:
    old = tensor([[-1.0, -2.0, -0.5], [-1.5, -0.2, -3.0]])
    logprobs = (old + tensor([[0.1, 0.5, -0.6], [0.1, 0.5, -0.6]])).requires_grad_()
    advantages, mask = tensor([[1.3], [-0.7]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert torch.autograd.gradcheck(
        lambda x: policy_loss(x, old, advantages, mask, clip_low=0.2, clip_high=0.28), (logprobs,)
    )


def test_advantages_that_would_broadcast_along_the_wrong_axis_are_refused() -> None:
    square = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"advantages has shape \(3,\)"):
        policy_loss(square, square, torch.zeros(3), square, clip_low=0.2, clip_high=0.2)
    with pytest.raises(ValueError, match=r"mask has shape \(3, 1\)"):
        policy_loss(square, square, square, torch.zeros(3, 1), clip_low=0.2, clip_high=0.2)


def test_kl_estimates_worked_by_hand() -> None:
    logprobs, reference = (
        tensor([[-1.0, -1.0, -1.0]]),
        tensor([[-1.0, -1.0 + math.log(2), -1.0 - math.log(2)]]),
    )
    log2 = math.log(2)
    assert near(kl_estimate(logprobs, reference, "k1"), [[0.0, -log2, log2]])
    assert near(kl_estimate(logprobs, reference, "k2"), [[0.0, log2**2 / 2, log2**2 / 2]])
    assert near(kl_estimate(logprobs, reference, "k3"), [[0.0, 1 - log2, log2 - 0.5]])


@pytest.mark.parametrize(("kind", "expected"), [("k1", 0.2180119109), ("k2", 0.2090582965), ("k3", 0.2180119109)])
def test_expected_kl_estimates_on_three_arms(kind: str, expected: float) -> None:
    assert near((POLICY * kl_estimate(POLICY.log(), REFERENCE.log(), kind)).sum(), expected, 1e-10)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("k1", [0.0, 0.0, 0.0]),
        ("k2", [0.2375676, -0.0107071, -0.2268605]),
        ("k3", [0.25, 0.05, -0.30]),
    ],
)
def test_expected_gradient_of_kl_estimates_by_the_logits(kind: str, expected: list[float]) -> None:
    logits = POLICY.log().requires_grad_()
    # arms are sampled from the policy, and sampling carries no gradient: the weights are constants
    loss = (POLICY * kl_estimate(torch.log_softmax(logits, -1), REFERENCE.log(), kind)).sum()
    assert near(torch.autograd.grad(loss, logits)[0], expected, 1e-7)


def test_k2_as_a_loss_has_the_gradient_of_the_reverse_kl_and_k3_that_of_the_forward_kl() -> None:
    logits = POLICY.log().requires_grad_()
    logprobs = torch.log_softmax(logits, -1)
    reverse = (logprobs.exp() * (logprobs - REFERENCE.log())).sum()
    forward = (REFERENCE * (REFERENCE.log() - logprobs)).sum()
    assert near(reverse.detach(), 0.2180119109, 1e-10)
    assert near(forward.detach(), 0.2392781816, 1e-10)
    for kind, divergence in [("k2", reverse), ("k3", forward)]:
        loss = (POLICY * kl_loss(logprobs, REFERENCE.log(), torch.ones(3), kind=kind)).sum()
        actual = torch.autograd.grad(loss, logits, retain_graph=True)[0]
        expected = torch.autograd.grad(divergence, logits, retain_graph=True)[0]
        assert near(actual, expected.tolist())


@pytest.mark.parametrize(
    ("kind", "optimum"),
    [
        ("k1", [0.679086, 0.137105, 0.183809]),
        ("k2", [0.679086, 0.137105, 0.183809]),
        ("k3", [0.663191, 0.126456, 0.210352]),
    ],
)
def test_a_bandit_regularised_by_a_kl_descends_to_its_known_optimum(kind: str, optimum: list[float]) -> None:
    """k1 is part of the reward, k2 and k3 are losses; the first two have the optimum of the reverse KL."""
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(3)
    for _ in range(600):
        logprobs = torch.log_softmax(logits, -1)
        sampling = logprobs.detach().exp()
        rewards = REWARDS
        if kind == "k1":
            rewards = rewards - 0.5 * kl_estimate(logprobs.detach(), REFERENCE.log(), kind)
        advantages = rewards - (sampling * rewards).sum()
        losses = policy_loss(logprobs, logprobs, advantages, mask, clip_low=0.2, clip_high=0.2)
        if kind != "k1":
            losses = losses + 0.5 * kl_loss(logprobs, REFERENCE.log(), mask, kind=kind)
        (gradient,) = torch.autograd.grad(reduce(losses, sampling), logits)
        logits = (logits - 1.0 * gradient).detach().requires_grad_()
    assert near(logits.detach().softmax(-1), optimum, 1e-6)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_of_a_policy_to_itself_is_exactly_zero(kind: str) -> None:
    logprobs = torch.log_softmax(torch.linspace(-40, 3, 100), -1)
    assert torch.equal(kl_estimate(logprobs, logprobs, kind), torch.zeros(100))


def test_k3_of_a_tiny_difference_keeps_its_precision_in_fp32() -> None:
    logprobs = torch.tensor([-1.0])
    reference = logprobs + 2**-13  # exact in fp32, where e^d - 1 - d would lose half of its digits
    assert kl_estimate(logprobs, reference, "k3").item() == pytest.approx(2**-27, rel=1e-3)


def test_k3_does_not_overflow_and_grows_without_bound_below_the_reference() -> None:
    actual = kl_estimate(torch.tensor([-200.0, -1.0]), torch.tensor([-1.0, -200.0]), "k3")
    assert actual.tolist() == pytest.approx([math.exp(20) - 21, 198.0])


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_gradient_of_kl_losses_matches_finite_differences(kind: str) -> None:
    logprobs = tensor([[-1.0, -2.0, -0.3]]).requires_grad_()
    reference, mask = tensor([[-1.4, -1.1, -0.9]]), torch.tensor([[1, 1, 0]])
    assert torch.autograd.gradcheck(lambda x: kl_loss(x, reference, mask, kind=kind), (logprobs,))


def test_k1_as_a_loss_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="expected gradient of 0"):
        kl_loss(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1), kind="k1")


def test_an_unknown_kl_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="no KL estimate 'k4'; known: k1, k2, k3"):
        kl_loss(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1), kind="k4")


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("grpo", ((1 + 4) / 2 + 6) / 2),  # the mean of the episodes' token means
        ("dapo", (1 + 4 + 6) / 3),
        ("dr_grpo", (1 + 4 + 6) / (2 * 5)),
    ],
)
def test_reductions_of_two_by_three_tokens_worked_by_hand(reduction: str, expected: float) -> None:
    mask = torch.tensor([[1, 0, 1], [0, 1, 0]])
    losses = tensor([[1.0, 2.0, 4.0], [5.0, 6.0, 7.0]])
    weights = token_weights(
        mask,
        mask.sum(-1, keepdim=True),
        reduction=reduction,
        num_episodes=2,
        num_tokens=3,
        max_tokens=5,
        dtype=torch.float64,
    )
    assert near(reduce(losses, weights), expected)


def an_optimizer_step() -> tuple[Tensor, ...]:
    """Five episodes of up to six tokens from a linear policy; one has no policy token at all."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(5, 6, 4, generator=generator, dtype=torch.float64)
    token_ids = torch.randint(0, 7, (5, 6), generator=generator)
    old = torch.randn(5, 6, generator=generator, dtype=torch.float64) * 0.3 - 2.0
    advantages = torch.randn(5, 1, generator=generator, dtype=torch.float64).expand(5, 6)
    rows = [
        [1, 1, 0, 0, 1, 1],
        [0, 1, 0, 1, 0, 0],
        [1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 0],
    ]
    mask = torch.tensor(rows)
    return features, token_ids, old, advantages, mask, mask.sum(-1, keepdim=True).expand(5, 6)


def step_loss_and_gradient(parts: list[tuple[Tensor, ...]], reduction: str) -> tuple[Tensor, Tensor]:
    """Accumulate the loss and its gradient by the policy's matrix over micro-batches of any shape."""
    generator = torch.Generator().manual_seed(4)
    matrix = torch.randn(4, 7, generator=generator, dtype=torch.float64).requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for features, token_ids, old, advantages, mask, lengths in parts:
        logprobs = token_logprobs(features @ matrix, token_ids, 1.0)
        losses = policy_loss(logprobs, old, advantages, mask, clip_low=0.2, clip_high=0.28)
        losses = losses + 0.1 * kl_loss(logprobs, old, mask, kind="k3")
        totals = {"num_episodes": 5, "num_tokens": 15, "max_tokens": 8}
        weights = token_weights(mask, lengths, reduction=reduction, dtype=torch.float64, **totals)
        loss = reduce(losses, weights)
        loss.backward()
        total += loss.detach()
    assert matrix.grad is not None
    return total, matrix.grad


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_loss_and_gradient_do_not_change_with_micro_batches_order_or_packing(reduction: str) -> None:
    step = an_optimizer_step()
    order = torch.tensor([3, 0, 4, 2, 1])
    rows = {
        "micro-batches of one": [tuple(x[i : i + 1] for x in step) for i in range(5)],
        "uneven micro-batches": [tuple(x[:2] for x in step), tuple(x[2:] for x in step)],
        "permuted": [tuple(x[order] for x in step)],
        "permuted micro-batches": [tuple(x[order[:3]] for x in step), tuple(x[order[3:]] for x in step)],
        "packed into one row": [tuple(x.flatten(0, 1)[None] for x in step)],
        "packed into two uneven flat rows": [
            tuple(x[:2].flatten(0, 1) for x in step),
            tuple(x[2:].flatten(0, 1) for x in step),
        ],
        "only the policy's tokens": [tuple(x[step[4] == 1] for x in step)],
    }
    loss, gradient = step_loss_and_gradient([step], reduction)
    assert gradient.abs().max() > 1e-3
    for name, parts in rows.items():
        other_loss, other_gradient = step_loss_and_gradient(parts, reduction)
        assert torch.allclose(other_loss, loss, rtol=1e-12, atol=1e-12), name
        assert torch.allclose(other_gradient, gradient, rtol=1e-12, atol=1e-12), name


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_step_without_policy_tokens_weighs_zero_and_a_wrong_total_of_zero_is_refused(
    reduction: str,
) -> None:
    empty = torch.zeros(2, 3)
    totals = {"reduction": reduction, "num_episodes": 0, "num_tokens": 0, "max_tokens": 8}
    assert torch.equal(token_weights(empty, torch.zeros(2, 1), **totals), empty)
    with pytest.raises(ValueError, match="totals of the whole optimizer step"):
        token_weights(torch.ones(2, 3), torch.full((2, 1), 3), **totals)


def test_an_unknown_reduction_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'dr_grpo'"):
        token_weights(
            torch.ones(1, 1),
            torch.ones(1, 1),
            reduction="drgrpo",
            num_episodes=1,
            num_tokens=1,
            max_tokens=1,
        )


def test_policy_metrics_of_two_by_three_tokens_worked_by_hand() -> None:
    ratio = tensor([[1.5, 0.5, 9.0], [1.5, 0.5, 0.5]])
    old = torch.full((2, 3), -2.0, dtype=torch.float64)
    weights = tensor([[1.0, 3.0, 99.0], [1.0, 1.0, 1.0]])  # exp(old - sampler)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    actual = policy_metrics(old + ratio.log(), old, old - weights.log(), mask)
    log = math.log
    assert actual["approximate_kl"].item() == pytest.approx((2 * (0.5 - log(1.5)) + 3 * (-0.5 - log(0.5))) / 5)
    assert actual["sampler_gap_mean"].item() == pytest.approx(log(3) / 5)
    assert actual["sampler_gap_max"].item() == pytest.approx(log(3))
    assert actual["effective_sample_share"].item() == pytest.approx(7**2 / (5 * (3**2 + 4)))


def test_clip_shares_count_tokens_that_went_too_far_the_way_their_advantage_asks_for() -> None:
    ratio, mask = tensor([[1.5, 0.5, 9.0], [1.5, 0.5, 0.5]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    actual = clip_shares(ratio.log(), tensor([[1.0], [-1.0]]), mask, low=0.8, high=1.28)
    assert {name: value.item() for name, value in actual.items()} == pytest.approx(
        {"clip_high_share": 1 / 5, "clip_low_share": 2 / 5}
    )
    with pytest.raises(ValueError, match=r"advantages has shape \(2,\)"):
        clip_shares(ratio, tensor([1.0, 1.0]), mask, low=0.8, high=1.28)


def test_policy_metrics_ignore_garbage_under_the_mask_and_survive_an_empty_one() -> None:
    dirty = torch.tensor([[-1.0, math.nan, math.inf, -math.inf]])
    for mask, expected in (([[1, 0, 0, 0]], {"effective_sample_share": 1.0}), ([[0, 0, 0, 0]], {})):
        found = policy_metrics(dirty, dirty, dirty, torch.tensor(mask))
        found |= clip_shares(dirty - dirty, torch.tensor([[1.0]]), torch.tensor(mask), low=0.8, high=1.2)
        assert {name: value.item() for name, value in found.items() if value != 0} == expected


def test_value_loss_is_the_larger_of_the_plain_and_the_clipped_error() -> None:
    # returns 1, old 0: V = .1 is inside the clip; V = .5 is clipped to .2, whose error is larger; V = 3 is clipped
    # too, but its own error is larger; the last is masked
    values = torch.tensor([[0.1, 0.5, 3.0, 9.0]], requires_grad=True)
    old, returns = torch.zeros(1, 4), torch.ones(1, 4)
    loss = value_loss(values, old, returns, torch.tensor([[1, 1, 1, 0]]), clip=0.2)
    assert loss[0].tolist() == pytest.approx([0.405, 0.32, 2.0, 0.0])
    loss.sum().backward()
    assert values.grad is not None
    assert values.grad[0].tolist() == pytest.approx([-0.9, 0.0, 2.0, 0.0])
    plain = value_loss(values.detach(), old, returns, torch.ones(1, 4), clip=float("inf"))
    assert plain[0].tolist() == pytest.approx([0.405, 0.125, 2.0, 32.0])
