"""Weights as files, for engines in other processes that load them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

_SHARD_BYTES = 1 << 30  # of tensors in memory at a time


def write(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Writes safetensors, each of about a gigabyte, so that not all tensors are in memory at a time."""
    for number, shard in enumerate(_shards(tensors)):
        save_file(shard, folder / f"model-{number:05d}.safetensors")


def _shards(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for name, tensor in tensors:
        # A copy, because files hold no tensors that share memory.
        shard[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        if sum(part.nbytes for part in shard.values()) > _SHARD_BYTES:
            yield shard
            shard = {}
    if shard:
        yield shard
