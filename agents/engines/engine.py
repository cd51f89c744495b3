"""The contract of a rollout backend: requests in, token ids with log-probabilities out."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from verigym.tasks.errors import EngineError

# Numbers that are read at a time in float64: of a whole weight that would take long, and twice its memory.
_BLOCK = 1 << 20


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


@dataclass(frozen=True, slots=True)
class Held:
    """A weight as an engine has it: the checkpoint's tensors that it is made of, the sum and sum of squares of all."""

    names: tuple[str, ...]
    total: float
    squares: float

    @classmethod
    def of(cls, names: Sequence[str], tensor: Tensor) -> Held:
        """Reads a weight, in float64."""
        total = squares = torch.zeros((), dtype=torch.float64, device=tensor.device)
        for block in tensor.detach().reshape(-1).split(_BLOCK):
            exact = block.double()
            total, squares = total + exact.sum(), squares + exact.dot(exact)
        return cls(tuple(names), float(total), float(squares))


def layer_of(name: str) -> str:
    """The part of a model that is sent whole, because engines fuse tensors within it: a layer, or a lone tensor."""
    numbered = re.match(r".*?\.\d+(?=\.)", name)
    return numbered[0] if numbered else name


class WholeLayers:
    """The tensors of a model, for engines that fuse those of a layer and cannot take a part of them."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)

    def check(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Passes tensors on. Raises EngineError for one that is unknown, and at the end if a part of a layer lacks."""
        missing: dict[str, set[str]] = {}
        for name, tensor in tensors:
            refuse_unknown(name, self._names)
            layer = layer_of(name)
            if layer not in missing:
                missing[layer] = {other for other in self._names if layer_of(other) == layer}
            missing[layer].discard(name)
            yield name, tensor
        for layer, names in missing.items():
            if names:
                raise EngineError(f"an update has a part of '{layer}' and lacks '{min(names)}'; send layers whole")


def gpu_uuid(index: int) -> str:
    """What no other GPU on any machine is called."""
    return str(torch.cuda.get_device_properties(index).uuid)


def refuse_unknown(name: str, names: Container[str]) -> None:
    """Raises EngineError for a tensor that the rollout model does not have."""
    if name not in names:
        raise EngineError(f"the rollout model has no tensor '{name}'")


def refuse_impossible(request: Request, max_context: int) -> None:
    """Raises EngineError for a request that can never run."""
    total = len(request.token_ids) + request.sampling.max_new_tokens
    if not request.token_ids or request.sampling.max_new_tokens < 1:
        raise EngineError(f"request {request.id} has no prompt, or may draw no token")
    if total > max_context:
        raise EngineError(f"request {request.id} needs {total} tokens of context; the model has {max_context}")


def first_line(error: Exception) -> str:
    """What an error of somebody else says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


class Engine(ABC):
    """Generates with continuous batching: requests join and leave at any step. Driven by one thread."""

    version: int = 0
    whole_layers: bool = False  # an update that has a tensor of a layer (`layer_of`) must have all of it
    gpus: tuple[str, ...] = ()  # UUIDs of those that it takes weights on from another GPU (`transfer`)

    @property
    def gone(self) -> bool:
        """Whether a process of it has died, after which it can do nothing."""
        return False

    @property
    def copies(self) -> int:
        """Engines behind this one, with weights of their own: `score` of that many times the same asks each once."""
        return 1

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
        """Takes full named tensors, all or some. Running requests go on with recomputed KV caches.

        Raises EngineError for a tensor that the model does not have.
        """

    def drawn(self) -> dict[int, int | None] | None:
        """Tokens so far of each open request, None of one that is queued; None where that is not known.

        Callable from any thread, for the report on what a run waits for.
        """
        return None

    def held(self) -> list[Held]:
        """The weights that can be read back: none, some or all."""
        return []

    def sleep(self) -> None:
        """Gives its memory to the learner, as far as it can, until `wake`; does nothing while requests are pending."""

    def wake(self) -> None:
        """Takes its memory back, and has the weights that it had."""

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
        """Submits all, steps to the end, returns the generations in the order of the requests.

        Raises EngineError if other requests are open: their generations would be lost.
        """
        if self.pending:
            raise EngineError(
                f"{self.pending} other requests are open: step to their end, or cancel them, before a run"
            )
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
