"""What runs on a Ray cluster: the actor that holds an engine, and the checkpoint and weights that it is sent."""

from __future__ import annotations

import importlib.util
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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

Named = tuple[str, Tensor]
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


@dataclass(eq=False)
class Update:
    """Weights of which each shard is in the object store, or kept in the driver's memory until it is asked for.

    Later updates have higher serial numbers.
    """

    version: int
    serial: int = field(default_factory=lambda: next(_SERIALS))
    names: set[str] = field(default_factory=set)
    shards: list[Any] = field(default_factory=list)

    def keep(self, tensors: Iterable[Named], dtype: torch.dtype) -> Iterator[list[Named]]:
        """Adds tensors, those of floating point in the engines' precision; gives each shard on when it is kept."""
        for shard in _shards(tensors, dtype):
            self.names |= {name for name, _ in shard}
            self.shards.append([(name, _pack(tensor)) for name, tensor in shard])
            yield shard

    def put(self) -> Update:
        """Itself, after what was kept here has gone to the store."""
        import ray

        self.shards = [ray.put(shard) if isinstance(shard, list) else shard for shard in self.shards]
        return self

    def tensors(self) -> Iterator[Named]:
        """Fetches one shard at a time."""
        import ray

        for shard in self.shards:
            for name, packed in ray.get(shard):
                yield name, _unpack(*packed)


def needed(updates: Sequence[Update]) -> list[Update]:
    """Without those of which later ones have every tensor."""
    found: list[Update] = []
    for update in reversed(updates):
        if not found or not update.names <= {name for later in found for name in later.names}:
            found.insert(0, update)
    return found


@dataclass(frozen=True)
class Started:
    """What an engine says of itself."""

    max_context: int
    whole_layers: bool
    pid: int
    gpus: tuple[str, ...]  # their UUIDs


class EngineActor:
    """Holds one engine in a process of its own. The calls that it is sent run one after the other."""

    engine: Engine

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of this class gives. Raises what it raises, or what that says where it cannot be sent: an error
        is not taken for a loss of this actor."""
        try:
            return getattr(self, method)(*arguments)
        except BaseException as error:
            if hasattr(self, "engine") and self.engine.gone:
                os._exit(1)  # it is one loss of an actor, like any other
            raise portable(error) from None

    def start(self, make: Callable[[str], Engine], checkpoint: Checkpoint) -> Started:
        self.engine = checkpoint.load(make)
        return Started(self.engine.max_context, self.engine.whole_layers, os.getpid(), self.engine.gpus)

    def take(self, updates: Sequence[Update]) -> None:
        """Takes updates, in their order."""
        for update in updates:
            self.engine.update_weights(update.tensors(), update.version)

    def transfer(self, step: str, arguments: Mapping[str, Any]) -> None:
        """A step of an update that goes from GPU to GPU."""
        self.engine.transfer(step, **arguments)  # type: ignore[attr-defined]

    def transferred(self, version: int) -> None:
        """The last one."""
        self.engine.transferred(version)  # type: ignore[attr-defined]

    def advance(self, orders: Sequence[Order], seconds: float) -> tuple[list[Generation], dict[int, int | None] | None]:
        """Follows orders and then steps for about so long; returns what ended, and `Engine.drawn` of what did not."""
        until = time.monotonic() + seconds
        finished: list[Generation] = []
        for method, argument in orders:
            getattr(self.engine, method)(argument)
        while self.engine.pending:
            finished += self.engine.step()
            if time.monotonic() >= until:
                break
        return finished, self.engine.drawn()

    def score(self, token_ids: Sequence[Sequence[int]], temperature: float) -> list[NDArray[np.float32]]:
        return self.engine.score(token_ids, temperature)

    def prove(self, token_ids: Sequence[Sequence[int]], temperature: float, scored: Sequence[NDArray]) -> float:
        """The largest difference, in nats, from what another actor scored."""
        pairs = zip(self.engine.score(token_ids, temperature), scored, strict=True)
        return max((float(np.abs(own - other).max(initial=0.0)) for own, other in pairs), default=0.0)

    def held(self) -> list[Held]:
        return self.engine.held()


Packed = tuple[NDArray[np.uint8], torch.dtype, torch.Size]


def _shards(tensors: Iterable[Named], dtype: torch.dtype) -> Iterator[list[Named]]:
    shard: list[Named] = []
    for name, tensor in tensors:
        shard.append((name, tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()))
        if sum(tensor.nbytes for _, tensor in shard) > _SHARD_BYTES:
            yield shard
            shard = []
    if shard:
        yield shard


def _pack(tensor: Tensor) -> Packed:
    """As bytes: numpy has no bfloat16, and the store hands out arrays without a copy."""
    whole = tensor.to("cpu", copy=True).contiguous()  # what the learner goes on changing is not what is kept
    return whole.reshape(-1).view(torch.uint8).numpy(), whole.dtype, whole.shape


def _unpack(array: NDArray[np.uint8], dtype: torch.dtype, shape: torch.Size) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
        return torch.from_numpy(array).view(dtype).reshape(shape)
