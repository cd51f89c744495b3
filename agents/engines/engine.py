"""The contract of a rollout backend: requests in, token ids with log-probabilities out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from verigym.tasks.errors import EngineError


class StopReason(StrEnum):
    """Why a generation ended: the model's own stop token, or the limit on new tokens."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: from the full softmax at `temperature`; 0 takes the most probable.

    There is no top-k and no top-p: log-probabilities of a truncated distribution would bias the learner.
    """

    max_new_tokens: int
    temperature: float = 1.0
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One turn to generate: all token ids of the episode so far, and the seed of this turn's draws.

    `episode_id` names the KV cache that turns of one episode share.
    """

    id: int
    episode_id: int
    token_ids: Sequence[int]
    seed: int
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Generation:
    """The tokens of one turn (the stop token included), each with its log-probability and weight version.

    Log-probabilities are natural, of the distribution sampled from (of temperature 1 when greedy).
    """

    id: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    stop_reason: StopReason


class Engine(ABC):
    """Generates with continuous batching: requests join and leave at any step. Driven by one thread."""

    version: int = 0

    @abstractmethod
    def submit(self, request: Request) -> None:
        """Queues a request. Raises EngineError if it can never fit."""

    @abstractmethod
    def step(self) -> list[Generation]:
        """Advances every running request by a token or more; returns those that ended."""

    @abstractmethod
    def cancel(self, request_id: int) -> None:
        """Drops a request that is queued or running; unknown ids are ignored."""

    @abstractmethod
    def release(self, episode_id: int) -> None:
        """Frees the KV cache of an episode that takes no further turn; unknown ids are ignored."""

    @abstractmethod
    def score(self, token_ids: Sequence[Sequence[int]], temperature: float = 1.0) -> list[NDArray[np.float32]]:
        """For each sequence of n ids the n - 1 log-probabilities of its tokens after the first."""

    @abstractmethod
    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes full named tensors (some or all). Running requests go on with recomputed KV caches."""

    @property
    @abstractmethod
    def pending(self) -> int:
        """Requests that are queued or running."""

    @property
    @abstractmethod
    def max_context(self) -> int:
        """The most tokens an episode can have."""

    def close(self) -> None:
        """Frees what the engine holds. Idempotent."""

    def run(self, requests: Iterable[Request]) -> list[Generation]:
        """Submits all, steps to the end, returns the generations in the order of the requests."""
        order = []
        for request in requests:
            self.submit(request)
            order.append(request.id)
        done: dict[int, Generation] = {}
        while len(done) < len(order):
            finished = self.step()
            if not finished and not self.pending:
                raise EngineError(f"the engine lost {len(order) - len(done)} of {len(order)} requests")
            done.update((generation.id, generation) for generation in finished)
        return [done[request_id] for request_id in order]
