"""Engines in actors on a Ray cluster as one rollout backend, which outlives the loss of any of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from verigym.agents.engines._ray_actors import Checkpoint, EngineActor, Order, Started, Update, connect, needed
from verigym.agents.engines.config import RayConfig
from verigym.agents.engines.engine import Engine, Generation, Held, Request, first_line, refuse_impossible
from verigym.agents.engines.weight_group import Transfer
from verigym.tasks.activity import moved
from verigym.tasks.errors import EngineError, SyncError, VerigymError

_LOG = logging.getLogger("verigym.ray")
_SLICE = 0.02  # seconds that an actor generates before it reports
_WAIT = 0.05  # seconds that a step waits for the next report
# Episodes by which an actor may have more than another before a group is divided between the two.
_TOGETHER = 16
# Losses per actor, between two updates of the weights, beyond which something is wrong that no replacement mends.
_LOSSES = 3
# Two actors with the same weights score alike to so many nats per token: exact weights, and rounded ones.
_GAP, _ROUNDED_GAP = 1e-3, 0.5


@dataclass(frozen=True)
class _Call:
    """A method that an actor is running."""

    answer: Any
    method: str
    serial: int  # of the last update that the actor has afterwards
    since: float


@dataclass(eq=False)
class _Seat:
    """A place for an actor, and what the actor in it has to do. One call runs at a time."""

    number: int
    actor: Any = None
    started: Started | None = None
    serial: int = 0  # of the last update that the actor has
    probe: tuple[Any, ...] | None = None  # what was scored here since the last update, and how
    proven: bool = False  # whether this actor scored it so
    call: _Call | None = None
    orders: list[Order] = field(default_factory=list)  # for its next call
    open: dict[int, Request] = field(default_factory=dict)  # by a number that no other request ever has
    episodes: set[int] = field(default_factory=set)
    drawn: dict[int, int | None] | None = field(default_factory=dict)  # as last reported, by the same number


class RayEngine(Engine):
    """Requests go to the actors and generations come back; every actor has all weights.

    An episode's turns go to one actor, and a group's episodes to the same one while that divides the work evenly:
    keys and values are used again there. An update of the weights is put into the object store once, and each actor
    fetches it; from GPU to GPUs it is sent to all of them at once (`Transfer`), and main memory keeps a copy.

    An actor that dies, or gives no answer for `config.timeout` seconds, is replaced. Its open requests are run again
    by the others, or by the new one: a request has all its tokens and the seed of its draws, so that nothing is lost,
    and what the lost actor might still send is not taken. Before it serves, the new actor gets the weights, and must
    score what was scored since their last update as the lost one did. A transfer between GPUs that fails takes its
    actors with it, and the new ones get the update through the store.

    Args:
        make: makes an actor's engine, in the actor, from a checkpoint's folder or hub id.
        model: the checkpoint. The files of a folder are sent to the actors.
        config: the cluster and the actors.
        dtype: the engines' precision.
        learner_gpu: the UUID of the GPU that updates come from; None for main memory.

    Raises ConfigError if Ray is not installed, or for a transfer between GPUs that are not there; EngineError for a
    cluster that does not answer or has no room for the actors, when actors are lost or transfers fail again and again,
    and for what an actor's engine refuses; SyncError for a new actor that does not have the weights.
    """

    def __init__(
        self,
        make: Callable[[str], Engine],
        model: str | Path,
        config: RayConfig,
        *,
        dtype: torch.dtype,
        learner_gpu: str | None = None,
    ) -> None:
        self._transfer = Transfer(config, str(model), learner_gpu)
        if config.transfer == "nccl":
            self._transfer.possible(())  # where it never will be, before any actor starts
        self._connected = connect(config)
        import ray

        self._ray, self._config, self._make, self.dtype = ray, config, make, dtype
        self.lost = 0
        self._losses = 0  # since the last update
        self._updates: list[Update] = []  # what an actor that starts lacks: of each tensor the last one
        self._homes: dict[int, _Seat] = {}  # by episode
        self._prompts: dict[int, _Seat] = {}  # by the hash of a prompt
        self._numbers = count()
        self._finished: list[Generation] = []
        self._errors: list[VerigymError] = []
        self._seats = [_Seat(number) for number in range(config.actors)]
        try:
            self._require_gpus()
            self._checkpoint = Checkpoint.put(model)
            for seat in self._seats:
                self._start(seat)
            while not all(seat.started for seat in self._seats):
                self._pump()
                self._raise()
        except BaseException:
            self.close()
            raise
        (self._limit,) = {seat.started.max_context for seat in self._seats if seat.started}
        self.whole_layers = any(seat.started.whole_layers for seat in self._seats if seat.started)

    # The contract.

    def submit(self, request: Request) -> None:
        refuse_impossible(request, self.max_context)
        self._place(request)

    def step(self) -> list[Generation]:
        self._advance()
        self._pump()
        self._advance()  # the actors go on while the environments answer
        self._raise()
        finished, self._finished = self._finished, []
        return finished

    def cancel(self, request_id: int) -> None:
        self._finished = [generation for generation in self._finished if generation.id != request_id]
        for seat in self._seats:
            for number in [number for number, request in seat.open.items() if request.id == request_id]:
                del seat.open[number]
                seat.orders.append(("cancel", number))

    def release(self, episode_id: int) -> None:
        seat = self._homes.pop(episode_id, None)
        if seat is not None:
            seat.episodes.remove(episode_id)
            seat.orders.append(("release", episode_id))

    def score(self, token_ids: Sequence[Sequence[int]], temperature: float = 1.0) -> list[NDArray[np.float32]]:
        sequences = [[int(token) for token in ids] for ids in token_ids]
        bounds = [len(sequences) * i // len(self._seats) for i in range(len(self._seats) + 1)]
        parts = [sequences[start:end] for start, end in pairwise(bounds)]
        answers = self._ask("score", [(part, temperature) for part in parts])
        for seat, part, answer in zip(self._seats, parts, answers, strict=True):
            seat.probe = (part, temperature, answer)
        return [scores for answer in answers for scores in answer]

    @torch.no_grad()
    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        update, seats = Update(version), self._idle() if self._transfer.wanted else []
        gpus = [seat.started.gpus for seat in seats if seat.started]
        if gpus and self._transfer.possible(gpus):
            self._send(update, tensors, seats)
        else:
            for _ in update.keep(tensors, self.dtype):
                update.put()  # each shard by itself
        before, self._updates = self._updates, needed([*self._updates, update])
        for seat in self._seats:
            seat.probe = None
        self._prompts.clear()
        self._losses = 0
        while any(seat.started and not self._serves(seat) for seat in self._seats):
            self._pump()
        if self._errors:
            self._updates = before
        self._raise()
        self.version = version

    def drawn(self) -> dict[int, int | None] | None:
        """As the actors last reported; what an actor has not reported on yet is queued."""
        found: dict[int, int | None] = {}
        for seat in self._seats:
            drawn, requests = seat.drawn, seat.open.copy()
            if drawn is None:
                return None
            found |= {request.id: drawn.get(number) for number, request in requests.items()}
        return found

    def held(self) -> list[Held]:
        """Those of every actor; equal ones once."""
        found = self._ask("held", [()] * len(self._seats))
        return list(dict.fromkeys(held for actor in found for held in actor))

    @property
    def copies(self) -> int:
        return len(self._seats)

    @property
    def pending(self) -> int:
        return sum(len(seat.open) for seat in self._seats) + len(self._finished)

    @property
    def max_context(self) -> int:
        return self._limit

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._seats

    def close(self) -> None:
        self._transfer.close()
        for seat in self._seats:
            if seat.actor is not None:
                self._ray.kill(seat.actor)
        self._seats, self._finished = [], []
        if self._connected:
            self._connected = False
            self._ray.shutdown()

    # Placement.

    def _place(self, request: Request) -> None:
        seat = self._homes.get(request.episode_id) or self._choose(request)
        self._homes[request.episode_id] = seat
        seat.episodes.add(request.episode_id)
        number = next(self._numbers)
        seat.open[number] = request
        seat.orders.append(("submit", replace(request, id=number)))

    def _choose(self, request: Request) -> _Seat:
        """Where an episode begins: beside those with the same prompt, unless that actor has too many."""
        seats = [seat for seat in self._seats if self._serves(seat)] or self._seats
        least = min(seats, key=lambda seat: len(seat.episodes))
        prompt = hash(tuple(request.token_ids))
        seat = self._prompts.get(prompt, least)
        if seat not in seats or len(seat.episodes) - len(least.episodes) >= _TOGETHER:
            seat = least
        self._prompts[prompt] = seat
        return seat

    # Calls: each actor runs one at a time.

    def _serves(self, seat: _Seat) -> bool:
        """Whether an actor is there and has all weights."""
        return seat.started is not None and not self._lacking(seat) and (seat.proven or seat.probe is None)

    def _lacking(self, seat: _Seat) -> list[Update]:
        return [update for update in self._updates if update.serial > seat.serial]

    def _call(self, seat: _Seat, method: str, *arguments: Any) -> None:
        serial = self._updates[-1].serial if method == "take" else seat.serial
        seat.call = _Call(seat.actor.call.remote(method, *arguments), method, serial, time.monotonic())

    def _advance(self) -> None:
        for seat in self._seats:
            if seat.open and seat.call is None and self._serves(seat):
                orders, seat.orders = seat.orders, []
                self._call(seat, "advance", orders, _SLICE)

    def _ask(self, method: str, arguments: Sequence[tuple]) -> list[Any]:
        """Every actor's answer; one that is lost is replaced and asked again."""
        answers: dict[int, Any] = {}
        while len(answers) < len(self._seats):
            for seat, given in zip(self._seats, arguments, strict=True):
                if seat.number not in answers and seat.call is None and self._serves(seat):
                    self._call(seat, method, *given)
            answers |= self._pump()
            self._raise()
        return [answers[seat.number] for seat in self._seats]

    def _pump(self) -> dict[int, Any]:
        """Takes in what the actors answer, and replaces those that are lost; returns answers to questions, by seat."""
        for seat in self._seats:
            if seat.call is None and (updates := self._lacking(seat)):
                self._call(seat, "take", [update.put() for update in updates])
            elif seat.call is None and not seat.proven and seat.probe is not None:
                self._call(seat, "prove", *seat.probe)
        calls = {seat.call.answer: seat for seat in self._seats if seat.call is not None}
        if not calls:
            return {}
        self._ray.wait(list(calls), num_returns=1, timeout=_WAIT)
        done, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=0)
        answers: dict[int, Any] = {}
        for seat in [calls[answer] for answer in done]:
            self._receive(seat, answers)
        for seat in self._seats:
            if seat.call is not None and time.monotonic() - seat.call.since > self._config.timeout:
                self._give_up(seat)
        return answers

    def _receive(self, seat: _Seat, answers: dict[int, Any]) -> None:
        """The end of a seat's call."""
        call, result = seat.call, None
        assert call is not None
        try:
            result = self._ray.get(call.answer)
        except self._ray.exceptions.RayTaskError as error:
            self._errors.append(_said(error))
        except self._ray.exceptions.RayError as error:
            self._replace(seat, f"was lost ({first_line(error)})")
            return
        seat.call, seat.serial = None, call.serial
        moved()
        if result is None:
            return
        if call.method == "start":
            seat.started = result
        elif call.method == "prove":
            seat.proven = True
            if not result < (_GAP if self.dtype.itemsize >= 4 else _ROUNDED_GAP):
                self._errors.append(SyncError(f"a new Ray actor scores {result:.2g} nats beside the one that was lost"))
        elif call.method == "advance":
            finished, seat.drawn = result
            # What is open no more was cancelled.
            ended = [(seat.open.pop(generation.id, None), generation) for generation in finished]
            self._finished += [replace(generation, id=request.id) for request, generation in ended if request]
        else:
            seat.proven = seat.proven or call.method == "score"
            answers[seat.number] = result

    def _raise(self) -> None:
        if self._errors:
            error, self._errors = self._errors[0], []
            raise error

    # Updates from GPU to GPUs.

    def _idle(self) -> list[_Seat]:
        """The seats of those who serve, when none of them has anything to do."""
        while any(seat.started and (seat.call or not self._serves(seat)) for seat in self._seats):
            self._pump()
            self._raise()
        return [seat for seat in self._seats if seat.started]

    def _send(self, update: Update, tensors: Iterable[tuple[str, Tensor]], seats: Sequence[_Seat]) -> None:
        """Sends an update to idle actors, and keeps it for those that come."""
        try:
            parts = update.keep(self._transfer.layers.check(tensors), self.dtype)
            failure = self._transfer.send([seat.actor for seat in seats], parts, update.version)
        except BaseException:
            self.close()  # the actors have a part of it
            raise
        for seat in seats:
            if failure:
                self._replace(seat, f"was in a transfer of weights that failed ({failure})")
            else:
                seat.serial = update.serial

    # Losses.

    def _require_gpus(self) -> None:
        """Raises EngineError for actors that a cluster of this machine alone, which does not grow, has no room for."""
        need, there = self._config.actors * self._config.gpus, self._ray.cluster_resources().get("GPU", 0)
        if self._connected and self._config.address is None and need > there:
            raise EngineError(
                f"engine.ray asks for {self._config.actors} actors of {self._config.gpus:g} GPUs each, and this "
                f"machine has {there:g}; set engine.ray.gpus to 0, or engine.ray.address to a cluster that has them"
            )

    def _start(self, seat: _Seat) -> None:
        options = {"num_cpus": self._config.cpus, "num_gpus": self._config.gpus}
        seat.actor = self._ray.remote(EngineActor).options(**options).remote()
        seat.started, seat.serial, seat.proven = None, 0, False
        self._call(seat, "start", self._make, self._checkpoint)

    def _give_up(self, seat: _Seat) -> None:
        if seat.started is None:
            need, free = self._config, self._ray.available_resources()
            raise EngineError(
                f"a Ray actor did not start within {need.timeout:g} s; it needs {need.cpus:g} CPUs and {need.gpus:g} "
                f"GPUs of one machine, and the cluster has {free.get('CPU', 0):g} and {free.get('GPU', 0):g} to give"
            )
        self._replace(seat, f"gave no answer for {self._config.timeout:g} s")

    def _replace(self, seat: _Seat, why: str) -> None:
        """Puts a new actor in a seat, and gives the requests of the old one to those that serve, or else to the new."""
        self._ray.kill(seat.actor)
        self.lost += 1
        self._losses += 1
        if self._losses > _LOSSES * len(self._seats):
            raise EngineError(f"{self._losses} Ray actors were lost since the last update; the last one {why}")
        _LOG.warning("Ray actor %d %s; it is replaced, and its %d requests run again", seat.number, why, len(seat.open))
        for episode in seat.episodes:
            del self._homes[episode]
        requests = list(seat.open.values())
        seat.orders, seat.open, seat.episodes, seat.drawn = [], {}, set(), {}
        self._start(seat)
        for request in requests:
            self._place(request)


def _said(error: Any) -> VerigymError:
    """What an actor's engine raised, as it raised it, without the traceback of another process."""
    cause = error.cause
    return cause if isinstance(cause, VerigymError) else EngineError(f"a Ray actor failed: {first_line(cause)}")
