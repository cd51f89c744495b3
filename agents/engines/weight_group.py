"""Weights from the learner's GPU into those of all actors at once: vLLM's weight transfer over NCCL."""

from __future__ import annotations

import importlib.util
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import Any

import torch

from verigym.agents.engines._ray_actors import Named
from verigym.agents.engines.config import RayConfig
from verigym.agents.engines.engine import WholeLayers, first_line
from verigym.tasks.activity import moved
from verigym.tasks.errors import ConfigError, EngineError

_LOG = logging.getLogger("verigym.ray")
_FAILURES = 3  # in a row have a cause that new actors do not mend
_GRACE = 1.0  # seconds in which the learner's end comes to wait within NCCL, where it may be called off


class GroupError(Exception):
    """A transfer failed. Of its group nothing is left, and what its actors hold is unknown."""


class Transfer:
    """Sends updates to vLLM engines in actors that come and go.

    Args:
        config: of the actors.
        model: the checkpoint that they have.
        learner: the UUID of the learner's GPU; None without one.
    """

    def __init__(self, config: RayConfig, model: str, learner: str | None) -> None:
        self._config, self._model, self._learner = config, model, learner
        self._failures = 0
        self._said: set[str] = set()
        self._group: WeightGroup | None = None

    @property
    def wanted(self) -> bool:
        """Whether updates are to go this way where they can."""
        return self._config.of == "vllm" and self._config.gpus > 0 and self._config.transfer != "store"

    def possible(self, actors: Sequence[Sequence[str]]) -> bool:
        """Whether they can to actors with these GPUs; says once why not.

        Raises ConfigError where the configuration allows nothing else.
        """
        why = self._obstacle(actors)
        if why and self._config.transfer == "nccl":
            raise ConfigError(f"engine.ray.transfer nccl goes from GPU to GPUs, but {why}")
        if why and why not in self._said:
            _LOG.warning("weights go through Ray's object store and not from GPU to GPUs: %s", why)
            self._said.add(why)
        return why is None

    def _obstacle(self, actors: Sequence[Sequence[str]]) -> str | None:
        gpus = [gpu for own in actors for gpu in own]
        if self._learner is None:
            return "the learner has none"
        if importlib.util.find_spec("vllm") is None:
            return "vLLM is not installed where the learner is"
        if not len({self._learner, *gpus}) == 1 + len(gpus) == 1 + len(actors) * self._config.gpus:
            return (
                "the learner and each actor do not have theirs for themselves: tell 'ray start' on the learner's "
                "machine which ones to give away"
            )
        return None

    @cached_property
    def layers(self) -> WholeLayers:
        """The tensors that an update may hold."""
        from verigym.agents.engines.vllm import parameter_names

        return WholeLayers(parameter_names(self._model))

    def send(self, actors: Sequence[Any], parts: Iterator[Sequence[Named]], version: int) -> str | None:
        """Sends an update; returns why it failed, after the rest of the parts was taken, and None if it did not.

        After a failure the actors have to be ended. Raises EngineError where that does not help.
        """
        try:
            if self._group is not None and self._group.actors != tuple(actors):
                self._group.leave(actors)
                self._group = None
            self._group = self._group or WeightGroup(actors, int(self._config.gpus), self._config.timeout)
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
            _take_rest(parts, error)
            return str(error)
        self._failures = 0
        return None

    def close(self) -> None:
        """Idempotent."""
        if self._group is not None:
            self._group.abort()
            self._group = None


def _take_rest(parts: Iterator[Sequence[Named]], failure: GroupError) -> None:
    try:
        for _ in parts:
            pass
    except RuntimeError as error:
        # The death of a process whose memory a GPU reads from can be an error of that GPU, after which it does nothing.
        raise EngineError(
            f"a transfer of weights failed ({failure}), and the learner with it ({first_line(error)}); go on from the "
            "last checkpoint with --resume"
        ) from error


class WeightGroup:
    """The learner and the vLLM engines of actors, connected: a tensor is sent once, from its GPU to all of theirs.

    An update is `begin`, any number of `send`, and `finish`. NCCL itself waits for ever for a member that is gone. So
    the actors' answers are watched, and when one fails, or gives none in time, the group is given up. The other actors
    may go on waiting even then: they have to be ended.

    Args:
        actors: Ray's handles of `EngineActor`s, each with a vLLM engine on `gpus` GPUs of its own, all idle.
        timeout: seconds for an answer, and for all to connect.

    Raises GroupError, here and in every method, if the learner's end or an actor fails; EngineError for what new actors
    would not mend: they do not connect in time, or there is no NCCL.
    """

    def __init__(self, actors: Sequence[Any], gpus: int, timeout: float) -> None:
        import ray

        self.actors, self.gpus, self._timeout, self._part = tuple(actors), gpus, timeout, _Part()
        self._trainer: Any = None
        self._failure: GroupError | None = None
        # None when they are connected, or why not.
        self._connected: SimpleQueue[Exception | None] = SimpleQueue()
        # In a thread that can be left behind: who waits there for a member that does not come cannot be called off.
        host = ray.util.get_node_ip_address()
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        threading.Thread(target=self._connect, args=(host, device), daemon=True).start()
        try:
            error = self._connected.get(timeout=timeout)
        except Empty:
            self._fail(TimeoutError())
            raise EngineError(
                f"the learner and {len(actors)} Ray actors did not connect over NCCL within {timeout:g} s; "
                "NCCL_DEBUG=INFO says how far they came, and engine.ray.transfer store does without"
            ) from None
        if error is not None:
            raise self._fail(error) from error
        assert self._trainer is not None
        if self._trainer.model_update_group.disabled:
            raise EngineError(
                "the learner's vLLM has no NCCL: its library is not found, or VLLM_DISABLE_PYNCCL is set; "
                "engine.ray.transfer store does without"
            )

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
        finally:
            self._part.tensors = ()
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

    def _connect(self, host: str, device: int | None) -> None:
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        try:
            if device is not None:
                torch.cuda.set_device(device)  # every thread begins with the first
            size = 1 + len(self.actors) * self.gpus
            # One buffer: with two, vLLM may read a tensor of one stream on another when it puts a layer together.
            info = NCCLTrainerInitInfo(host, _free_port(host), size, packed_num_buffers=1, rank=0)
            self._trainer = WeightTransferTrainerFactory.trainer_init(info, client=_Client(self), source=self._part)
            self._connected.put(None)
        except Exception as error:
            self._connected.put(error)
        if self._failure is not None:  # it took too long
            self.abort()

    def _ask(self, method: str, arguments: Sequence[tuple], grace: float = 0.0) -> None:
        """Has every actor make a call, each with arguments of its own; an error counts after so many seconds."""
        import ray

        waiting = [actor.call.remote(method, *own) for actor, own in zip(self.actors, arguments, strict=True)]
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=self._timeout)
            try:
                if not done:
                    raise TimeoutError(f"an actor gave no answer for {self._timeout:g} s")
                ray.get(done)
            except Exception as error:
                time.sleep(grace)
                raise self._fail(error) from error

    def _fail(self, error: Exception) -> GroupError:
        """Gives the group up for an error, of which all that come later are consequences."""
        if self._failure is None:
            self._failure = GroupError(_reason(error))
            self.abort()
        return self._failure


class _Client:
    """The calls that vLLM's sending end makes of the receiving ones. It waits for their answers in another thread."""

    def __init__(self, group: WeightGroup) -> None:
        self._group = group

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each engine is one of its own, and would take the same ranks, of which each of its GPUs has one."""
        ranks = range(init_info["rank_offset"], init_info["world_size"], self._group.gpus)
        calls = [("init_weight_transfer_engine", {"init_info": init_info | {"rank_offset": rank}}) for rank in ranks]
        try:
            self._group._ask("transfer", calls)
        except GroupError as error:
            self._group._connected.put(error)
            raise

    def start_weight_update(self) -> None:
        """`WeightGroup.begin` does it once for all parts of an update."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        calls = [("update_weights", {"update_info": update_info})] * len(self._group.actors)
        self._group._ask("transfer", calls, grace=_GRACE)

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


def _reason(error: Exception) -> str:
    """What Ray or an actor says, without the traceback of another process."""
    return first_line(getattr(error, "cause", None) or error)


def _free_port(host: str) -> int:
    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])
