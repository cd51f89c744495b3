"""Our losses against TRL's GRPO trainer, on the same tensors."""

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from verigym.agents.learners.advantages import group_advantages
from verigym.agents.learners.losses import (
    cispo_loss,
    clip_shares,
    gspo_loss,
    importance_weights,
    kl_estimate,
    kl_loss,
    policy_loss,
    reduce,
    sapo_loss,
    token_weights,
)

trl = pytest.importorskip("trl", reason="TRL is the oracle of these tests: install verigym[dev]")
if not trl.__version__.startswith("1.16."):
    pytest.skip(f"the stub follows TRL 1.16, not {trl.__version__}", allow_module_level=True)

from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: E402 - only once TRL is known to be there

# B episodes, T tokens

B, T, MAX_TOKENS = 6, 9, 12
# the reduction of ours that each of TRL's loss types is; bnpo is dapo with the tokens of one micro-batch as N
REDUCTIONS = {"grpo": "grpo", "dapo": "dapo", "bnpo": "dapo", "dr_grpo": "dr_grpo", "cispo": "dapo", "sapo": "grpo"}
CLIPPED = ["grpo", "dapo", "bnpo", "dr_grpo"]
CLIPS = [(0.2, 0.2), (0.2, 0.28), (0.35, 0.1)]


def a_batch(seed: int) -> dict[str, Tensor]:
    """Completions of unequal length, some with a tool's reply in the middle, that cross both clips."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logprobs = noise(B, T).abs().neg()
    lengths = torch.tensor([9, 8, 6, 9, 5, 7])
    completion_mask = (torch.arange(T) < lengths[:, None]).long()
    tool_mask = torch.ones(B, T, dtype=torch.long)
    tool_mask[0, 3:6] = 0
    tool_mask[2, 1] = 0
    tool_mask[4, 2:4] = 0
    return {
        "logprobs": logprobs,
        "old_per_token_logps": logprobs + 0.4 * noise(B, T),
        "ref_per_token_logps": logprobs + 0.7 * noise(B, T),
        "advantages": noise(B),
        "prompt_ids": torch.zeros(B, 2, dtype=torch.long),
        "prompt_mask": torch.ones(B, 2, dtype=torch.long),
        "completion_ids": torch.zeros(B, T, dtype=torch.long),
        "completion_mask": completion_mask,
        "tool_mask": tool_mask,
    }


def rows(batch: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    return {name: value[start:stop] for name, value in batch.items()}


def rows_of(mask: Tensor) -> Tensor:
    """Which episode each token belongs to."""
    return torch.arange(len(mask))[:, None].expand_as(mask)


def policy_mask(batch: dict[str, Tensor]) -> Tensor:
    return batch["completion_mask"] * batch["tool_mask"]


def trl_loss(
    parts: list[dict[str, Tensor]],
    loss_type: str,
    beta: float,
    clip: tuple[float, float],
    *,
    level: str = "token",
    delta: float | None = None,
    temperatures: tuple[float, float] = (1.0, 1.05),
) -> tuple[Tensor, Tensor, Any]:
    """TRL's loss summed over the micro-batches, its gradient by the log-probabilities, and its metrics."""
    trainer: Any = SimpleNamespace(
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        args=SimpleNamespace(
            use_bias_correction_kl=False,
            delta=delta,
            steps_per_generation=len(parts),
            sapo_temperature_pos=temperatures[0],
            sapo_temperature_neg=temperatures[1],
        ),
        loss_type=loss_type,
        epsilon_low=clip[0],
        epsilon_high=clip[1],
        use_vllm="importance_sampling_ratio" in parts[0],
        vllm_importance_sampling_correction=True,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=len(parts),
        max_completion_length=MAX_TOKENS,
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    total, gradients = torch.zeros((), dtype=torch.float64), []
    num_tokens = torch.stack([policy_mask(part).sum() for part in parts]).sum()
    for part in parts:
        logprobs = part["logprobs"].clone().requires_grad_()
        result = (logprobs, torch.zeros_like(logprobs), None)
        trainer._get_per_token_logps_and_entropies = lambda *_, result=result, **__: result
        loss = GRPOTrainer._compute_loss(trainer, None, {**part, "num_items_in_batch": num_tokens})
        gradients.append(torch.autograd.grad(loss, logprobs)[0])
        total += loss.detach()
    return total, torch.cat(gradients), trainer._metrics["train"]


def our_loss(
    parts: list[dict[str, Tensor]],
    loss_type: str,
    beta: float,
    clip: tuple[float, float],
    loss: Callable[..., Tensor] = policy_loss,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Ours; `options` are those of `loss`, whose own bounds are `clip` where it has two."""
    if loss in (policy_loss, gspo_loss):
        options |= {"clip_low": clip[0], "clip_high": clip[1]}
    total, gradients = torch.zeros((), dtype=torch.float64), []
    num_tokens = sum(int(policy_mask(part).sum()) for part in parts)
    for part in parts:
        logprobs = part["logprobs"].clone().requires_grad_()
        mask = policy_mask(part)
        episodes = {"episodes": rows_of(mask)} if loss is gspo_loss else {}
        losses = loss(logprobs, part["old_per_token_logps"], part["advantages"][:, None], mask, **episodes, **options)
        losses = losses * part.get("importance_sampling_ratio", 1.0)
        if beta:
            losses = losses + beta * kl_loss(logprobs, part["ref_per_token_logps"], mask, kind="k3")
        weights = token_weights(
            mask,
            mask.sum(-1, keepdim=True),
            reduction=REDUCTIONS[loss_type],
            num_episodes=B,
            num_tokens=num_tokens,
            max_tokens=MAX_TOKENS,
            dtype=torch.float64,
        )
        value = reduce(losses, weights)
        gradients.append(torch.autograd.grad(value, logprobs)[0])
        total += value.detach()
    return total, torch.cat(gradients)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("beta", [0.0, 0.04, 1.0])
@pytest.mark.parametrize("loss_type", CLIPPED)
def test_loss_and_gradient_equal_those_of_trl(
    loss_type: str, beta: float, clip: tuple[float, float], seed: int
) -> None:
    batch = a_batch(seed)
    expected_loss, expected_gradient, _ = trl_loss([batch], loss_type, beta, clip)
    loss, gradient = our_loss([batch], loss_type, beta, clip)
    assert expected_gradient.abs().max() > 1e-3
    assert torch.allclose(loss, expected_loss, rtol=0, atol=1e-7)
    assert torch.allclose(gradient, expected_gradient, rtol=0, atol=1e-7)


# how each of the others is called in TRL, and in ours
FAMILY = {
    "gspo": ("grpo", {"level": "sequence"}, gspo_loss, {}),
    "gspo with dapo's mean": ("dapo", {"level": "sequence"}, gspo_loss, {}),
    "cispo": ("cispo", {}, cispo_loss, {"ratio_max": 1.28}),
    "sapo": ("sapo", {}, sapo_loss, {"positive_temperature": 1.0, "negative_temperature": 1.05}),
    "sapo, sharp": (
        "sapo",
        {"temperatures": (2.0, 5.0)},
        sapo_loss,
        {"positive_temperature": 2.0, "negative_temperature": 5.0},
    ),
    "dual clip": ("dapo", {"delta": 1.5}, policy_loss, {"dual_clip": 1.5}),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("name", FAMILY)
def test_loss_and_gradient_of_the_family_equal_those_of_trl(name: str, beta: float, seed: int) -> None:
    loss_type, theirs, loss, ours = FAMILY[name]
    batch, clip = a_batch(seed), (0.02, 0.03) if loss is gspo_loss else (0.2, 0.28)
    high = ours.get("ratio_max", clip[1])
    expected_loss, expected_gradient, _ = trl_loss([batch], loss_type, beta, (clip[0], high), **theirs)
    value, gradient = our_loss([batch], loss_type, beta, clip, loss, **ours)
    assert expected_gradient.abs().max() > 1e-3
    assert torch.allclose(value, expected_loss, rtol=0, atol=1e-7)
    assert torch.allclose(gradient, expected_gradient, rtol=0, atol=1e-7)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_correction_for_another_sampler_equals_that_of_trl(level: str) -> None:
    batch = a_batch(6)
    mask, noise = policy_mask(batch), torch.randn(B, T, generator=torch.Generator().manual_seed(7)).double()
    gap = torch.where(mask == 1, 0.4 * noise, 0.0)
    # as TRL computes it where it generates: masked, summed over a sequence, cut at the maximum
    expected = (gap.sum(-1, keepdim=True) if level == "sequence" else gap).exp().clamp(max=1.3).expand(B, T)
    old = batch["old_per_token_logps"]
    weights = importance_weights(old, old - gap, mask, rows_of(mask), level=level, maximum=1.3)
    assert torch.allclose(weights[mask == 1], expected[mask == 1])
    expected_loss, expected_gradient, _ = trl_loss(
        [{**batch, "importance_sampling_ratio": expected}], "dapo", 0.04, (0.2, 0.28)
    )
    # ours multiplies the policy loss before the KL is added, and so does TRL's
    corrected = our_loss([{**batch, "importance_sampling_ratio": weights}], "dapo", 0.0, (0.2, 0.28))
    plain, with_kl = (our_loss([batch], "dapo", beta, (0.2, 0.28)) for beta in (0.0, 0.04))
    assert torch.allclose(corrected[0] + with_kl[0] - plain[0], expected_loss, rtol=0, atol=1e-7)
    assert torch.allclose(corrected[1] + with_kl[1] - plain[1], expected_gradient, rtol=0, atol=1e-7)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_two_accumulated_micro_batches_equal_those_of_trl(loss_type: str) -> None:
    batch = a_batch(3)
    parts = [rows(batch, 0, 3), rows(batch, 3, 6)]
    expected_loss, expected_gradient, _ = trl_loss(parts, loss_type, 0.04, (0.2, 0.28))
    loss, gradient = our_loss(parts, loss_type, 0.04, (0.2, 0.28))
    assert torch.allclose(loss, expected_loss, rtol=0, atol=1e-7)
    assert torch.allclose(gradient, expected_gradient, rtol=0, atol=1e-7)


@pytest.mark.parametrize("clip", CLIPS)
def test_clip_shares_and_kl_equal_the_metrics_of_trl(clip: tuple[float, float]) -> None:
    batch = a_batch(4)
    mask = policy_mask(batch)
    *_, expected = trl_loss([batch], "dapo", 0.04, clip)
    old = batch["old_per_token_logps"]
    bounds = {"low": 1 - clip[0], "high": 1 + clip[1]}
    actual = clip_shares(batch["logprobs"] - old, batch["advantages"][:, None], mask, **bounds)
    kl = kl_estimate(batch["logprobs"], batch["ref_per_token_logps"], "k3")[mask == 1].mean()
    assert actual["clip_low_share"].item() == pytest.approx(expected["clip_ratio/low_mean"][0], abs=1e-6)
    assert actual["clip_high_share"].item() == pytest.approx(expected["clip_ratio/high_mean"][0], abs=1e-6)
    assert min(actual["clip_low_share"].item(), actual["clip_high_share"].item()) > 0
    assert kl.item() == pytest.approx(expected["kl"][0], abs=1e-6)


def test_group_advantages_equal_the_formula_of_trl_with_its_own_nan_aware_std() -> None:
    from trl.trainer.utils import nanstd

    generator = torch.Generator().manual_seed(5)
    rewards = torch.rand(4, 6, generator=generator, dtype=torch.float64)
    rewards[1, 2] = rewards[3, 0] = torch.nan
    centred = rewards - rewards.nanmean(dim=1, keepdim=True)
    expected = (centred / (nanstd(rewards, dim=1)[:, None] + 1e-4)).nan_to_num(0.0)
    actual, _ = group_advantages(rewards.flatten(), torch.arange(4).repeat_interleave(6))
    # TRL's correction count / (count - 1) is a division in fp32
    assert torch.allclose(actual, expected.flatten(), rtol=0, atol=1e-7)
