"""Weights from the learner's GPU into those of actors at a time: vLLM's weight transfer over NCCL."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch import Tensor

from verigym.agents.engines.config import RayConfig
from verigym.agents.engines.engine import WholeLayers, first_line
from verigym.tasks.activity import moved
from verigym.tasks.errors import ConfigError, EngineError

Named = tuple[str, Tensor]


_LOG = logging.getLogger("verigym.ray")
_FAILURES = 3  # in a row have a cause that new actors do not mend


class GroupError(Exception):
    """A transfer failed. Of its group nothing is left, and what its actors hold is unknown."""


def open_transfer(config: RayConfig, model: str, learner: str | None, actors: Sequence[str | None]) -> Transfer | None:
    """How updates go from GPU to GPUs; None where they go through the store.

    Args:
        model: the checkpoint that the actors have.
        learner, actors: the UUIDs of their GPUs.

    Raises ConfigError where the configuration asks for what cannot be.
    """
    if config.transfer == "store" or config.of != "vllm" or not config.gpus:
        return None
    apart = config.gpus == 1 and None not in actors and len({learner, *actors}) > len(actors)
    if learner is not None and apart:
        from verigym.agents.engines.vllm import parameter_names

        return Transfer(WholeLayers(parameter_names(model)), config.timeout)
    why = "the learner has none" if learner is None else "the learner and each actor do not have one for themselves"
    if config.transfer == "nccl":
        raise ConfigError(f"engine.ray.transfer nccl goes from GPU to GPUs, but {why}")
    _LOG.warning("weights go through Ray's object store and not from GPU to GPUs: %s", why)
    return None


class Transfer:
    """Sends updates to vLLM engines in actors that come and go.

    Args:
        layers: the tensors that an update may hold.
        timeout: seconds for an answer of an actor.
    """

    def __init__(self, layers: WholeLayers, timeout: float) -> None:
        self.layers, self._timeout, self._failures = layers, timeout, 0
        self._group: WeightGroup | None = None

    def send(self, actors: Sequence[Any], parts: Iterator[Sequence[Named]], version: int) -> str | None:
        """Sends an update, of which all parts are taken in any case; returns why it failed, None if it did not.

        After a failure the actors have to be ended. Raises EngineError for one too many in a row.
        """
        if not actors:
            for _ in parts:
                pass
            return None
        try:
            if self._group is not None and self._group.actors != tuple(actors):
                self._group.leave(actors)
                self._group = None
            self._group = self._group or WeightGroup(actors, self._timeout)
            self._group.begin()
            for part in parts:
                self._group.send(part)
            self._group.finish(version)
        except GroupError as error:
            self._group, self._failures = None, self._failures + 1
            if self._failures >= _FAILURES:
                raise EngineError(
                    f"{self._failures} transfers of weights between GPUs failed in a row, the last one because of: "
                    f"{error}; engine.ray.transfer store does without"
                ) from error
            for _ in parts:
                pass
            return str(error)
        self._failures = 0
        return None

    def close(self) -> None:
        """Idempotent."""
        if self._group is not None:
            self._group.abort()
            self._group = None


class WeightGroup:
    """The learner and the vLLM engines of actors, connected: a tensor is sent once, from its GPU to all of theirs.

    An update is `begin`, any number of `send`, and `finish`. NCCL itself waits for ever for a member that is gone. So
    the actors' answers are watched, and when one fails, or gives none in time, the group is given up. The other actors
    may go on waiting even then: they have to be ended.

    Args:
        actors: Ray's handles of `EngineActor`s, each with a vLLM engine on a GPU of its own, all idle.
        timeout: seconds for an answer, and for all to connect.

    Raises GroupError, here and in every method, if the learner's end or an actor fails.
    """

    def __init__(self, actors: Sequence[Any], timeout: float) -> None:
        import ray
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        self.actors, self._timeout, self._part = tuple(actors), timeout, _Part()
        self._trainer: Any = None
        self._failure: GroupError | None = None
        self._ends: SimpleQueue[Any] = SimpleQueue()  # of connecting: the learner's end of the group, or an error
        info = NCCLTrainerInitInfo(ray.util.get_node_ip_address(), _free_port(), len(actors) + 1, rank=0)
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        # In a thread that can be left behind: who waits there for a member that does not come cannot be called off.
        threading.Thread(target=self._connect, args=(info, device), daemon=True).start()
        try:
            end = self._ends.get(timeout=timeout)
        except Empty:
            end = TimeoutError(f"learner and actors did not connect within {timeout:g} s")
        if isinstance(end, Exception):
            raise self._fail(end) from end
        self._trainer = end
        if self._trainer.model_update_group.disabled:
            raise GroupError("vLLM has found no NCCL library, or VLLM_DISABLE_PYNCCL is set")

    def begin(self) -> None:
        """Begins an update."""
        self._ask("transfer", [("start_weight_update", {})] * len(self.actors))

    def send(self, tensors: Sequence[Named]) -> None:
        """Sends a part of the update: tensors on the learner's device."""
        self._part.tensors = tensors
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()  # vLLM reads them on streams of its own
        try:
            self._trainer.send_weights()
        except Exception as error:
            raise self._fail(error) from error
        moved()

    def finish(self, version: int) -> None:
        """Ends an update: the actors play on with it, as `version`."""
        self._ask("transferred", [(version,)] * len(self.actors))

    def leave(self, actors: Sequence[Any]) -> None:
        """Takes the group apart, after which those of `actors` that are in it can join another."""
        self.actors = tuple(actor for actor in self.actors if actor in actors)
        self._ask("transfer", [("shutdown_weight_transfer_engine", {})] * len(self.actors))
        self.abort()

    def abort(self) -> None:
        """Gives the group up; who waits in it in this process waits no more. Idempotent."""
        if self._trainer is not None:
            self._trainer.shutdown()

    def _connect(self, info: Any, device: int | None) -> None:
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

        try:
            if device is not None:
                torch.cuda.set_device(device)  # every thread begins with the first
            client = _Client(self)
            self._ends.put(WeightTransferTrainerFactory.trainer_init(info, client=client, source=self._part))
        except Exception as error:
            self._ends.put(error)

    def _ask(self, method: str, arguments: Sequence[tuple]) -> None:
        """Has every actor make a call, each with arguments of its own."""
        import ray

        waiting = [actor.call.remote(method, *own) for actor, own in zip(self.actors, arguments, strict=True)]
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=self._timeout)
            try:
                if not done:
                    raise TimeoutError(f"an actor gave no answer for {self._timeout:g} s")
                ray.get(done)
            except Exception as error:
                raise self._fail(error) from error

    def _fail(self, error: Exception) -> GroupError:
        """Gives the group up for an error, of which all that come later are consequences."""
        if self._failure is None:
            self._failure = error if isinstance(error, GroupError) else GroupError(_said(error))
            self.abort()
        return self._failure


class _Client:
    """The calls that vLLM's sending end makes of the receiving ones. It waits for their answers in another thread."""

    def __init__(self, group: WeightGroup) -> None:
        self._group = group

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each engine is one of its own, and would take the same rank."""
        ranks = range(init_info["rank_offset"], init_info["world_size"])
        calls = [("init_weight_transfer_engine", {"init_info": init_info | {"rank_offset": rank}}) for rank in ranks]
        try:
            self._group._ask("transfer", calls)
        except GroupError as error:
            self._group._ends.put(error)
            raise

    def start_weight_update(self) -> None:
        """`WeightGroup.begin` does it once for all parts of an update."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._group._ask("transfer", [("update_weights", {"update_info": update_info})] * len(self._group.actors))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """So does `WeightGroup.finish`."""


class _Part:
    """What vLLM's sending end sends next."""

    tensors: Sequence[Named] = ()

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer import ParamMeta

        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors]

    def __iter__(self) -> Iterator[Named]:
        return iter(self.tensors)


def _said(error: Exception) -> str:
    """What Ray or an actor says, without the traceback of another process."""
    return first_line(getattr(error, "cause", None) or error)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])
