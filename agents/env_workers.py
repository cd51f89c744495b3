"""Environments in workers on a Ray cluster, behind the interface of environments in this process."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import gymnasium as gym

from verigym.agents._env_actor import Answer, EnvActor
from verigym.agents.engines.config import RayConfig
from verigym.agents.engines.engine import first_line
from verigym.envs.mixture import EnvSpec
from verigym.tasks.activity import Activity, Doing, current, doing
from verigym.tasks.errors import EngineError, EnvClosedError, EnvLostError

_LOG = logging.getLogger("verigym.ray")
_TELLS = 2.0  # seconds that a worker has to tell what its calls wait for
_CALLS = 64  # that a worker is asked at a time
_SPARE = 64  # threads of a worker beside them, of which a call that hangs keeps one


@dataclass(eq=False)
class _Worker:
    """A worker, and how many environments are open in it."""

    number: int
    actor: Any
    open: int = 0
    lost: bool = False


class EnvWorkers:
    """Makes environments in the workers, each where the fewest are. Callable from any thread.

    A worker that dies is replaced, and whoever waits for it gets an EnvLostError: its episodes are played again.
    One core is set aside for each. This process is connected to the cluster already, by the engine.

    Raises EngineError if the workers do not start within `config.timeout` seconds.
    """

    def __init__(self, config: RayConfig) -> None:
        import ray

        self._ray, self._numbers, self._lock, self._closed = ray, count(), threading.Lock(), False
        self._asking: dict[int, Activity | None] = {}  # by call, who waits for it
        self.lost = 0
        self._workers = [_Worker(number, self._start()) for number in range(config.env_workers)]
        ready = [worker.actor.pid.remote() for worker in self._workers]
        started, _ = ray.wait(ready, num_returns=len(ready), timeout=config.timeout)
        if len(started) < len(ready):
            self.close()
            free = ray.available_resources().get("CPU", 0)
            raise EngineError(
                f"{len(started)} of {len(ready)} environment workers started within {config.timeout:g} s; each needs a "
                f"CPU core, and the cluster has {free:g} to give"
            )

    @property
    def calls(self) -> int:
        """Calls that they are asked at a time, all together."""
        return _CALLS * len(self._workers)

    def make(self, spec: EnvSpec) -> RemoteEnv:
        """A new environment in a worker. Raises what making it raises, and EnvLostError."""
        return RemoteEnv(self, spec)

    def open(self, spec: EnvSpec) -> tuple[_Worker, int, frozenset[str]]:
        """The worker in which an environment was made, its number there, and what it has."""
        with self._lock:
            if self._closed:
                raise EnvClosedError("the environment workers are closed")
            worker, number = min(self._workers, key=lambda worker: worker.open), next(self._numbers)
            worker.open += 1
        try:
            return worker, number, self.ask(worker, "open", number, spec)
        except BaseException:
            worker.open -= 1
            raise

    def ask(self, worker: _Worker, method: str, *arguments: Any) -> Any:
        """A worker's answer. Raises what the environment raises, and EnvLostError if the worker is lost."""
        call = next(self._numbers)
        self._asking[call] = current.get()
        try:
            with doing("environment worker", str(worker.number)):
                answer = self._ray.get(worker.actor.call.remote(call, method, *arguments))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            self._replace(worker, first_line(error))
            raise EnvLostError(f"environment worker {worker.number} was lost: {first_line(error)}") from None
        finally:
            del self._asking[call]
        return self._ray.cloudpickle.loads(answer)

    def waits(self) -> dict[Activity, tuple[Doing, ...]]:
        """By who waits for a worker, what goes on there, if it tells at once. Callable from any thread."""
        asked = [worker.actor.waits.remote() for worker in self._workers]
        told, _ = self._ray.wait(asked, num_returns=len(asked), timeout=_TELLS)
        found: dict[Activity, tuple[Doing, ...]] = {}
        for answer in told:
            with contextlib.suppress(self._ray.exceptions.RayError):  # it is lost, as those who wait for it will hear
                now = time.monotonic()
                for call, stack in self._ray.get(answer).items():
                    if activity := self._asking.get(call):
                        found[activity] = tuple(Doing(kind, name, now - seconds) for kind, name, seconds in stack)
        return found

    def shut(self, worker: _Worker, number: int) -> None:
        """Closes an environment, without waiting for it."""
        with self._lock:
            worker.open -= 1
            if not (worker.lost or self._closed):
                worker.actor.call.remote(next(self._numbers), "close", number)

    def close(self) -> None:
        with self._lock:
            self._closed = True
        for worker in self._workers:
            self._ray.kill(worker.actor)

    def _start(self) -> Any:
        return self._ray.remote(EnvActor).options(num_cpus=1, max_concurrency=_CALLS + _SPARE).remote()

    def _replace(self, worker: _Worker, why: str) -> None:
        """Once for each loss, however many calls notice it."""
        with self._lock:
            if worker.lost or self._closed:
                return
            worker.lost = True
            self.lost += 1
            self._ray.kill(worker.actor)
            self._workers[worker.number] = _Worker(worker.number, self._start())
        _LOG.warning(
            "Environment worker %d was lost (%s); it is replaced, and its episodes run again", worker.number, why
        )


def make_env_workers(config: RayConfig) -> EnvWorkers | None:
    """The workers that a configuration asks for, if any."""
    return EnvWorkers(config) if config.env_workers else None


class RemoteEnv(gym.Env[str, str]):
    """An environment in a worker. One that was idle when its worker was lost is made again at its next reset."""

    def __init__(self, workers: EnvWorkers, spec: EnvSpec) -> None:
        self._workers, self._spec = workers, spec
        self._announced: dict[str, Any] = {}
        self._left: int | None = None
        self._open()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        if self._worker.lost:
            self._open()
        observation, info = self._take(self._ask("reset", seed, options))
        return observation, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        announced, self._announced = self._announced, {}
        observation, reward, terminated, truncated, info = self._take(self._ask("step", action, announced))
        return observation, reward, terminated, truncated, info

    def announce(self, tokens: int, *, cut: bool) -> None:
        """Goes with the next step."""
        self._announced = {"tokens": tokens, "cut": cut}

    def tokens_left(self) -> int | None:
        """As the environment said after its last answer; None if it sets no budget."""
        return self._left

    def close(self) -> None:
        self._workers.shut(self._worker, self._number)

    def _open(self) -> None:
        self._worker, self._number, has = self._workers.open(self._spec)
        # By these attributes it is known what an environment can do.
        if "tasks" in has:
            self.tasks = None  # they stay with the worker
        if "snapshot" in has:
            self.snapshot = self._snapshot

    def _snapshot(self) -> Mapping[str, Any]:
        return self._ask("snapshot")  # type: ignore[no-any-return]

    def _ask(self, method: str, *arguments: Any) -> Any:
        return self._workers.ask(self._worker, method, self._number, *arguments)

    def _take(self, answer: Answer) -> tuple[Any, ...]:
        self._left = answer.tokens_left
        return answer.given
