"""The default rollout backend: any full-attention transformers model over an own KV loop, on CPU or GPU."""

# R rows of a forward, N new tokens, V vocabulary

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from verigym.agents.attention import IMPLEMENTATION, PackedLayout, require_full_attention
from verigym.agents.engines.engine import Engine, Generation, Request, StopReason
from verigym.agents.engines.kv_cache import ChunkLayout, Parked, SlotCache
from verigym.agents.engines.sampling import draw, uniforms
from verigym.agents.learners.losses import token_logprobs
from verigym.tasks.errors import EngineError


@dataclass(slots=True)
class _Row:
    """A running request: its ids, how many of them are in the cache, and what it has drawn."""

    request: Request
    ids: list[int]
    cached: int
    uniform: NDArray[np.float64]
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    @property
    def drawn(self) -> list[int]:
        return self.ids[len(self.request.token_ids) :]

    def stop_reason(self) -> StopReason | None:
        sampling = self.request.sampling
        if self.logprobs and self.ids[-1] in sampling.stop_token_ids:
            return StopReason.STOP
        return StopReason.LENGTH if len(self.logprobs) >= sampling.max_new_tokens else None


class TransformersEngine(Engine):
    """Continuous batching over fixed KV slots.

    A group's shared prompt is computed once and copied; the KV of an episode is kept between its turns; running
    rows are kept without gaps. Log-probabilities agree with a full forward of the same weights to rounding.

    Args:
        model: owned by the engine from now on; its weights change by `update_weights` alone.
        slots: requests that run at a time; the others wait.
        chunk_tokens: new prompt tokens of one forward at most (a single longer prompt is still one forward).

    Raises EngineError for a model whose cache is not that of full attention.
    """

    def __init__(self, model: PreTrainedModel, *, slots: int = 256, chunk_tokens: int = 8192) -> None:
        config = model.config.get_text_config()
        require_full_attention(config)
        model.set_attn_implementation(IMPLEMENTATION)
        self.model, self.slots, self.chunk_tokens = model.eval().requires_grad_(False), slots, chunk_tokens
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.cache = SlotCache(config.num_hidden_layers, heads, head_size, dtype=model.dtype, device=model.device)
        self._limit = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
        self._weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._queue: deque[_Row] = deque()
        self._rows: list[_Row] = []
        self._parked: dict[int, tuple[list[int], Parked]] = {}

    # The contract.

    def submit(self, request: Request) -> None:
        total = len(request.token_ids) + request.sampling.max_new_tokens
        if not request.token_ids or request.sampling.max_new_tokens < 1:
            raise EngineError(f"request {request.id} has no prompt, or may draw no token")
        if total > self.max_context:
            raise EngineError(f"request {request.id} needs {total} tokens of context; the model has {self.max_context}")
        draws = uniforms(request.seed, request.sampling.max_new_tokens)
        self._queue.append(_Row(request, list(request.token_ids), 0, draws))

    @torch.inference_mode()
    def step(self) -> list[Generation]:
        finished = self._admit()
        if self._rows:
            layout = ChunkLayout(self.cache, 0, [row.cached for row in self._rows], [1] * len(self._rows))
            self._draw(self._rows, self._forward([row.ids[-1] for row in self._rows], layout))
            finished += self._leave()
        return finished

    @torch.inference_mode()
    def cancel(self, request_id: int) -> None:
        self._queue = deque(row for row in self._queue if row.request.id != request_id)
        for index, row in enumerate(self._rows):
            if row.request.id == request_id:
                self._remove(index)
                return

    def release(self, episode_id: int) -> None:
        self._parked.pop(episode_id, None)

    @torch.inference_mode()
    def score(self, token_ids: Sequence[Sequence[int]], temperature: float = 1.0) -> list[NDArray[np.float32]]:
        scores: list[NDArray[np.float32]] = []
        for chunk in _chunks([list(ids) for ids in token_ids], self.chunk_tokens):
            lengths = [len(ids) for ids in chunk]
            flat = [token for ids in chunk for token in ids]
            logits = self._forward(flat, PackedLayout(lengths, self.model.device), keep_all=True)
            targets = torch.tensor([*flat[1:], 0], device=logits.device)
            logprobs = token_logprobs(logits, targets, temperature).cpu().numpy()
            scores += [part[:-1] for part in np.split(logprobs, np.cumsum(lengths)[:-1])]
        return scores

    @torch.no_grad()
    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        for name, tensor in tensors:
            if name not in self._weights:
                raise EngineError(f"the rollout model has no tensor '{name}'")
            self._weights[name].copy_(tensor)
        self.version = version
        # Keys and values of older weights must not meet the new ones: everything is computed again from the ids.
        self._parked.clear()
        for row in reversed(self._rows):
            row.cached = 0
            self._queue.appendleft(row)
        self._rows = []

    @property
    def pending(self) -> int:
        return len(self._queue) + len(self._rows)

    @property
    def max_context(self) -> int:
        return self._limit

    def close(self) -> None:
        self._queue.clear()
        self._rows, self._parked = [], {}
        self.cache.keys = self.cache.values = torch.empty(0)
        self.cache.slots = self.cache.capacity = 0

    # Admission: queued requests join the running rows.

    def _admit(self) -> list[Generation]:
        """Computes the prompts that fit and draws the first token of each."""
        finished: list[Generation] = []
        while self._queue and len(self._rows) < self.slots:
            leaders, followers = self._next_chunk()
            first = len(self._rows)
            self._rows += [*leaders, *followers]
            need = max(row.request.sampling.max_new_tokens + len(row.request.token_ids) for row in self._rows)
            self.cache.reserve(
                min(self.slots, _power_of_two(len(self._rows))), min(_power_of_two(need), self._limit + 64)
            )
            for offset, row in enumerate(leaders):
                self._unpark(row, first + offset)
            new = [row.ids[row.cached :] for row in leaders]
            layout = ChunkLayout(self.cache, first, [row.cached for row in leaders], [len(ids) for ids in new])
            logits = self._forward([token for ids in new for token in ids], layout)
            source = {tuple(row.ids): offset for offset, row in enumerate(leaders)}
            origin = [*range(len(leaders)), *(source[tuple(row.ids)] for row in followers)]
            for offset in set(origin[len(leaders) :]):
                targets = [first + i for i in range(len(leaders), len(origin)) if origin[i] == offset]
                self.cache.copy(first + offset, targets, len(leaders[offset].ids))
            for row in leaders + followers:
                row.cached = len(row.ids) - 1  # `_draw` counts the token it was fed
            self._draw(leaders + followers, logits[origin])
            finished += self._leave()
        return finished

    def _next_chunk(self) -> tuple[list[_Row], list[_Row]]:
        """Queued rows for one forward: leaders to compute, and followers with the same ids as a leader."""
        leaders: list[_Row] = []
        followers: list[_Row] = []
        prompts: set[tuple[int, ...]] = set()
        budget, room = self.chunk_tokens, self.slots - len(self._rows)
        while self._queue and len(leaders) + len(followers) < room:
            row = self._queue[0]
            ids = tuple(row.ids)
            cached = self._shared_prefix(row)
            if not cached and ids in prompts:
                followers.append(self._queue.popleft())
                continue
            new = len(ids) - cached
            if leaders and new > budget:
                break
            budget -= new
            if not cached:
                prompts.add(ids)
            leaders.append(self._queue.popleft())
        return leaders, followers

    def _shared_prefix(self, row: _Row) -> int:
        """Tokens of the row's ids whose keys and values its episode has parked."""
        ids, _ = self._parked.get(row.request.episode_id, ([], None))
        return len(ids) if 0 < len(ids) < len(row.ids) and row.ids[: len(ids)] == ids else 0

    def _unpark(self, row: _Row, index: int) -> None:
        row.cached = self._shared_prefix(row)
        parked = self._parked.pop(row.request.episode_id, None)
        if row.cached and parked is not None:
            self.cache.unpark(index, parked[1])

    # Running rows.

    def _forward(self, flat_ids: list[int], layout: ChunkLayout | PackedLayout, *, keep_all: bool = False) -> Tensor:
        """Logits (R, V) after each row's last new token, or (N, V) after every token."""
        keep: Tensor | int = 0 if keep_all or not isinstance(layout, ChunkLayout) else layout.last
        output = self.model(
            input_ids=torch.tensor([flat_ids], device=self.model.device),
            position_ids=layout.position_ids,
            layout=layout,
            use_cache=False,
            logits_to_keep=keep,
        )
        return output.logits[0]  # type: ignore[no-any-return]

    def _draw(self, rows: list[_Row], logits: Tensor) -> None:
        """Draws one token for each row, whose ids are then in the cache but for that token."""
        uniform = torch.tensor(
            [row.uniform[len(row.logprobs)] for row in rows], dtype=torch.float64, device=logits.device
        )
        temperatures = torch.tensor([row.request.sampling.temperature for row in rows], device=logits.device)
        tokens, logprobs = draw(logits, temperatures, uniform)
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            row.cached += 1
            row.ids.append(token)
            row.logprobs.append(logprob)
            row.versions.append(self.version)

    def _leave(self) -> list[Generation]:
        """Takes out the rows that ended and parks their episodes' keys and values."""
        finished = []
        for index in reversed(range(len(self._rows))):
            row = self._rows[index]
            reason = row.stop_reason()
            if reason is None:
                continue
            self._parked[row.request.episode_id] = (row.ids[: row.cached], self.cache.park(index, row.cached))
            finished.append(
                Generation(row.request.id, tuple(row.drawn), tuple(row.logprobs), tuple(row.versions), reason)
            )
            self._remove(index)
        return finished[::-1]

    def _remove(self, index: int) -> None:
        """Closes the gap with the last row."""
        last = self._rows.pop()
        if index < len(self._rows):
            self.cache.copy(len(self._rows), [index], last.cached)
            self._rows[index] = last


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _chunks(sequences: list[list[int]], tokens: int) -> Iterable[list[list[int]]]:
    """Consecutive sequences of at most `tokens` in all (a longer one goes alone)."""
    chunk: list[list[int]] = []
    for ids in sequences:
        if chunk and sum(map(len, chunk)) + len(ids) > tokens:
            yield chunk
            chunk = []
        chunk.append(ids)
    if chunk:
        yield chunk
