"""Who plays an evaluation: a checkpoint on a rollout engine, or a model behind an endpoint."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from verigym.agents.agent import LocalAgent, load_chat, load_model, resolve_device
from verigym.agents.attention import install
from verigym.agents.collect import Collection, Collector
from verigym.agents.conversation import converse
from verigym.agents.endpoint import EndpointAgent
from verigym.agents.engines.config import EngineConfig
from verigym.agents.engines.engine import Engine
from verigym.agents.engines.make import make_engine
from verigym.agents.engines.sync import WeightSync
from verigym.agents.env_workers import EnvWorkers, make_env_workers
from verigym.agents.episode import Episode, Plan
from verigym.envs.mixture import EnvSpec
from verigym.tasks.errors import ConfigError

_OF_TRAINING = "state.pt"  # beside a run's checkpoints; it decides nothing of how they play


class Player(ABC):
    """Plays episodes of one model."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What of the model decides how episodes go, as plain data. Raises ConfigError if there is no such model."""

    @abstractmethod
    def play(
        self, spec: EnvSpec, plans: Sequence[Plan], *, interrupted: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, Episode]]:
        """Index of the plan and episode, as they end. Raises RunInterrupted when `interrupted()` turns true."""

    def close(self) -> None:
        """Frees what the model holds."""


class LocalPlayer(Player):
    """A checkpoint on an engine, which is made when it is first needed.

    Raises ConfigError for `deterministic` with another engine than transformers.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        temperature: float = 1.0,
        max_new_tokens: int = 1024,
        engine: EngineConfig = EngineConfig(),  # noqa: B008 - it is frozen
        slots: int = 256,
        deterministic: bool = False,
        device: str = "auto",
    ) -> None:
        if deterministic:
            engine.require_bits()
        self.model, self.temperature, self.max_new_tokens = model, temperature, max_new_tokens
        self.engine, self.slots, self.deterministic = engine, slots, deterministic
        self.device = resolve_device(device)

    def identity(self) -> dict[str, Any]:
        kind = self.engine.ray.of if self.engine.kind == "ray" else self.engine.kind
        sampling = {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}
        return {"weights": weights_of(self.model), "engine": kind, "device": self.device, **sampling}

    def play(
        self, spec: EnvSpec, plans: Sequence[Plan], *, interrupted: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, Episode]]:
        collector = Collector(
            self._agent,
            [spec],
            deterministic=self.deterministic,
            interrupted=interrupted,
            env_workers=self._env_workers,
        )
        try:
            yield from _waves(collector, plans) if self.deterministic else _overlapped(collector, plans)
        finally:
            collector.close()

    def close(self) -> None:
        if workers := self.__dict__.pop("_env_workers", None):
            workers.close()
        if "_agent" in self.__dict__:
            self._agent.engine.close()
            del self._agent

    @cached_property
    def _agent(self) -> LocalAgent:
        _, chat = load_chat(self.model)
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        player = make_engine(self.engine, self.model, dtype=dtype, device=self.device, slots=self.slots)
        if self.engine.kind == "vllm-server":
            _send(self.model, player, self.device)
        return LocalAgent(chat, player, temperature=self.temperature, max_new_tokens=self.max_new_tokens)

    @cached_property
    def _env_workers(self) -> EnvWorkers | None:
        return make_env_workers(self.engine.ray)


class EndpointPlayer(Player):
    """A model behind an endpoint; its episodes have messages and no tokens."""

    def __init__(self, agent: EndpointAgent, *, concurrency: int = 64) -> None:
        self.agent, self.concurrency = agent, concurrency

    def identity(self) -> dict[str, Any]:
        sampling = {"temperature": self.agent.temperature, "max_new_tokens": self.agent.max_new_tokens}
        return {"endpoint": self.agent.url, "model": self.agent.model, **sampling}

    def play(
        self, spec: EnvSpec, plans: Sequence[Plan], *, interrupted: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, Episode]]:
        return converse(self.agent, [spec], plans, concurrency=self.concurrency, interrupted=interrupted)


def weights_of(model: str | Path) -> str:
    """A name of a checkpoint's content: of a folder the hash of its files, of a hub id the commit.

    Raises ConfigError if there is no checkpoint, or the commit cannot be told.
    """
    load_chat(model)
    folder = Path(model).expanduser()
    if not folder.is_dir():
        commit = getattr(AutoConfig.from_pretrained(str(model)), "_commit_hash", None)
        if not commit:
            raise ConfigError(f"cannot tell which version of '{model}' is here; download it and name its folder")
        return f"{model}@{commit}"
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _OF_TRAINING):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _overlapped(collector: Collector, plans: Sequence[Plan]) -> Iterator[tuple[int, Episode]]:
    collection = Collection(collector)
    index_of = {number: index for index, number in enumerate(collection.add(plans))}
    try:
        while collection.waiting or collection.running:
            collection.advance()
            while collection.ended:
                number, episode = collection.ended.popitem()
                yield index_of[number], episode
    except BaseException:
        collection.abandon()
        raise


def _waves(collector: Collector, plans: Sequence[Plan]) -> Iterator[tuple[int, Episode]]:
    """Lockstep, as `Collector.collect` goes through the plans: as many episodes at a time as it plays at once."""
    for start in range(0, len(plans), collector.concurrency):
        yield from enumerate(collector.collect(plans[start : start + collector.concurrency]), start=start)


def _send(model: str | Path, server: Engine, device: str) -> None:
    """Gives a server, which plays with whatever weights it got last, the checkpoint's. Raises SyncError."""
    policy = load_model(model, device=device)
    install(policy)
    WeightSync(policy, server).start(0)
