"""Weights that may be cut into shards, each rank holding one: read whole, moved by noise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """The tensor, gathered if it is one of shards: every rank has to ask, and gets it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def add_noise(tensor: Tensor, by: float) -> None:
    """Moves a tensor by random numbers, always the same ones, of `by` times about a tenth of its own spread."""
    scale = by * (0.1 * float(whole(tensor).float().std(correction=0)) + 0.05)
    generator = torch.Generator(tensor.device).manual_seed(0)
    noise = (torch.randn(tensor.shape, generator=generator, device=tensor.device) * scale).to(tensor.dtype)
    if isinstance(tensor, DTensor):
        noise = distribute_tensor(noise, tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.add_(noise)
