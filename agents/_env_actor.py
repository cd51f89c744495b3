"""What runs in an environment worker on a Ray cluster: environments, and no torch."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from verigym.agents._portable import portable
from verigym.envs.mixture import EnvSpec
from verigym.tasks.activity import Activity, current


@dataclass(frozen=True)
class Answer:
    """What a reset or a step gave, and the tokens that the environment then leaves for the next turn, if it says."""

    given: tuple[Any, ...]
    tokens_left: int | None


class EnvActor:
    """Holds environments in a process of its own, by number. Calls run side by side, in threads."""

    def __init__(self) -> None:
        self._envs: dict[int, gym.Env[str, str]] = {}
        self._calls: dict[int, Activity] = {}

    def call(self, call: int, method: str, *arguments: Any) -> bytes:
        """What a method of this class gives, pickled. Raises what it raises, or what that says where it cannot be sent:
        nothing that an environment gives or raises is taken for a loss of this worker, or ends it."""
        from ray import cloudpickle

        activity = self._calls[call] = Activity()
        token = current.set(activity)
        try:
            return cloudpickle.dumps(getattr(self, method)(*arguments))  # type: ignore[no-any-return]
        except BaseException as error:
            raise portable(error) from None
        finally:
            current.reset(token)
            del self._calls[call]

    def waits(self) -> dict[int, list[tuple[str, str, float]]]:
        """By call, what it waits for: kind, name, and for how many seconds, the innermost last."""
        now = time.monotonic()
        return {
            call: [(one.kind, one.name, now - one.since) for one in activity.stack]
            for call, activity in self._calls.copy().items()
        }

    def open(self, number: int, spec: EnvSpec) -> frozenset[str]:
        """Makes an environment; which of the optional attributes `tasks` and `snapshot` it has."""
        env = self._envs[number] = spec.make()
        return frozenset(name for name in ("tasks", "snapshot") if hasattr(env.unwrapped, name))

    def reset(self, number: int, seed: int | None, options: dict[str, Any] | None) -> Answer:
        return self._answer(number, self._envs[number].reset(seed=seed, options=options))

    def step(self, number: int, action: str, announced: Mapping[str, Any]) -> Answer:
        """A step, before which the environment is told what is `announced` of the turn."""
        env = self._envs[number]
        if announced and hasattr(env.unwrapped, "announce"):
            env.unwrapped.announce(**announced)
        return self._answer(number, env.step(action))

    def snapshot(self, number: int) -> Mapping[str, Any]:
        return self._envs[number].unwrapped.snapshot()  # type: ignore[attr-defined, no-any-return]

    def close(self, number: int) -> None:
        """Ends, from another thread, what a call waits for."""
        env = self._envs.pop(number, None)
        if env is not None:
            env.close()

    def pid(self) -> int:
        """Of the process, when it is there."""
        return os.getpid()

    def _answer(self, number: int, given: tuple[Any, ...]) -> Answer:
        left = getattr(self._envs[number].unwrapped, "tokens_left", lambda: None)()
        return Answer(given, left)
