"""Episodes as tensors: what a learner's step works on, and its cut into forwards of bounded size."""

# B episodes, N tokens of a micro-batch end to end, M policy tokens among them, H heads, D head size

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from verigym.agents.episode import Episode
from verigym.tasks.activity import moved
from verigym.tasks.errors import EngineError

Values = NDArray[np.floating[Any]]

# Episodes whose lengths differ by less than this factor are padded to one length for attention.
_LENGTH_STEP = 1.3


@dataclass(frozen=True)
class Sequences:
    """B episodes for one optimizer step, with an advantage for each token, and the step's global counts.

    `advantages[i]` and `old_logprobs[i]` have one value for each policy token of `episodes[i]`, in order.
    `num_episodes` and `num_tokens` count every scorable episode of the step, also those left out of
    `episodes` because their loss is 0.
    """

    episodes: Sequence[Episode]
    advantages: Sequence[Values]
    num_episodes: int
    num_tokens: int
    old_logprobs: Sequence[Values] | None = None
    ref_logprobs: Sequence[Values] | None = None

    @classmethod
    def of(cls, episodes: Sequence[Episode], advantages: Sequence[Values] | None = None) -> Sequences:
        """All of `episodes`, for a step in which each has a loss; without advantages, for passes that need none."""
        counts = [episode.num_policy_tokens for episode in episodes]
        nothing: list[Values] = [np.zeros(count, np.float32) for count in counts]
        return cls(episodes, nothing if advantages is None else advantages, len(episodes), sum(counts))

    def micro_batches(self, max_tokens: int, device: torch.device) -> Iterator[MicroBatch]:
        """All of the episodes, in the order of `packs`."""
        for indices in self.packs(max_tokens)[0]:
            yield MicroBatch(self, indices, device)

    def packs(self, max_tokens: int, parts: int = 1) -> list[list[list[int]]]:
        """Indices of the episodes of each micro-batch, for each of `parts` of about equally many tokens.

        Episodes of one prompt together, at most `max_tokens` tokens each (a longer episode goes alone). A prompt that
        several of them begin with counts each time: attention needs memory for every copy.
        """
        prompts: dict[bytes, int] = {}
        numbers = [prompts.setdefault(_prompt(episode).tobytes(), len(prompts)) for episode in self.episodes]
        lengths = [len(episode.token_ids) for episode in self.episodes]
        packs: list[list[list[int]]] = [[] for _ in range(parts)]
        before, total, sizes = 0, sum(lengths), [0] * parts
        for index in sorted(range(len(self.episodes)), key=numbers.__getitem__):
            length = lengths[index]
            part = (2 * before + length) * parts // (2 * total)  # by the middle of the episode
            if not packs[part] or sizes[part] + length > max_tokens:
                packs[part].append([])
                sizes[part] = 0
            packs[part][-1].append(index)
            before, sizes[part] = before + length, sizes[part] + length
        return packs


class MicroBatch:
    """Some of the episodes packed end to end, and their M policy tokens as flat tensors."""

    def __init__(self, sequences: Sequences, indices: Sequence[int], device: torch.device) -> None:
        moved()
        episodes = [sequences.episodes[i] for i in indices]
        self.indices = list(indices)
        self.layout = SharedPromptLayout(
            [episode.token_ids for episode in episodes], [len(_prompt(episode)) for episode in episodes], device
        )
        self.token_ids = torch.from_numpy(self.layout.token_ids)[None].to(device)  # (1, N)
        places = [np.flatnonzero(episode.mask) for episode in episodes]
        self.counts = [len(part) for part in places]
        # Logits at one position predict the token at the next; a prompt comes first, so none is lost.
        predicting = [tokens[part - 1] for tokens, part in zip(self.layout.places, places, strict=True)]
        self.predicting = torch.from_numpy(np.concatenate(predicting)).to(device)  # (M,)
        self.targets = self._policy([episode.token_ids for episode in episodes], places, device)
        self.sampler_logprobs = self._policy([episode.logprobs for episode in episodes], places, device)
        lengths, rows = np.repeat([self.counts, range(len(self.counts))], self.counts, axis=1)
        self.lengths = torch.from_numpy(lengths).to(device)  # (M,) policy tokens of its episode
        self.rows = torch.from_numpy(rows).to(device)  # (M,) which of these episodes it belongs to
        self.advantages = self.flat(sequences.advantages)
        self.old_logprobs = None if sequences.old_logprobs is None else self.flat(sequences.old_logprobs)
        self.ref_logprobs = None if sequences.ref_logprobs is None else self.flat(sequences.ref_logprobs)

    def _policy(self, values: Sequence[NDArray[Any]], places: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
        flat = np.concatenate([value[part] for value, part in zip(values, places, strict=True)])
        return torch.from_numpy(flat).to(device)  # (M,)

    def flat(self, values: Sequence[Values]) -> Tensor:
        """Those of `values`, an array of one for each policy token of each episode, that belong here: (M,)."""
        return torch.from_numpy(np.concatenate([values[i] for i in self.indices])).to(self.token_ids.device)

    @property
    def last(self) -> Tensor:
        """Where the last token of each episode is among the N."""
        ends = [int(self.layout.places[row][-1]) for row in range(len(self.indices))]
        return torch.tensor(ends, device=self.token_ids.device)

    def split(self, values: Tensor) -> dict[int, Values]:
        """Values (M,) by the index of their episode."""
        parts = np.split(values.cpu().numpy(), np.cumsum(self.counts)[:-1])
        return dict(zip(self.indices, parts, strict=True))


class SharedPromptLayout:
    """Whole episodes end to end, of which those with one prompt share its tokens: a prompt is computed once.

    For attention every episode is laid out whole, its prompt's keys and values repeated, and padded to the
    longest of those of about its length. Differentiable: a shared token's gradient is the sum over its copies.

    Attributes:
        token_ids: (N,) the tokens to feed.
        places: for each episode, where its tokens are among the N.
    """

    def __init__(
        self, episodes: Sequence[NDArray[np.int64]], prompt_lengths: Sequence[int], device: torch.device | str
    ) -> None:
        prompts: dict[bytes, NDArray[np.int64]] = {}
        fed: list[NDArray[np.int64]] = []
        positions: list[NDArray[np.int64]] = []
        self.places: list[NDArray[np.int64]] = []
        total = 0
        for ids, length in zip(episodes, prompt_lengths, strict=True):
            shared = prompts.get(ids[:length].tobytes(), ids[:0])
            fed.append(ids[len(shared) :])
            positions.append(np.arange(len(shared), len(ids)))
            own = total + np.arange(len(fed[-1]))
            self.places.append(np.concatenate([shared, own]))
            prompts.setdefault(ids[:length].tobytes(), self.places[-1][:length])
            total += len(own)
        self.token_ids = np.concatenate(fed)
        self.position_ids = torch.from_numpy(np.concatenate(positions))[None].to(device)  # (1, N)
        self._lay_out(device)

    def _lay_out(self, device: torch.device | str) -> None:
        """Indices from the N tokens into padded episodes, and of a copy of each token there."""
        order = sorted(range(len(self.places)), key=lambda i: len(self.places[i]))
        self.shapes: list[tuple[int, int]] = []
        padded: list[NDArray[np.int64]] = []
        copies = np.zeros(len(self.token_ids), np.int64)
        start = 0
        for _, bucket in groupby(order, lambda i: math.ceil(math.log(len(self.places[i]), _LENGTH_STEP))):
            rows = [self.places[i] for i in bucket]
            self.shapes.append((len(rows), len(rows[-1])))
            for row in rows:
                copies[row] = start + np.arange(len(row))
                # What stands behind an episode's end is never seen, because attention is causal.
                padded.append(np.pad(row, (0, len(rows[-1]) - len(row))))
                start += len(rows[-1])
        self.padded = torch.from_numpy(np.concatenate(padded)).to(device)
        self.copies = torch.from_numpy(copies).to(device)  # (N,)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Causal attention within each episode: (1, H, N, D) queries to (1, N, H, D)."""
        grouped = query.shape[1] != key.shape[1]
        sizes = [rows * length for rows, length in self.shapes]
        parts = [states[0].transpose(0, 1).index_select(0, self.padded).split(sizes) for states in (query, key, value)]
        outs = []
        for shape, *states in zip(self.shapes, *parts, strict=True):
            q, k, v = (part.view(*shape, *part.shape[1:]).transpose(1, 2) for part in states)  # (B, H, T, D)
            out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
            outs.append(out.transpose(1, 2).flatten(0, 1))
        return torch.cat(outs).index_select(0, self.copies)[None]


def _prompt(episode: Episode) -> NDArray[np.int64]:
    """What stands before the policy's first token: equal prompts have equal hidden states."""
    return episode.token_ids[: int(episode.mask.argmax())]


def packed_logits(model: torch.nn.Module, micro_batch: MicroBatch) -> Tensor:
    """The logits (M, V) that predict the policy tokens; no others are computed."""
    output = model(
        input_ids=micro_batch.token_ids,
        position_ids=micro_batch.layout.position_ids,
        layout=micro_batch.layout,
        use_cache=False,
        logits_to_keep=micro_batch.predicting,
    )
    return output.logits[0]  # type: ignore[no-any-return]


@torch.no_grad()
def check_packing(model: PreTrainedModel) -> None:
    """Refuses a model, or a trunk, in which packed episodes see each other (a layer that ignores the layout)."""
    vocabulary, device = model.config.get_text_config().vocab_size, model.device
    rng = np.random.default_rng(0)
    first, second, other = (rng.integers(0, vocabulary, length) for length in (7, 12, 5))
    second[:4] = first[:4]  # their prompt

    def outputs(rows: list[NDArray[np.int64]]) -> Tensor:
        layout = SharedPromptLayout(rows, [4] * len(rows), device)
        tokens = torch.from_numpy(layout.token_ids)[None].to(device)
        output = model(input_ids=tokens, position_ids=layout.position_ids, layout=layout, use_cache=False)
        seen: Tensor = output.logits if hasattr(output, "logits") else output.last_hidden_state
        return seen[0, np.concatenate(layout.places)].float()

    rows = [first, second, other]
    together, apart = outputs(rows), torch.cat([outputs([row]) for row in rows])
    error = float((together - apart).abs().max() / apart.abs().max().clamp(min=1e-6))
    if not error < (1e-3 if next(model.parameters()).dtype.itemsize >= 4 else 0.1):
        raise EngineError(f"packed episodes contaminate each other in this model (relative error {error:.1e})")
