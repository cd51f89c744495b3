"""Policy-gradient losses for language models: pure functions of tensors that read as the papers."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from verigym.tasks.errors import ConfigError, UnknownNameError

# B episodes, T tokens, N policy tokens in the whole optimizer step, V vocabulary
# Per-token tensors are (B, T), or any one shape when episodes are packed or flat. Logarithms are in nats.
# `episodes`, in that shape too, says which episode a token belongs to: small integers, in any order.

Correction = Literal["none", "token", "sequence"]
KLKind = Literal["k1", "k2", "k3"]
Reduction = Literal["grpo", "dapo", "dr_grpo"]

MAX_LOG_RATIO = 20.0


def token_logprobs(logits: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
    """Log-probability of each token under the softmax of its logits at a temperature.

    `logits` (..., T, V) and `token_ids` (..., T), already aligned by the caller: a model's logits at position
    t-1 predict token t, so pass `logits[:, :-1]` with `ids[:, 1:]`. Every id lies in [0, V), padding too.
    Returns (..., T), in fp32 whatever precision the logits have (fp64 stays fp64).
    Raises ValueError for a temperature that is not positive.
    """
    return _log_softmax(logits, temperature).gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


def entropy(logits: Tensor, temperature: float) -> Tensor:
    """Entropy of the softmax of the logits at a temperature, in nats.

    `logits` (..., V), where -inf is allowed. Returns (...), in the precision of `token_logprobs`.
    Raises ValueError for a temperature that is not positive.
    """
    logprobs = _log_softmax(logits, temperature)  # (..., V)
    probabilities = logprobs.exp()
    # 0 log 0 is 0, but 0 * -inf is NaN
    return -(probabilities * logprobs.masked_fill(probabilities == 0, 0.0)).sum(-1)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float = math.inf,
) -> Tensor:
    """PPO's clipped surrogate of each token, as a loss to minimise (arXiv:1707.06347, eq. 7).

    `logprobs`, `old_logprobs` and `mask` (1 on the policy's own tokens) are (B, T); `advantages` is (B, T) or
    (B, 1). Returns (B, T), 0 where the mask is 0 whatever stands there; only `logprobs` receives a gradient.
    `dual_clip`, above 1 + clip_high, bounds the ratio of a negative advantage too (Ye et al. 2020, arXiv:1912.09729,
    with 3): the loss of a token is then at most dual_clip |A|.
    Raises ValueError for shapes that would broadcast by accident, such as advantages of shape (B,).
    Departures: two bounds, 1 - clip_low and 1 + clip_high (DAPO, arXiv:2503.14476; equal bounds are PPO's);
    the log-ratio is clamped to +-20, because one overflowing token would make the whole step's gradient NaN.
    """
    policy, advantages = _prepare(logprobs, old_logprobs, advantages, mask)
    ratio = _ratio(logprobs, old_logprobs.detach(), policy)  # (B, T)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.min(ratio.clamp(max=dual_clip) * advantages, clipped * advantages)


def gspo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    episodes: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """Group sequence policy optimisation: one ratio for an episode, s = exp(mean of its tokens' log-ratios).

    Zheng et al. 2025, arXiv:2507.18071, with bounds 3e-4 and 4e-4; its mean over episodes is the `grpo` reduction.
    Departure: this is the paper's GSPO-token, where each token's ratio has the value s and the gradient of its own
    log-probability, times s. Where an episode's tokens share their advantage, value and gradient of its loss are those
    of GSPO; where they do not (a critic's), each token still answers for its own.
    `episodes` (B, T) must have all tokens of an episode in one call: the ratio is a mean over them. The other shapes,
    errors and the clamp are those of `policy_loss`.
    """
    policy, advantages = _prepare(logprobs, old_logprobs, advantages, mask)
    mean = episode_means(logprobs.detach() - old_logprobs.detach(), mask, episodes)  # (B, T)
    own = torch.where(policy, logprobs, 0.0)
    ratio = (mean.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO) + own - own.detach()).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.min(ratio * advantages, clipped * advantages)


def cispo_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, ratio_max: float) -> Tensor:
    """CISPO: REINFORCE on every token, weighed by its ratio, which is cut at a maximum and carries no gradient.

    -stopgrad(min(r, ratio_max)) A log p (MiniMax-M1 2025, arXiv:2506.13585). No token's gradient is lost to a clip.
    Shapes, errors and the clamp are those of `policy_loss`; the paper's mean over tokens is the `dapo` reduction.
    Departure: the paper names the bound 1 + eps_high, and `ratio_max` is the bound itself, 5 in TRL and in ScaleRL
    (arXiv:2510.13786); there is none from below, as in the paper's own runs.
    """
    policy, advantages = _prepare(logprobs, old_logprobs, advantages, mask)
    weights = _ratio(logprobs, old_logprobs, policy).detach().clamp(max=ratio_max)  # (B, T)
    return -weights * advantages * torch.where(policy, logprobs, 0.0)


def sapo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    positive_temperature: float,
    negative_temperature: float,
) -> Tensor:
    """Soft adaptive policy optimisation: a sigmoid gate in the place of the clip.

    -(4 / tau) sigmoid(tau (r - 1)) A, tau being `positive_temperature` for A > 0 and `negative_temperature`
    otherwise (Gao et al. 2025, arXiv:2511.20347, with 1.0 and 1.05). At r = 1 the gradient is REINFORCE's; it fades on
    both sides, faster for a higher temperature. Shapes, errors and the clamp are those of `policy_loss`.
    The paper averages over each episode, then over episodes: the `grpo` reduction. Departures: none but the clamp.
    """
    policy, advantages = _prepare(logprobs, old_logprobs, advantages, mask)
    ratio = _ratio(logprobs, old_logprobs.detach(), policy)  # (B, T)
    temperature = torch.full_like(ratio, negative_temperature).masked_fill(advantages > 0, positive_temperature)
    return -(4 / temperature) * torch.sigmoid(temperature * (ratio - 1)) * advantages


def episode_means(values: Tensor, mask: Tensor, episodes: Tensor) -> Tensor:
    """The mean of `values` over the policy tokens of its episode, at each policy token; 0 where the mask is 0.

    All tensors have one shape, which is returned. Raises ValueError for shapes that differ.
    """
    _require_shape(values, mask=mask, episodes=episodes)
    policy = mask.bool()
    counts = _episode_sums(torch.ones_like(values), policy, episodes)
    return _episode_sums(values, policy, episodes) / counts.clamp(min=1)


@torch.no_grad()
def importance_weights(
    old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, episodes: Tensor, *, level: Correction, maximum: float
) -> Tensor:
    """What to multiply each token's policy loss by, where another policy sampled than the old one.

    w = min(exp(old - sampler), maximum) of each `token` (truncated importance sampling, Yao et al. 2025, "Your
    efficient RL framework secretly brings you off-policy RL training", with 2), or of its whole `sequence`,
    exp(sum(old - sampler)); 1 for `none`. It corrects for the sampler's engine and for weights that lag behind, apart
    from the loss's own ratio, which is to the old policy, and carries no gradient.
    All tensors are (B, T), which is returned; 1 where the mask is 0. The log-ratio is clamped to +-20.
    Departure: neither the KL, the entropy nor the critic's loss is meant to be weighed, so that a weight near 0 takes
    no token out of the regularisation.
    Raises UnknownNameError for another level, ValueError for shapes that differ.
    """
    _require_shape(old_logprobs, sampler_logprobs=sampler_logprobs, mask=mask, episodes=episodes)
    policy = mask.bool()
    if level == "none":
        return torch.ones_like(old_logprobs)
    if level == "token":
        return _ratio(old_logprobs, sampler_logprobs, policy).clamp(max=maximum)
    if level == "sequence":
        log_ratio = _episode_sums(old_logprobs - sampler_logprobs, policy, episodes)
        return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().clamp(max=maximum)
    raise UnknownNameError.of("correction", level, get_args(Correction))


@torch.no_grad()
def sequence_mask(
    old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, episodes: Tensor, *, max_gap: float, max_ratio: float
) -> Tensor:
    """The mask without the episodes that the sampler and the old policy see too differently.

    An episode stays if the mean of its |old - sampler| is at most `max_gap` nats, and exp(sum(old - sampler)) lies in
    [1 / max_ratio, max_ratio] (masked importance sampling of sequences, Liu et al. 2025, "When speed kills
    stability"); infinite bounds keep all. Departures: the bound on the mean gap, which does not grow with the length;
    and a dropped episode has no loss, but stays in the counts B and N, so that the others weigh the same whoever is
    dropped, and in its group's baseline.
    All tensors are (B, T); returns a boolean mask of that shape. Raises ValueError for shapes that differ.
    """
    _require_shape(old_logprobs, sampler_logprobs=sampler_logprobs, mask=mask, episodes=episodes)
    policy = mask.bool()
    difference = old_logprobs - sampler_logprobs
    near = episode_means(difference.abs(), policy, episodes) <= max_gap
    return policy & near & (_episode_sums(difference, policy, episodes).abs() <= math.log(max_ratio))


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float) -> Tensor:
    """PPO's clipped value loss of each token: half the larger of two squared errors (as in openai/baselines).

    .5 max((V - R)^2, (V_old + clamp(V - V_old, -clip, clip) - R)^2). All tensors are (B, T); returns (B, T), 0 where
    the mask is 0 whatever stands there; only `values` receives a gradient. `clip` may be infinite.
    Raises ValueError for shapes that differ.
    """
    _require_shape(values, old_values=old_values, returns=returns, mask=mask)
    policy = mask.bool()
    values = torch.where(policy, values, 0.0)
    old_values, returns = (torch.where(policy, other.detach(), 0.0) for other in (old_values, returns))
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return torch.max((values - returns).square(), (clipped - returns).square()) / 2


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KLKind) -> Tensor:
    """Per-token estimate of KL(policy || reference) in nats, on tokens that the policy sampled.

    With d = ref - logprobs: k1 = -d, k2 = d^2 / 2, k3 = e^d - d - 1 (Schulman 2020, "Approximating KL
    divergence"). As values k1 and k3 are unbiased; k2 is biased but never negative and varies less than k1.
    Both tensors and the result have one shape; nothing is masked.
    Raises UnknownNameError for another kind.
    Departure: k3 holds d at 20 from above, because e^d overflows; there its gradient is 0.
    """
    log_ratio = ref_logprobs - logprobs  # (B, T)
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    if kind == "k3":
        log_ratio = log_ratio.clamp(max=MAX_LOG_RATIO)
        return torch.expm1(log_ratio) - log_ratio
    raise UnknownNameError.of("KL estimate", kind, get_args(KLKind))


def kl_loss(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, kind: KLKind) -> Tensor:
    """A KL estimate as a per-token loss, to be scaled by beta and added to the policy loss.

    On the policy's own samples k2 has the gradient of KL(policy || reference); k3, which GRPO uses (Shao et
    al. 2024, arXiv:2402.03300, eq. 4), has that of KL(reference || policy).
    `logprobs`, `ref_logprobs` and `mask` are (B, T). Returns (B, T), 0 where the mask is 0 whatever stands
    there; only `logprobs` receives a gradient.
    Raises ConfigError for k1, UnknownNameError for another kind, and ValueError for shapes that differ.
    """
    if kind == "k1":
        raise ConfigError("k1 as a KL loss has an expected gradient of 0: use k2 or k3, or put k1 in the reward")
    _require_shape(logprobs, ref_logprobs=ref_logprobs, mask=mask)
    policy = mask.bool()
    return kl_estimate(torch.where(policy, logprobs, 0.0), torch.where(policy, ref_logprobs.detach(), 0.0), kind)


def token_weights(
    mask: Tensor,
    lengths: Tensor,
    *,
    reduction: Reduction,
    num_episodes: int,
    num_tokens: int,
    max_tokens: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The weight of each token in an optimizer step's loss, the sum of weight times token loss.

    - grpo 1 / (B n_i), the mean over episodes of each one's token mean (arXiv:2402.03300, eq. 3)
    - dapo 1 / N, the mean over tokens (arXiv:2503.14476)
    - dr_grpo 1 / (B Lmax), where no episode's length enters (arXiv:2503.20783)
    `mask` has any shape. `lengths` has that shape, or (B, 1), and holds the policy tokens n_i of each token's
    episode: `mask.sum(-1, keepdim=True)` for one episode per row, `n[episode_index]` for packed rows.
    `num_episodes` B, `num_tokens` N and `max_tokens` Lmax (the budget of policy tokens per episode) are those
    of the whole optimizer step, over all micro-batches and ranks, less what is out of the loss (unscorable
    episodes). So the step's loss is the same for any micro-batches, packing and order. Where gradients are
    averaged over ranks (DDP, FSDP), multiply it by their number.
    Returns `mask`'s shape in `dtype`, 0 where the mask is 0.
    Raises UnknownNameError for another reduction, and ValueError for lengths that would broadcast by accident
    or for a total of 0 while the mask has tokens.
    """
    _require_expandable(mask, lengths=lengths)
    denominator: int | Tensor
    if reduction == "grpo":
        denominator = num_episodes * lengths.clamp(min=1).to(dtype)
    elif reduction == "dapo":
        denominator = num_tokens
    elif reduction == "dr_grpo":
        denominator = num_episodes * max_tokens
    else:
        raise UnknownNameError.of("reduction", reduction, get_args(Reduction))
    smallest = num_episodes if isinstance(denominator, Tensor) else denominator
    if smallest < 1 and mask.any():
        raise ValueError(
            f"the {reduction} reduction would divide by {smallest} (num_episodes={num_episodes}, "
            f"num_tokens={num_tokens}, max_tokens={max_tokens}): pass the totals of the whole optimizer step"
        )
    # a step without policy tokens weighs 0, not 0 / 0
    return torch.where(mask.bool(), 1.0 / torch.as_tensor(denominator, dtype=dtype, device=mask.device), 0.0)


def reduce(token_losses: Tensor, weights: Tensor) -> Tensor:
    """A micro-batch's part of the step's loss: the sum of weight times token loss.

    `token_losses` and `weights` (of `token_weights`) have one shape; returns (). The parts of all
    micro-batches add up to the step's loss: backpropagate each and divide by nothing. A token of weight 0
    counts 0 whatever its loss.
    Raises ValueError for shapes that differ.
    """
    _require_shape(token_losses, weights=weights)
    return (weights * torch.where(weights != 0, token_losses, 0.0)).sum()


@torch.no_grad()
def policy_metrics(logprobs: Tensor, old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """How far the current, the old and the sampler's policy are apart, over the tokens of the mask.

    Every value is (). Pass the tokens of the whole step at once (flat is fine): an effective sample size is
    no mean of its parts.
    - `approximate_kl`: KL(old || new) by k3 on old's samples, in nats per token.
    - `sampler_gap_mean`, `sampler_gap_max`: |old - sampler| in nats, the engine's noise and its lag.
    - `effective_sample_share`: (sum w)^2 / (N sum w^2) with w = exp(old - sampler), 1 when the two agree.
    Without policy tokens all are 0. Raises ValueError for shapes that differ.
    """
    _require_shape(logprobs, old_logprobs=old_logprobs, sampler_logprobs=sampler_logprobs, mask=mask)
    policy = mask.bool()
    count = policy.sum().clamp(min=1)
    gap = torch.where(policy, (old_logprobs - sampler_logprobs).abs(), 0.0)
    weights = _ratio(old_logprobs, sampler_logprobs, policy) * policy
    smallest = torch.finfo(weights.dtype).tiny
    return {
        "approximate_kl": torch.where(policy, kl_estimate(old_logprobs, logprobs, "k3"), 0.0).sum() / count,
        "sampler_gap_mean": gap.sum() / count,
        "sampler_gap_max": gap.max() if gap.numel() else gap.sum(),
        "effective_sample_share": weights.sum().square() / (count * weights.square().sum()).clamp(min=smallest),
    }


@torch.no_grad()
def clip_shares(log_ratio: Tensor, advantages: Tensor, mask: Tensor, *, low: float, high: float) -> dict[str, Tensor]:
    """Shares of the mask's tokens that went too far the way their advantage asks for, where the loss holds them back.

    `clip_low_share` (ratio < low, A < 0) and `clip_high_share` (ratio > high, A > 0), each (); 0 without tokens.
    `log_ratio` and `mask` are (B, T), `advantages` (B, T) or (B, 1); `low` and `high` are ratios.
    Raises ValueError for shapes that would broadcast by accident.
    """
    policy, advantages = _prepare(log_ratio, log_ratio, advantages, mask)
    ratio, count = log_ratio.exp(), policy.sum().clamp(min=1)
    return {
        "clip_low_share": ((ratio < low) & (advantages < 0)).sum() / count,
        "clip_high_share": ((ratio > high) & (advantages > 0)).sum() / count,
    }


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, not {temperature}: a softmax at 0 is an argmax")
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(precise / temperature, dim=-1)


def _prepare(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The mask as booleans and the advantages (B, T), 0 off it; ValueError for shapes that broadcast by accident."""
    _require_shape(logprobs, old_logprobs=old_logprobs, mask=mask)
    _require_expandable(logprobs, advantages=advantages)
    policy = mask.bool()
    return policy, torch.where(policy, advantages.detach(), 0.0)


def _ratio(logprobs: Tensor, old_logprobs: Tensor, policy: Tensor) -> Tensor:
    """exp(logprobs - old_logprobs), and 1 off the policy's tokens, chosen before exp: inf * 0 is NaN."""
    log_ratio = torch.where(policy, logprobs - old_logprobs, 0.0)
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _episode_sums(values: Tensor, policy: Tensor, episodes: Tensor) -> Tensor:
    """The sum of `values` over the policy tokens of its episode, at each policy token; 0 off them."""
    index = episodes.flatten()
    sums = values.new_zeros(int(index.max()) + 1 if index.numel() else 0)
    sums = sums.index_add(0, index, torch.where(policy, values, 0.0).flatten())
    return torch.where(policy, sums[index].view_as(values), 0.0)


def _require_shape(expected: Tensor, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.shape != expected.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected.shape)}")


def _require_expandable(expected: Tensor, **tensors: Tensor) -> None:
    """As many axes, each of the expected size or 1: else (B,) would pass for (B, T) where B equals T."""
    for name, tensor in tensors.items():
        sizes = zip(tensor.shape, expected.shape, strict=False)
        if tensor.dim() != expected.dim() or any(size not in (1, full) for size, full in sizes):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected.shape)} or (B, 1)")
