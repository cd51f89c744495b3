"""What runs on a Ray cluster: the actor that holds an engine, and the checkpoint and weights that it is sent."""

from __future__ import annotations

import importlib.util
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from verigym.agents._portable import portable
from verigym.agents.engines.config import RayConfig
from verigym.agents.engines.engine import Engine, Generation, Held, first_line
from verigym.tasks.errors import ConfigError, EngineError

_SHARD_BYTES = 256 << 20  # of tensors in one object of the store, more or less
_STATE = "state.pt"  # of a run's checkpoint, and of no use here; nor is what is in folders
_SERIALS = count(1)

Order = tuple[str, Any]  # a method of an engine that gives no answer, and its argument


def connect(config: RayConfig) -> bool:
    """Connects this process to the cluster; returns whether it was not connected before."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("engine.kind ray needs Ray, which is missing: pip install 'verigym[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if config.address is None:
        cpus = max(os.cpu_count() or 1, ceil(config.actors * config.cpus) + config.env_workers)
        options |= {"include_dashboard": False, "num_cpus": cpus}
    try:
        _require_listener(config.address)
        ray.init(address=config.address or "local", **options)
    except (OSError, RuntimeError, ValueError) as error:
        where = config.address or "local"
        raise EngineError(
            f"no Ray cluster answers at '{where}': {first_line(error)}; start one with: ray start --head"
        ) from error
    return True


def _require_listener(address: str | None) -> None:
    """Raises OSError where nobody listens at host:port; Ray would go on trying for a quarter of an hour."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10.0).close()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that an actor on any node can load: a hub id, or the files of a folder, in the object store.

    A replacement may be needed when the folder is long gone.
    """

    model: str
    files: Mapping[str, Any] | None = None

    @classmethod
    def put(cls, model: str | Path) -> Checkpoint:
        """Sends a folder's files to the store; of a hub id there is nothing to send."""
        import ray

        if not Path(model).is_dir():
            return cls(str(model))
        files = [path for path in Path(model).iterdir() if path.is_file() and path.name != _STATE]
        return cls(str(model), {path.name: ray.put(path.read_bytes()) for path in files})

    def load(self, make: Callable[[str], Engine]) -> Engine:
        """An engine with these weights."""
        import ray

        if self.files is None:
            return make(self.model)
        with tempfile.TemporaryDirectory(prefix="verigym-checkpoint-") as folder:
            for name, file in self.files.items():
                Path(folder, name).write_bytes(ray.get(file))
            return make(folder)


@dataclass(frozen=True, eq=False)
class Update:
    """Weights in the object store. Later updates have higher serial numbers."""

    serial: int
    version: int
    names: frozenset[str]
    shards: Sequence[Any]

    @classmethod
    def put(cls, tensors: Iterable[tuple[str, Tensor]], version: int, dtype: torch.dtype) -> Update:
        """Sends tensors to the store, those of floating point in the engines' precision."""
        import ray

        names: set[str] = set()
        shards = []
        for shard in _shards(tensors, dtype):
            names.update(name for name, _ in shard)
            shards.append(ray.put(shard))
        return cls(next(_SERIALS), version, frozenset(names), shards)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Fetches one shard at a time."""
        import ray

        for shard in self.shards:
            for name, packed in ray.get(shard):
                yield name, _unpack(*packed)


@dataclass(frozen=True)
class Started:
    """What an engine says of itself."""

    max_context: int
    whole_layers: bool
    pid: int


class EngineActor:
    """Holds one engine in a process of its own. The calls that it is sent run one after the other."""

    engine: Engine

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of this class gives. Raises what it raises, or what that says where it cannot be sent: an error
        is not taken for a loss of this actor."""
        try:
            return getattr(self, method)(*arguments)
        except BaseException as error:
            raise portable(error) from None

    def start(self, make: Callable[[str], Engine], checkpoint: Checkpoint) -> Started:
        self.engine = checkpoint.load(make)
        return Started(self.engine.max_context, self.engine.whole_layers, os.getpid())

    def take(self, updates: Sequence[Update]) -> None:
        """Takes updates, in their order."""
        for update in updates:
            self.engine.update_weights(update.tensors(), update.version)

    def advance(self, orders: Sequence[Order], seconds: float) -> list[Generation]:
        """Follows orders and then steps for about so long; returns what ended."""
        until = time.monotonic() + seconds
        finished: list[Generation] = []
        for method, argument in orders:
            getattr(self.engine, method)(argument)
        while self.engine.pending:
            finished += self.engine.step()
            if time.monotonic() >= until:
                break
        return finished

    def score(self, token_ids: Sequence[Sequence[int]], temperature: float) -> list[NDArray[np.float32]]:
        return self.engine.score(token_ids, temperature)

    def prove(self, token_ids: Sequence[Sequence[int]], temperature: float, scored: Sequence[NDArray]) -> float:
        """The largest difference, in nats, from what another actor scored."""
        pairs = zip(self.engine.score(token_ids, temperature), scored, strict=True)
        return max((float(np.abs(own - other).max(initial=0.0)) for own, other in pairs), default=0.0)

    def held(self) -> list[Held]:
        return self.engine.held()


Packed = tuple[NDArray[np.uint8], torch.dtype, torch.Size]


def _shards(tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> Iterator[list[tuple[str, Packed]]]:
    shard: list[tuple[str, Packed]] = []
    for name, tensor in tensors:
        shard.append((name, _pack(tensor.to(dtype) if tensor.is_floating_point() else tensor)))
        if sum(packed[0].nbytes for _, packed in shard) > _SHARD_BYTES:
            yield shard
            shard = []
    if shard:
        yield shard


def _pack(tensor: Tensor) -> Packed:
    """As bytes: numpy has no bfloat16, and the store hands out arrays without a copy."""
    whole = tensor.detach().cpu().contiguous()
    return whole.reshape(-1).view(torch.uint8).numpy(), whole.dtype, whole.shape


def _unpack(array: NDArray[np.uint8], dtype: torch.dtype, shape: torch.Size) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
        return torch.from_numpy(array).view(dtype).reshape(shape)
