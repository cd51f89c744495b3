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

from verigym.agents.attention import Layout, PackedLayout, install
from verigym.agents.engines.engine import (
    Engine,
    Generation,
    Held,
    Request,
    StopReason,
    refuse_impossible,
    refuse_unknown,
)
from verigym.agents.engines.kv_cache import Joint, NewPrompts, NextTokens, Parked, Prompt, Prompts, SlotCache
from verigym.agents.engines.sampling import draw, uniforms
from verigym.agents.learners.losses import token_logprobs
from verigym.tasks.activity import moved


@dataclass(eq=False, slots=True)
class _Row:
    """A request: its ids, how many of them are in the cache, the prompt they begin with, and what it has drawn."""

    request: Request
    ids: list[int]
    uniform: NDArray[np.float64]
    cached: int = 0
    prompt: Prompt | None = None
    parked: Parked | None = None  # what its slot has to be filled with
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    @property
    def own(self) -> int:
        """Tokens in the row's own slot: those after the prompt."""
        return self.cached - (len(self.prompt.ids) if self.prompt else 0)

    def stop_reason(self) -> StopReason | None:
        sampling = self.request.sampling
        if self.logprobs and self.ids[-1] in sampling.stop_token_ids:
            return StopReason.STOP
        return StopReason.LENGTH if len(self.logprobs) >= sampling.max_new_tokens else None


@dataclass(frozen=True, slots=True)
class _Paused:
    """An episode between two turns: the ids in the cache, their prompt, and the row's own keys and values."""

    ids: list[int]
    prompt: Prompt
    parked: Parked


class TransformersEngine(Engine):
    """Continuous batching over fixed KV slots.

    A prompt is computed once for all requests that begin with it, and read once a step for all of them; the KV of
    an episode is kept between its turns. Requests that join are computed in the same forward as the running rows'
    next tokens. Log-probabilities agree with a full forward of the same weights to rounding.

    Args:
        model: owned by the engine from now on; its weights change by `update_weights` alone.
        slots: requests that run at a time; the others wait.
        chunk_tokens: tokens of joining requests in one forward at most (a single longer one still joins).

    Raises EngineError for a model whose cache is not that of full attention.
    """

    def __init__(self, model: PreTrainedModel, *, slots: int = 256, chunk_tokens: int = 8192) -> None:
        config = model.config.get_text_config()
        install(model)
        self.model, self.slots, self.chunk_tokens = model.eval().requires_grad_(False), slots, chunk_tokens
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.cache, prompt_cache = (
            SlotCache(config.num_hidden_layers, heads, head_size, dtype=model.dtype, device=model.device)
            for _ in range(2)
        )
        self.prompts = Prompts(prompt_cache)
        self._limit = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
        self._weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._queue: deque[_Row] = deque()
        self._rows: list[_Row] = []  # the running ones, by slot
        self._paused: dict[int, _Paused] = {}  # by episode

    # The contract.

    def submit(self, request: Request) -> None:
        refuse_impossible(request, self.max_context)
        draws = uniforms(request.seed, request.sampling.max_new_tokens)
        paused = self._paused.get(request.episode_id)
        if paused and not _begins(request.token_ids, paused.ids):
            self.release(request.episode_id)
        self._queue.append(_Row(request, list(request.token_ids), draws))

    @torch.inference_mode()
    def step(self) -> list[Generation]:
        decoding = len(self._rows)
        resumed, begun, new = self._admit()
        fed = [*self._rows, *resumed]  # those whose next logits come from tokens of their own
        self._rows = [*fed, *begun]
        if not self._rows:
            return []
        self.cache.reserve(len(self._rows), max(row.own + len(row.ids) - row.cached for row in self._rows))
        self.prompts.cache.reserve(len(self.prompts.lengths), max(self.prompts.lengths))
        logits = self._forward_rows(fed, decoding, new) if fed or new else torch.empty(0)
        for prompt, after in zip(new, logits[len(fed) :].clone(), strict=True):
            prompt.logits = after
        logits = logits[: len(fed)]
        if begun:
            after = torch.stack([row.prompt.logits for row in begun if row.prompt])
            logits = torch.cat([logits, after]) if fed else after
        self._draw(logits)
        return self._leave()

    @torch.inference_mode()
    def cancel(self, request_id: int) -> None:
        self._queue = deque(row for row in self._queue if row.request.id != request_id)
        for index, row in enumerate(self._rows):
            if row.request.id == request_id:
                self._remove(index)
                self._free(row.prompt)
                return

    @torch.inference_mode()
    def release(self, episode_id: int) -> None:
        paused = self._paused.pop(episode_id, None)
        self._free(paused.prompt if paused else None)

    @torch.inference_mode()
    def score(self, token_ids: Sequence[Sequence[int]], temperature: float = 1.0) -> list[NDArray[np.float32]]:
        scores: list[NDArray[np.float32]] = []
        for chunk in _chunks([list(ids) for ids in token_ids], self.chunk_tokens):
            lengths = [len(ids) for ids in chunk]
            flat = [token for ids in chunk for token in ids]
            logits = self._forward(flat, PackedLayout(lengths, self.model.device))
            targets = torch.tensor([*flat[1:], 0], device=logits.device)
            logprobs = token_logprobs(logits, targets, temperature).cpu().numpy()
            scores += [part[:-1] for part in np.split(logprobs, np.cumsum(lengths)[:-1])]
        return scores

    @torch.no_grad()
    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        for name, tensor in tensors:
            refuse_unknown(name, self._weights)
            self._weights[name].copy_(tensor)
        self.version = version
        # Keys and values of older weights must not meet the new ones: everything is computed again from the ids.
        self._paused.clear()
        self.prompts.clear()
        for row in reversed(self._rows):
            row.cached, row.prompt = 0, None
            self._queue.appendleft(row)
        self._rows = []

    def drawn(self) -> dict[int, int | None]:
        queued = {row.request.id: None for row in self._queue.copy()}
        return queued | {row.request.id: len(row.logprobs) for row in self._rows.copy()}

    def held(self) -> list[Held]:
        return [Held.of((name,), tensor) for name, tensor in self.model.named_parameters()]

    @property
    def pending(self) -> int:
        return len(self._queue) + len(self._rows)

    @property
    def max_context(self) -> int:
        return self._limit

    def close(self) -> None:
        self._queue.clear()
        self._rows, self._paused = [], {}
        self.prompts.clear()
        self.cache.clear()
        self.prompts.cache.clear()

    # Admission: queued requests join the running rows.

    def _admit(self) -> tuple[list[_Row], list[_Row], list[Prompt]]:
        """Takes from the queue what fits: rows whose episode goes on, rows that begin, and the prompts to compute."""
        resumed: list[_Row] = []
        begun: list[_Row] = []
        new: list[Prompt] = []
        sizes: tuple[list[int], list[int]] = ([], [])  # new tokens of each resumed row, and of each prompt
        while self._queue and len(self._rows) + len(resumed) + len(begun) < self.slots:
            row = self._queue[0]
            ids = tuple(row.ids)
            paused = self._paused.get(row.request.episode_id)
            kind, size = (0, len(ids) - len(paused.ids)) if paused else (1, len(ids))
            if paused or ids not in self.prompts:
                if any(sizes) and _padded([*sizes[kind], size]) + _padded(sizes[1 - kind]) > self.chunk_tokens:
                    break
                sizes[kind].append(size)
            self._queue.popleft()
            if paused:
                del self._paused[row.request.episode_id]
                row.prompt, row.parked, row.cached = paused.prompt, paused.parked, len(paused.ids)
                resumed.append(row)
            else:
                known = ids in self.prompts
                row.prompt, row.cached = self.prompts.join(ids), len(ids)
                new += [] if known else [row.prompt]
                begun.append(row)
        return resumed, begun, new

    # Running rows.

    def _forward_rows(self, rows: list[_Row], decoding: int, new: list[Prompt]) -> Tensor:
        """Logits after the new tokens of `rows`, of which the first `decoding` have one, and after new prompts."""
        for slot, row in enumerate(rows):
            if row.parked:
                self.cache.unpark(slot, row.parked)
                row.parked = None
        parts: list[NewPrompts | NextTokens] = []
        for first, group in ((0, rows[:decoding]), (decoding, rows[decoding:])):
            if group:
                lengths = [len(row.ids) - row.cached for row in group]
                slots = [row.prompt.slot for row in group if row.prompt]
                parts.append(NextTokens(self.cache, self.prompts, first, [row.own for row in group], lengths, slots))
        if new:
            parts.append(NewPrompts(self.prompts.cache, new[0].slot, [len(prompt.ids) for prompt in new]))
        flat = [token for row in rows for token in row.ids[row.cached :]]
        flat += [token for prompt in new for token in prompt.ids]
        for row in rows:
            row.cached = len(row.ids)
        layout = Joint(parts)
        return self._forward(flat, layout, layout.last)

    def _forward(self, flat_ids: list[int], layout: Layout, keep: Tensor | int = 0) -> Tensor:
        """Logits (N, V) after every token, or after those of the indices `keep`."""
        output = self.model(
            input_ids=torch.tensor([flat_ids], device=self.model.device),
            position_ids=layout.position_ids,
            layout=layout,
            use_cache=False,
            logits_to_keep=keep,
        )
        moved()
        return output.logits[0]  # type: ignore[no-any-return]

    def _draw(self, logits: Tensor) -> None:
        """Draws one token for each running row."""
        uniform = torch.tensor(
            [row.uniform[len(row.logprobs)] for row in self._rows], dtype=torch.float64, device=logits.device
        )
        temperatures = torch.tensor([row.request.sampling.temperature for row in self._rows], device=logits.device)
        tokens, logprobs = draw(logits, temperatures, uniform)
        for row, token, logprob in zip(self._rows, tokens.tolist(), logprobs.tolist(), strict=True):
            row.ids.append(token)
            row.logprobs.append(logprob)
            row.versions.append(self.version)

    def _leave(self) -> list[Generation]:
        """Takes out the rows that ended and keeps their episodes' keys and values."""
        finished = []
        for index in reversed(range(len(self._rows))):
            row = self._rows[index]
            reason = row.stop_reason()
            if reason is None:
                continue
            assert row.prompt is not None
            parked = self.cache.park(index, row.own)
            self._paused[row.request.episode_id] = _Paused(row.ids[: row.cached], row.prompt, parked)
            drawn = tuple(row.ids[len(row.request.token_ids) :])
            finished.append(Generation(row.request.id, drawn, tuple(row.logprobs), tuple(row.versions), reason))
            self._remove(index)
        return finished[::-1]

    def _remove(self, index: int) -> None:
        """Closes the gap with the last row."""
        last = self._rows.pop()
        if index < len(self._rows):
            self.cache.move(len(self._rows), index, last.own)
            self._rows[index] = last

    def _free(self, prompt: Prompt | None) -> None:
        if prompt is not None:
            self.prompts.leave(prompt)


def _begins(ids: Sequence[int], kept: list[int]) -> bool:
    """Whether `ids` goes on from the ids whose keys and values are kept."""
    return len(kept) < len(ids) and list(ids[: len(kept)]) == kept


def _padded(sizes: Sequence[int]) -> int:
    """Tokens of sequences of these sizes when all are as long as the longest."""
    return len(sizes) * max(sizes, default=0)


def _chunks(sequences: list[list[int]], tokens: int) -> Iterable[list[list[int]]]:
    """Consecutive sequences of at most `tokens` in all when padded (a longer one goes alone)."""
    chunk: list[list[int]] = []
    for ids in sequences:
        if chunk and _padded([*map(len, chunk), len(ids)]) > tokens:
            yield chunk
            chunk = []
        chunk.append(ids)
    if chunk:
        yield chunk
