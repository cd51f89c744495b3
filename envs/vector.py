"""Many environments that step at the same time in threads, for verifiers and tools that are slow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from copy import deepcopy
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, iterate

from verigym.envs._waiting import TICK, start
from verigym.tasks.errors import EnvClosedError, EnvUsageError

Result = Any  # of an environment's reset or step


class ThreadVectorEnv(SyncVectorEnv):
    """Gymnasium's `SyncVectorEnv`, but that its environments reset and step in threads.

    Observations, infos, seeds and autoreset are those of `SyncVectorEnv`, whatever the threads' order. It pays
    where a step waits (a sandbox, a judge, a worker process): Python code itself takes turns.

    An exception of an environment is raised when all the others are done, with the environment's index in it.
    `close` from another thread ends a running `reset` or `step` with EnvClosedError.

    Args:
        env_fns: functions that make the environments.
        autoreset_mode: when an environment that ended is reset: "NextStep", "SameStep" or "Disabled".
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env[str, str]]],
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        self._ended = threading.Event()
        super().__init__(env_fns, autoreset_mode=autoreset_mode)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Resets all environments, or those of `options["reset_mask"]`; environment i has the seed `seed + i`."""
        self._refuse_if_closed()
        seeds, (mask, given) = self._seeds(seed), self._mask(options)
        results = self._in_threads(
            {index: partial(self.envs[index].reset, seed=seeds[index], options=given) for index in _where(mask)}
        )
        for ended in (self._terminations, self._truncations, self._autoreset_envs):
            ended[mask] = False
        infos: dict[str, Any] = {}
        for index, (observation, info) in results.items():
            self._env_obs[index] = observation
            infos = self._add_info(infos, info, index)
        return self._batch(), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Steps all environments; one that ended before is reset instead (mode "NextStep")."""
        self._refuse_if_closed()
        if self.autoreset_mode is AutoresetMode.DISABLED and self._autoreset_envs.any():
            over = ", ".join(map(str, _where(self._autoreset_envs)))
            raise EnvUsageError(f'environments that ended must be reset first (options["reset_mask"]): {over}')
        turns = list(iterate(self.action_space, actions))
        if isinstance(actions, str) or len(turns) != self.num_envs:
            raise EnvUsageError(f"{self.num_envs} environments need as many actions, not {len(turns)}")
        results = self._in_threads({index: partial(self._turn, index, action) for index, action in enumerate(turns)})
        infos: dict[str, Any] = {}
        for index, (outcome, *parts) in results.items():
            self._env_obs[index], self._rewards[index], self._terminations[index], self._truncations[index] = outcome
            for info in parts:
                infos = self._add_info(infos, info, index)
        self._autoreset_envs = np.logical_or(self._terminations, self._truncations)
        flags = np.copy(self._rewards), np.copy(self._terminations), np.copy(self._truncations)
        return self._batch(), *flags, infos

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the environments, and ends what `reset` or `step` waits for in another thread."""
        self._ended.set()
        super().close_extras(**kwargs)

    def _turn(self, index: int, action: str) -> tuple[tuple[Any, float, bool, bool], *tuple[dict[str, Any], ...]]:
        """(observation, reward, terminated, truncated) of one environment, and its infos in order."""
        env = self.envs[index]
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and self._autoreset_envs[index]:
            observation, info = env.reset()
            return (observation, 0.0, False, False), info
        observation, reward, terminated, truncated, info = env.step(action)
        if self.autoreset_mode is AutoresetMode.SAME_STEP and (terminated or truncated):
            final = {"final_obs": observation, "final_info": info}
            observation, info = env.reset()
            return (observation, float(reward), terminated, truncated), final, info
        return (observation, float(reward), terminated, truncated), info

    def _in_threads(self, calls: Mapping[int, Callable[[], Result]]) -> dict[int, Result]:
        """What the calls return, in their order. Raises the first one's exception when all are done."""
        started = {index: start(call) for index, call in calls.items()}
        waiting = set(started.values())
        while waiting and not self._ended.is_set():
            waiting = futures.wait(waiting, timeout=TICK).not_done
        self._refuse_if_closed()
        for index, future in started.items():
            error = future.exception()
            if error is not None:
                raise _named(error, index, self.num_envs)
        return {index: future.result() for index, future in started.items()}

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None or isinstance(seed, int | np.integer):
            return [None if seed is None else int(seed) + index for index in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise EnvUsageError(f"{self.num_envs} environments need as many seeds, not {len(seed)}")
        return list(seed)

    def _mask(self, options: Mapping[str, Any] | None) -> tuple[Any, dict[str, Any] | None]:
        """Which environments to reset, and the options without the mask."""
        if options is None or "reset_mask" not in options:
            return np.ones(self.num_envs, dtype=bool), None if options is None else dict(options)
        mask = options["reset_mask"]
        fits = isinstance(mask, np.ndarray) and mask.shape == (self.num_envs,) and mask.dtype == np.bool_
        if not fits or not mask.any():
            raise EnvUsageError(f"reset_mask must be {self.num_envs} booleans (numpy), at least one of them true")
        return mask, {name: value for name, value in options.items() if name != "reset_mask"}

    def _batch(self) -> Any:
        self._observations = concatenate(self.single_observation_space, self._env_obs, self._observations)
        return deepcopy(self._observations)

    def _refuse_if_closed(self) -> None:
        if self._ended.is_set():
            raise EnvClosedError("the environments were closed")


def _where(mask: Any) -> list[int]:
    return [int(index) for index in np.flatnonzero(mask)]


def _named(error: BaseException, index: int, count: int) -> BaseException:
    """The exception, of the same type, with the environment's index in its message."""
    where = f"environment {index} of {count}"
    if len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{where}: {error.args[0]}",)
    else:
        error.add_note(f"raised by {where}")
    return error


def vectorize(
    env_id: str, num_envs: int = 1, *, autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP, **kwargs: Any
) -> ThreadVectorEnv:
    """What `gym.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point", **kwargs)` makes."""
    return ThreadVectorEnv([partial(gym.make, env_id, **kwargs)] * num_envs, autoreset_mode=autoreset_mode)


def __getattr__(name: str) -> Callable[..., ThreadVectorEnv]:
    # Gymnasium finds a vector entry point as a module's attribute and does not tell it which id it is for;
    # an id as the attribute's name keeps the registration plain text, as Gymnasium's serialisation wants it.
    if name in gym.registry:
        return partial(vectorize, name)
    raise AttributeError(f"module 'verigym.envs.vector' has no attribute '{name}'")
