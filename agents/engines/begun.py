"""Episodes that are begun before an update and go on after it: an engine must forget what the old weights computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from verigym.agents.engines.engine import Engine, Request, Sampling

# Tokens of a prompt that an engine should have cached: more than the largest block of a paged cache.
_CACHED = 160
_SAMPLING = Sampling(4)


class BegunEpisodes:
    """One episode for each of the probes, whose first turn is played when this is made. The engine must be idle."""

    def __init__(self, engine: Engine, probes: Sequence[Sequence[int]]) -> None:
        self._engine, self._probes = engine, probes
        self._prompts = [self._long(probe) for probe in probes]
        self._turns = self._play(self._prompts)

    def gaps(
        self,
        score: Callable[[Sequence[Sequence[int]]], Sequence[NDArray[np.float64]]],
        unseen: Sequence[list[int]] = (),
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How far the log-probabilities of further tokens are from those by `score`, (tokens,) in nats.

        First of the second turns, and of new episodes with the same prompts; then of episodes with prompts made from
        `unseen`, of which an engine can have kept nothing. `score` gives for each sequence of n ids the n - 1
        log-probabilities of its tokens after the first, under the present weights.
        """
        begun = zip(self._prompts, self._turns, self._probes, strict=True)
        prompts = [[*prompt, *turn, *probe] for prompt, (turn, _), probe in begun] + self._prompts
        known = len(prompts)
        prompts += [self._long(probe) for probe in unseen]
        turns = self._play(prompts)
        for episode in range(len(prompts)):
            self._engine.release(episode)
        wanted = score([[*prompt, *tokens] for prompt, (tokens, _) in zip(prompts, turns, strict=True)])
        gaps = [want[-len(got) :] - got for want, (_, got) in zip(wanted, turns, strict=True)]
        return np.concatenate(gaps[:known]), np.concatenate([*gaps[known:], np.zeros(0)])

    def _long(self, probe: Sequence[int]) -> list[int]:
        """A prompt made from a probe."""
        room = self._engine.max_context - len(probe) - 2 * _SAMPLING.max_new_tokens
        return (list(probe) * _CACHED)[: min(_CACHED, room)]

    def _play(self, prompts: Sequence[Sequence[int]]) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
        """A turn of each episode: its tokens and their log-probabilities."""
        requests = [Request(i, i, prompt, i, _SAMPLING) for i, prompt in enumerate(prompts)]
        return [(turn.token_ids, turn.logprobs) for turn in self._engine.run(requests)]
