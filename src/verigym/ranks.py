"""The processes of a run that torchrun started: rank 0 leads it, the others lend their devices to its learner."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from verigym.agents.learners.sharding import ALONE, Ranks
from verigym.config import TrainConfig
from verigym.heartbeat import Heartbeat
from verigym.tasks.activity import doing
from verigym.tasks.errors import ConfigError, RunError

# A rank that gives no sign of life for so long is lost.
_PATIENCE = timedelta(minutes=10)
# So is one that lives but keeps others waiting: in the middle of a call, longer than the signs of life take to say who
# stands still, or for a call of rank 0, where it may be loading a model.
_WITHIN_CALLS, _TO_A_CALL = timedelta(minutes=15), timedelta(hours=1)
# The others wait for a call as long as rank 0 lives: episodes may take days.
_BETWEEN_CALLS = timedelta(days=30)


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Whether this process is the one that speaks: rank 0, or alone."""
    return int(os.environ.get("RANK", "0")) == 0


class Team:
    """The ranks of a run. Calls that rank 0 makes of what is `led` are made on every rank, in the same order.

    While entered, the ranks are connected: over NCCL where the learner is on GPUs, each rank on its machine's GPU of
    the number LOCAL_RANK, else over gloo. Leaving it, rank 0 sends the others home; if it fails in the middle of a
    call, they know by losing it. A rank that stands still is lost, too: rank 0 watches the others, and they watch it.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device, self.ranks = device, ALONE
        self._led: dict[str, Callable[..., Any]] = {}
        self._calling = False  # a call is not at its end

    def __enter__(self) -> Team:
        if world_size() == 1:
            return self
        _refuse_missing_variables()
        backend = "gloo"
        if self.device == "cuda":
            _take_gpu(int(os.environ["LOCAL_RANK"]))
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, timeout=_WITHIN_CALLS)
        rank = dist.get_rank()
        self._heartbeat = Heartbeat(rank, [0] if rank else range(1, world_size()), _PATIENCE)
        self._heartbeat.start()
        self._calls = dist.new_group(backend="gloo", timeout=_BETWEEN_CALLS if rank else _TO_A_CALL)
        self.ranks = Ranks(init_device_mesh(self.device, (world_size(),)))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.ranks.size == 1:
            return
        if error is None:
            dist.destroy_process_group()
        elif self.ranks.rank == 0 and not self._calling:  # who is in the middle of a call listens to nothing else
            with suppress(_LostError):
                self.tell(None)
        self._heartbeat.stop()

    def tell(self, what: Any) -> None:
        """Sends the others what they `hear`; alone, to nobody."""
        if self.ranks.size > 1:
            self._reach(partial(dist.broadcast_object_list, [what], src=0, group=self._calls))

    @doing("waiting", "for rank 0")
    def hear(self) -> Any:
        """What rank 0 tells. Raises SystemExit if it has given the run up: it says why."""
        told: list[Any] = [None]
        self._reach(partial(dist.broadcast_object_list, told, src=0, group=self._calls))
        if told[0] is None:
            raise SystemExit(1)
        return told[0]

    def lead(self, target: Any, *methods: str) -> None:
        """From now on, calls of these methods on rank 0 are made on every rank, each on its own `target`."""
        for method in methods:
            name, function = f"{type(target).__name__}.{method}", getattr(target, method)
            self._led[name] = function
            if self.ranks.size > 1 and self.ranks.rank == 0:
                setattr(target, method, partial(self._call, name))

    def _call(self, name: str, *arguments: Any) -> Any:
        self._calling = True
        self.tell((name, arguments))
        result = self._reach(partial(self._led[name], *arguments))
        self._calling = False
        return result

    def follow(self) -> Any:
        """Makes the calls that rank 0 makes, until it ends; returns what it ends with."""
        while True:
            name, arguments = self.hear()
            if name is None:
                return arguments
            with doing(name, "with the other ranks"):
                self._reach(partial(self._led[name], *arguments))

    def end(self, result: Any) -> None:
        """Sends the others home with a result."""
        self.tell((None, result))

    def _reach(self, call: Callable[[], Any]) -> Any:
        """What a call gives in which others take part. Raises RunError if one of them is gone."""
        try:
            return call()
        except RuntimeError as error:  # gloo's own are no narrower
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            raise _LostError(
                f"another rank is lost, whose own lines say why ({_reason(error)}); go on from the last checkpoint "
                "with --resume"
            ) from error


def _reason(error: Exception) -> str:
    """What gloo says, without the place in its code and what follows."""
    return re.sub(r"^(\[\S*\] *)+", "", str(error)).partition(". ")[0].splitlines()[0]


class _LostError(RunError):
    """A rank that does not answer."""


def _refuse_missing_variables() -> None:
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {world_size()}, but {', '.join(missing)} is not set: start several processes with "
            "torchrun, or one with WORLD_SIZE unset"
        )


def _take_gpu(number: int) -> None:
    if number >= torch.cuda.device_count():
        raise ConfigError(
            f"rank {number} of this machine has no GPU: torch sees {torch.cuda.device_count()}; start one process for "
            "each with --nproc-per-node"
        )
    torch.cuda.set_device(number)


def refuse_unshared(config: TrainConfig) -> None:
    """Raises ConfigError for what does not work with a learner over several ranks."""
    if world_size() == 1:
        return
    if config.engine.kind == "vllm":
        raise ConfigError(
            "engine.kind vllm takes over torch.distributed in the learner's process, which torchrun has given to the "
            "ranks; set it to vllm-server or ray"
        )
