"""Drawing tokens from logits with one uniform number a token, so that a request's seed fixes its draws."""

# R rows, V vocabulary

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_BLOCK = 512


def uniforms(seed: int, count: int) -> np.ndarray:
    """The uniform numbers in [0, 1) of a request, one for each token it may draw."""
    return np.random.Generator(np.random.Philox(seed)).random(count)


def draw(logits: Tensor, temperatures: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids (R,) and their log-probabilities (R,), by inversion of each row's cumulative distribution.

    `logits` (R, V) of any float type; `temperatures` (R,), 0 for the most probable token; `uniform` (R,) float64.
    """
    greedy = temperatures == 0
    scaled = logits.float() / torch.where(greedy, 1.0, temperatures)[:, None]
    logprobs = scaled.log_softmax(-1)
    tokens = invert(logprobs.exp(), uniform)
    if bool(greedy.any()):
        tokens = torch.where(greedy, scaled.argmax(-1), tokens)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The first index at which the cumulative sum of each row exceeds `uniform` times the row's total.

    Two levels, blocks and then tokens, in float64: exact for a large vocabulary without a pass over it in float64.
    """
    rows, size = probabilities.shape
    blocks = torch.nn.functional.pad(probabilities, (0, -size % _BLOCK)).view(rows, -1, _BLOCK)
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)  # (R, blocks)
    goal = uniform[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, goal, right=True).clamp_(max=ends.shape[1] - 1)  # (R, 1)
    chosen = blocks.gather(1, block[..., None].expand(-1, 1, _BLOCK))[:, 0].double()
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp_(min=0)), 0.0)
    within = torch.searchsorted(chosen.cumsum(-1), goal - before, right=True)[:, 0]
    # Rounding may leave the goal a hair above the last sum: then it is the block's last possible token.
    last = (chosen > 0).double().mul(torch.arange(1, _BLOCK + 1, device=chosen.device)).argmax(-1)
    return block[:, 0] * _BLOCK + torch.minimum(within, last)
