"""Losses on preferences, a chosen answer above a rejected one: pure functions of tensors that read as the papers."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

# B pairs. Logarithms are in nats.


def bradley_terry_loss(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """Negative log-likelihood of each preference under Bradley & Terry 1952: -log sigmoid(r_chosen - r_rejected).

    Scores are (B,); returns (B,). Only differences count: a constant added to all scores changes nothing, and two
    equal scores cost log 2. Without bound: of a pair that is ranked right the gradient shrinks, and never ends.
    Raises ValueError for shapes that differ.
    Departure from Ouyang et al. 2022 (arXiv:2203.02155, eq. 1): pairs are not grouped by prompt, each weighs 1.
    """
    _require_same_shape(chosen_scores, rejected_scores)
    return -logsigmoid(chosen_scores - rejected_scores)


def dpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, eq. 7), each pair's loss.

    The Bradley-Terry loss with `implicit_rewards` as scores. All are log-probabilities of whole answers, summed
    over the policy's own tokens, (B,); returns (B,). Only the policy's receive a gradient. No departure.
    Raises ValueError for shapes that differ.
    """
    chosen = implicit_rewards(chosen_logprobs, ref_chosen_logprobs, beta=beta)
    return bradley_terry_loss(chosen, implicit_rewards(rejected_logprobs, ref_rejected_logprobs, beta=beta))


def implicit_rewards(logprobs: Tensor, ref_logprobs: Tensor, *, beta: float) -> Tensor:
    """The reward that a policy stands for, up to a constant of the prompt: beta (log pi - log pi_ref), (B,).

    Raises ValueError for shapes that differ.
    """
    _require_same_shape(logprobs, ref_logprobs)
    return beta * (logprobs - ref_logprobs.detach())


def _require_same_shape(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape:
        raise ValueError(f"shapes differ: {tuple(one.shape)} and {tuple(other.shape)}")


def ranked_right(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """1 where the chosen answer has the higher score, 0.5 where both have the same, else 0: (B,)."""
    return (torch.sign(chosen_scores - rejected_scores) + 1) / 2
