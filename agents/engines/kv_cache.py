"""Keys and values of running episodes in fixed slots, and of paused ones beside them."""

# S slots, C tokens a slot can hold, K key-value heads, D head size, R rows of a forward, T new tokens per row

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from verigym.agents.attention import pad, unpad

Parked = tuple[Tensor, Tensor]


class SlotCache:
    """Per layer, keys and values of S slots of C tokens. The first rows are the running ones, without gaps."""

    def __init__(
        self,
        layers: int,
        heads: int,
        head_size: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        head_size_v: int | None = None,
    ) -> None:
        self.layers, self.heads, self.sizes = layers, heads, (head_size, head_size_v or head_size)
        self.dtype, self.device = dtype, device
        self.slots = self.capacity = 0
        self.keys = self.values = torch.empty(0)

    def reserve(self, slots: int, capacity: int) -> None:
        """Grows to at least this many slots and tokens, keeping what is there."""
        if slots <= self.slots and capacity <= self.capacity:
            return
        slots, capacity = max(slots, self.slots), max(-(-capacity // 64) * 64, self.capacity)
        grown = [
            torch.zeros(self.layers, slots, capacity, self.heads, size, dtype=self.dtype, device=self.device)
            for size in self.sizes
        ]
        if self.slots:
            for new, old in zip(grown, (self.keys, self.values), strict=True):
                new[:, : self.slots, : self.capacity] = old
        self.keys, self.values = grown
        self.slots, self.capacity = slots, capacity

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copies the first `length` tokens of a row into other rows."""
        for kv in (self.keys, self.values):
            kv[:, list(targets), :length] = kv[:, source : source + 1, :length]

    def park(self, row: int, length: int) -> Parked:
        """The first `length` tokens of a row, in memory of their own."""
        return self.keys[:, row, :length].clone(), self.values[:, row, :length].clone()

    def unpark(self, row: int, parked: Parked) -> None:
        """Puts parked tokens at the start of a row."""
        for kv, saved in zip((self.keys, self.values), parked, strict=True):
            kv[:, row, : saved.shape[1]] = saved


class ChunkLayout:
    """New tokens for consecutive rows of a cache that may hold earlier ones: prefill, continued turns, decoding.

    `first_row` is the first of the R rows, `starts` the tokens each holds already, `lengths` its new ones.
    """

    def __init__(self, cache: SlotCache, first_row: int, starts: Sequence[int], lengths: Sequence[int]) -> None:
        self.cache, device = cache, cache.device
        self.first, self.rows = first_row, len(starts)
        begin, sizes = torch.tensor(list(starts)), torch.tensor(list(lengths))
        longest, self.span = int(sizes.max()), int((begin + sizes).max())
        offsets = torch.arange(int(sizes.sum())) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
        row = torch.repeat_interleave(torch.arange(self.rows), sizes)
        positions = begin[row] + offsets
        self.shape = (self.rows, longest)
        self.position_ids = positions[None].to(device)  # (1, N)
        self.index = (row * longest + offsets).to(device)  # (N,) into the padded (R * T)
        self.write_rows, self.write_positions = (row + first_row).to(device), positions.to(device)
        query_positions = begin[:, None] + torch.arange(longest)  # (R, T)
        visible = torch.arange(self.span) <= query_positions[..., None]  # (R, T, L)
        self.mask = torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)[:, None].to(device, cache.dtype)
        self.last = (sizes.cumsum(0) - 1).to(device)  # (R,) each row's last new token in the row of N

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.write_rows, self.write_positions] = key[0].transpose(0, 1)
        values[self.write_rows, self.write_positions] = value[0].transpose(0, 1)
        rows = slice(self.first, self.first + self.rows)
        seen = [kv[rows, : self.span].transpose(1, 2) for kv in (keys, values)]  # (R, K, L, D)
        if self.shape[1] == 1:
            # One token a row needs no padding, and a group of query heads is just more queries for its key head.
            heads, size = query.shape[1], query.shape[3]
            grouped = query[0].transpose(0, 1).reshape(self.rows, self.cache.heads, heads // self.cache.heads, size)
            out = scaled_dot_product_attention(grouped, *seen, attn_mask=self.mask, scale=scale)
            return out.reshape(1, self.rows, heads, out.shape[-1])
        padded = pad(query, self.index, self.shape)
        enable_gqa = query.shape[1] != self.cache.heads
        out = scaled_dot_product_attention(padded, *seen, attn_mask=self.mask, scale=scale, enable_gqa=enable_gqa)
        return unpad(out, self.index)
