"""Episodes as tensors: what a learner's step works on, and its cut into forwards of bounded size."""

# B episodes, N tokens of a micro-batch end to end, M policy tokens among them

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from verigym.agents.attention import PackedLayout
from verigym.agents.episode import Episode
from verigym.tasks.errors import EngineError


@dataclass(frozen=True)
class Sequences:
    """B episodes for one optimizer step, with an advantage for each token, and the step's global counts.

    `advantages[i]` and `old_logprobs[i]` have one value for each policy token of `episodes[i]`, in order.
    `num_episodes` and `num_tokens` count every scorable episode of the step, also those left out of
    `episodes` because their loss is 0.
    """

    episodes: Sequence[Episode]
    advantages: Sequence[NDArray[np.float32]]
    num_episodes: int
    num_tokens: int
    old_logprobs: Sequence[NDArray[np.float32]] | None = None
    ref_logprobs: Sequence[NDArray[np.float32]] | None = None

    def micro_batches(self, max_tokens: int, device: torch.device) -> Iterator[MicroBatch]:
        """Episodes of similar length together, at most `max_tokens` tokens each (a longer episode goes alone)."""
        order = sorted(range(len(self.episodes)), key=lambda i: (len(self.episodes[i].token_ids), i))
        chunk: list[int] = []
        size = 0
        for index in order:
            length = len(self.episodes[index].token_ids)
            if chunk and size + length > max_tokens:
                yield MicroBatch(self, chunk, device)
                chunk, size = [], 0
            chunk.append(index)
            size += length
        if chunk:
            yield MicroBatch(self, chunk, device)


class MicroBatch:
    """Some of the episodes packed end to end, and their M policy tokens as flat tensors."""

    def __init__(self, sequences: Sequences, indices: Sequence[int], device: torch.device) -> None:
        episodes = [sequences.episodes[i] for i in indices]
        self.indices = list(indices)
        self.layout = PackedLayout([len(episode.token_ids) for episode in episodes], device)
        token_ids = np.concatenate([episode.token_ids for episode in episodes])
        mask = np.concatenate([episode.mask for episode in episodes])
        positions = np.flatnonzero(mask)
        counts = [episode.num_policy_tokens for episode in episodes]
        self.counts = counts
        self.token_ids = torch.from_numpy(token_ids)[None].to(device)  # (1, N)
        # Logits at one position predict the token at the next; a prompt comes first, so none is lost.
        self.predicting = torch.from_numpy(positions - 1).to(device)  # (M,)
        self.targets = torch.from_numpy(token_ids[positions]).to(device)  # (M,)
        sampler = np.concatenate([episode.logprobs for episode in episodes])[positions]
        self.sampler_logprobs = torch.from_numpy(sampler).to(device)  # (M,)
        self.lengths = torch.from_numpy(np.repeat(counts, counts)).to(device)  # (M,) policy tokens of its episode
        self.advantages = self._flat(sequences.advantages, device)
        self.old_logprobs = None if sequences.old_logprobs is None else self._flat(sequences.old_logprobs, device)
        self.ref_logprobs = None if sequences.ref_logprobs is None else self._flat(sequences.ref_logprobs, device)

    def _flat(self, values: Sequence[NDArray[np.float32]], device: torch.device) -> Tensor:
        return torch.from_numpy(np.concatenate([values[i] for i in self.indices])).to(device)  # (M,)

    def split(self, values: Tensor) -> dict[int, NDArray[np.float32]]:
        """Values (M,) by the index of their episode."""
        parts = np.split(values.float().cpu().numpy(), np.cumsum(self.counts)[:-1])
        return dict(zip(self.indices, parts, strict=True))


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
def check_packing(model: torch.nn.Module, vocabulary: int, device: torch.device) -> None:
    """Refuses a model in which packed episodes see each other (a layer that ignores the layout)."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, vocabulary, length) for length in (7, 12)]

    def logits(ids: NDArray[np.int64], lengths: list[int]) -> Tensor:
        layout = PackedLayout(lengths, device)
        tokens = torch.from_numpy(ids)[None].to(device)
        output = model(input_ids=tokens, position_ids=layout.position_ids, layout=layout, use_cache=False)
        return output.logits[0].float()  # type: ignore[no-any-return]

    together = logits(np.concatenate(rows), [7, 12])
    apart = torch.cat([logits(row, [len(row)]) for row in rows])
    error = float((together - apart).abs().max() / apart.abs().max().clamp(min=1.0))
    if error > (1e-3 if together.dtype == torch.float32 and next(model.parameters()).dtype == torch.float32 else 0.1):
        raise EngineError(f"packed episodes contaminate each other in this model (relative error {error:.1e})")
