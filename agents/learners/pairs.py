"""Pairs of episodes, one preferred to the other, and their cut into forwards of bounded size."""

# P pairs of a step

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from verigym.agents.episode import Episode
from verigym.agents.learners.batch import MicroBatch, Sequences
from verigym.verifiers.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one question; `question` names it, the same for all pairs of it."""

    chosen: Episode
    rejected: Episode
    question: str

    @property
    def num_tokens(self) -> int:
        return len(self.chosen.token_ids) + len(self.rejected.token_ids)


def written_episode(token_ids: Sequence[int], mask: Sequence[bool], task_id: str = "") -> Episode:
    """Tokens that nobody sampled, as an episode: its log-probabilities are 0, and it was never judged."""
    policy = np.array(mask, np.bool_)
    return Episode(
        env_id="",
        task_id=task_id,
        group_id=0,
        seed=0,
        token_ids=np.array(token_ids, np.int64),
        mask=policy,
        logprobs=np.zeros(len(policy), np.float32),
        versions=np.where(policy, 0, -1),
        turns=(),
        messages=(),
        truncation=None,
        verdict=Verdict.infra_error("it was written, not played"),
    )


def pair_micro_batches(
    pairs: Sequence[Pair], max_tokens: int, device: torch.device
) -> Iterator[tuple[list[int], MicroBatch]]:
    """Whole pairs, those of one question together, at most `max_tokens` tokens each (a longer pair goes alone).

    Yields the pairs' indices, and the micro-batch of their episodes: chosen, rejected, chosen, rejected.
    """
    sequences = Sequences.of([episode for pair in pairs for episode in (pair.chosen, pair.rejected)])
    first: dict[str, int] = {}
    order = sorted(range(len(pairs)), key=lambda i: first.setdefault(pairs[i].question, i))
    chunk: list[int] = []
    size = 0
    for index in order:
        if chunk and size + pairs[index].num_tokens > max_tokens:
            yield chunk, MicroBatch(sequences, _episodes_of(chunk), device)
            chunk, size = [], 0
        chunk.append(index)
        size += pairs[index].num_tokens
    if chunk:
        yield chunk, MicroBatch(sequences, _episodes_of(chunk), device)


def _episodes_of(chunk: Sequence[int]) -> list[int]:
    return [episode for index in chunk for episode in (2 * index, 2 * index + 1)]
