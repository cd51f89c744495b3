"""Keys and values of running episodes: prompts, which the members of a group share, and each row's own tokens."""

# S slots, C tokens a slot can hold, K key-value heads, H heads, D head size
# N new tokens of a forward, R rows, G prompts, P tokens of the longest prompt, T new tokens of the longest row,
# M new tokens of all rows of a prompt, L own tokens of the longest row

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from verigym.agents.attention import PackedLayout, pad, unpad

Parked = tuple[Tensor, Tensor]


class SlotCache:
    """Per layer, keys and values of S slots of C tokens. Those in use come first, without gaps."""

    def __init__(self, layers: int, heads: int, head_size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.layers, self.heads, self.head_size = layers, heads, head_size
        self.dtype, self.device = dtype, device
        self.clear()

    def clear(self) -> None:
        """Frees the memory."""
        self.slots = self.capacity = 0
        self.keys = self.values = torch.empty(0)

    def reserve(self, slots: int, capacity: int) -> None:
        """Grows to at least this many slots and tokens, by powers of two, keeping what is there."""
        if slots <= self.slots and capacity <= self.capacity:
            return
        slots = max(_power_of_two(slots), self.slots)
        capacity = max(_power_of_two(capacity), 64, self.capacity)
        shape = (self.layers, slots, capacity, self.heads, self.head_size)
        # Zeros, because what lies behind a row's last token is read with weight 0, and 0 * NaN is NaN.
        grown = [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2)]
        if self.slots:
            for new, old in zip(grown, (self.keys, self.values), strict=True):
                new[:, : self.slots, : self.capacity] = old
        self.keys, self.values = grown
        self.slots, self.capacity = slots, capacity

    def write(self, layer: int, slots: Tensor, positions: Tensor, key: Tensor, value: Tensor) -> None:
        """Puts new tokens (1, K, N, D) at these slots (N,) and positions (N,)."""
        self.keys[layer].index_put_((slots, positions), key[0].transpose(0, 1))
        self.values[layer].index_put_((slots, positions), value[0].transpose(0, 1))

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` tokens of a slot to another one."""
        for kv in (self.keys, self.values):
            kv[:, target, :length] = kv[:, source, :length]

    def park(self, slot: int, length: int) -> Parked:
        """The first `length` tokens of a slot, in memory of their own."""
        return self.keys[:, slot, :length].clone(), self.values[:, slot, :length].clone()

    def unpark(self, slot: int, parked: Parked) -> None:
        """Puts parked tokens at the start of a slot."""
        for kv, saved in zip((self.keys, self.values), parked, strict=True):
            kv[:, slot, : saved.shape[1]] = saved


@dataclass(eq=False, slots=True)
class Prompt:
    """A prompt in the cache: its slot, how many episodes read it, and the logits (V,) after its last token."""

    ids: tuple[int, ...]
    slot: int
    users: int = 0
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


class Prompts:
    """The prompts in use, each computed and kept once however many episodes start with it."""

    def __init__(self, cache: SlotCache) -> None:
        self.cache = cache
        self._by_slot: list[Prompt] = []
        self._by_ids: dict[tuple[int, ...], Prompt] = {}

    def __contains__(self, ids: tuple[int, ...]) -> bool:
        return ids in self._by_ids

    @property
    def lengths(self) -> list[int]:
        return [len(prompt.ids) for prompt in self._by_slot]

    def join(self, ids: tuple[int, ...]) -> Prompt:
        """The prompt of an episode that begins. A new one gets the next slot, still empty."""
        if ids not in self._by_ids:
            self._by_ids[ids] = Prompt(ids, len(self._by_slot))
            self._by_slot.append(self._by_ids[ids])
        self._by_ids[ids].users += 1
        return self._by_ids[ids]

    def leave(self, prompt: Prompt) -> None:
        """An episode of this prompt ends; the last one frees it, and the last slot closes the gap."""
        prompt.users -= 1
        if prompt.users or self._by_ids.get(prompt.ids) is not prompt:
            return
        del self._by_ids[prompt.ids]
        last = self._by_slot.pop()
        if last is not prompt:
            self.cache.move(last.slot, prompt.slot, len(last.ids))
            last.slot = prompt.slot
            self._by_slot[prompt.slot] = last

    def clear(self) -> None:
        self._by_slot.clear()
        self._by_ids.clear()


class NewPrompts:
    """Part of a forward: whole prompts for consecutive slots from `first` on."""

    def __init__(self, cache: SlotCache, first: int, lengths: Sequence[int]) -> None:
        self.cache, self.packed = cache, PackedLayout(lengths, cache.device)
        self.positions = self.packed.position_ids[0]  # (N,)
        sizes = torch.tensor(list(lengths))
        self.slots = first + torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(cache.device)
        self.last = (sizes.cumsum(0) - 1).to(cache.device)  # (G,)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.cache.write(layer, self.slots, self.positions, key, value)
        return self.packed.attend(layer, query, key, value, scale)


class NextTokens:
    """Part of a forward: new tokens for consecutive rows from `first` on, after their prompts and own tokens.

    Attention is taken over the prompts, each read once for all of its rows, and over the rows' own tokens; the two
    are merged by their log-sum-exps. `starts` counts a row's own tokens so far, `lengths` its new ones, `prompts`
    is the slot of its prompt.
    """

    def __init__(
        self,
        cache: SlotCache,
        prompts: Prompts,
        first: int,
        starts: Sequence[int],
        lengths: Sequence[int],
        row_prompts: Sequence[int],
    ) -> None:
        self.cache, self.prompt_cache, device = cache, prompts.cache, cache.device
        begin, sizes = torch.tensor(list(starts)), torch.tensor(list(lengths))
        rows, longest, self.span = len(starts), int(sizes.max()), int((begin + sizes).max())
        row = torch.repeat_interleave(torch.arange(rows), sizes)
        offset = torch.arange(len(row)) - (sizes.cumsum(0) - sizes)[row]
        own_positions = begin[row] + offset
        prompt, prompt_sizes = torch.tensor(list(row_prompts))[row], torch.tensor(prompts.lengths)
        self.last = (sizes.cumsum(0) - 1).to(device)  # (R,)
        self.positions = (own_positions + prompt_sizes[prompt]).to(device)  # (N,)
        self.slots, self.own_positions = (row + first).to(device), own_positions.to(device)
        self.rows = slice(first, first + rows)

        self.shape, self.index = (rows, longest), (row * longest + offset).to(device)
        visible = torch.arange(self.span) <= (begin[:, None] + torch.arange(longest))[..., None]  # (R, T, L)
        self.mask = self._as_mask(visible)

        counts = torch.bincount(prompt, minlength=len(prompt_sizes))
        order = prompt.argsort(stable=True)
        rank = torch.empty_like(prompt)  # of a token among those of its prompt
        rank[order] = torch.arange(len(row)) - (counts.cumsum(0) - counts)[prompt[order]]
        self.prompt_shape = (len(counts), int(counts.max()))
        self.prompt_index = (prompt * self.prompt_shape[1] + rank).to(device)
        self.prompt_span = int(prompt_sizes.max())
        self.prompt_mask = self._as_mask((torch.arange(self.prompt_span) < prompt_sizes[:, None])[:, None])

    def _as_mask(self, visible: Tensor) -> Tensor:
        mask = torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        return mask[:, None].to(self.cache.device, self.cache.dtype)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.cache.write(layer, self.slots, self.own_positions, key, value)
        own_out, own_sums = self._attend_own(layer, query, scale)
        out, sums = self._attend_prompts(layer, query, scale)
        return torch.lerp(out, own_out, torch.sigmoid(own_sums - sums).to(out.dtype))

    def _attend_own(self, layer: int, query: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        keys, values = (kv[layer, self.rows, : self.span] for kv in (self.cache.keys, self.cache.values))
        return _attend_padded(query, keys, values, self.mask, scale, self.index, self.shape)

    def _attend_prompts(self, layer: int, query: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        used = slice(self.prompt_shape[0])
        keys, values = (
            kv[layer, used, : self.prompt_span] for kv in (self.prompt_cache.keys, self.prompt_cache.values)
        )
        return _attend_padded(query, keys, values, self.prompt_mask, scale, self.prompt_index, self.prompt_shape)


class Joint:
    """The parts of one forward, laid end to end."""

    def __init__(self, parts: Sequence[NewPrompts | NextTokens]) -> None:
        self.parts = parts
        self.sizes = [len(part.positions) for part in parts]
        starts = [sum(self.sizes[:index]) for index in range(len(parts))]
        self.position_ids = torch.cat([part.positions for part in parts])[None]  # (1, N)
        # Each row's last new token among the N.
        self.last = torch.cat([part.last + start for part, start in zip(parts, starts, strict=True)])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        pieces = [states.split(self.sizes, 2) for states in (query, key, value)]
        outs = [part.attend(layer, *states, scale) for part, *states in zip(self.parts, *pieces, strict=True)]
        return torch.cat(outs, 1) if len(outs) > 1 else outs[0]


def _attend_padded(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, index: Tensor, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Attention (1, N, H, D) of queries (1, H, N, D), padded to `shape` by `index`, and log-sum-exps (1, N, H, 1).

    `keys` and `values` are (B, L, K, D), the mask (B, 1, T or 1, L) for a shape (B, T).
    """
    heads, repeats = keys.shape[2], query.shape[1] // keys.shape[2]
    # A group of query heads is just more queries for their one key head.
    folded = pad(query, index, shape).reshape(shape[0], heads, repeats * shape[1], query.shape[3])
    if mask.shape[2] > 1:
        mask = mask.repeat(1, 1, repeats, 1)
    out, sums = attend_with_sums(folded, keys.transpose(1, 2), values.transpose(1, 2), mask, scale)
    out, sums = (states.reshape(shape[0], query.shape[1], shape[1], -1) for states in (out, sums))
    return unpad(out, index), unpad(sums, index)


def attend_with_sums(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of (B, K, T, D) queries and the log-sum-exps (B, K, T) of its scores, in float32."""
    if query.device.type != "cpu":
        return portable_attend_with_sums(query, keys, values, mask, scale)
    # The kernel of scaled_dot_product_attention, which keeps the log-sum-exps to itself.
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # type: ignore[no-any-return]
        query, keys, values, 0.0, False, attn_mask=mask, scale=scale
    )


def portable_attend_with_sums(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The same on any device."""
    scores = query.float() @ keys.float().transpose(2, 3) * scale + mask.float()
    sums = scores.logsumexp(-1)
    return (scores - sums[..., None]).exp().to(values.dtype) @ values, sums


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
