"""Tells whether an environment's rewards can be trusted: its gold answers earn them, null policies do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from verigym.envs.null_policies import ANSWERING, WITH_TOOLS, Policy
from verigym.envs.text_env import TextEnv
from verigym.tasks.errors import ConfigError, RunError, VerifierInputError
from verigym.tasks.task import Task
from verigym.verifiers.verdict import Outcome, Submission, Verdict

TOLERANCE = 0.02  # what a null policy may earn above chance
PLAYED = 500  # tasks that the null policies play, if the set has as many
_CHUNK = 512


@dataclass(frozen=True)
class GoldFailure:
    """A task whose gold answer does not earn full reward, and why."""

    task_id: str
    outcome: str
    reason: str


@dataclass(frozen=True)
class Validation:
    """What `validate` found: gold answers that fail, and the mean reward of each null policy."""

    golds: int
    """Tasks whose gold answers were verified."""
    failures: tuple[GoldFailure, ...]
    played: int
    """Tasks that each null policy played."""
    null_rewards: Mapping[str, float] = field(default_factory=dict)
    chance: float = 0.0
    unnamed: int = 0
    """Tasks that have right answers but name none: only their verifier knows."""

    @property
    def limit(self) -> float:
        """The mean reward up to which a null policy is harmless."""
        return self.chance + TOLERANCE

    @property
    def earning(self) -> list[str]:
        """The null policies that earn too much, or what cannot be told (NaN)."""
        return [name for name, reward in self.null_rewards.items() if not reward <= self.limit]

    @property
    def ok(self) -> bool:
        """Whether all gold answers verify and no null policy earns more than chance and a little."""
        return not self.failures and not self.earning


def validate(
    env: TextEnv,
    *,
    limit: int | None = None,
    played: int = PLAYED,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Validation:
    """Verifies the gold answers of all tasks, or of `limit` spread evenly; null policies play `played` tasks.

    The answers go straight to the verifier; on the tasks that are played they go through the environment, too.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, not {limit}")
    tasks = spread(env.tasks, limit)
    failures: dict[str, GoldFailure] = {}
    for start in range(0, len(tasks), _CHUNK):
        failures.update({found.task_id: found for found in _failing(env, tasks[start : start + _CHUNK])})
        on_progress(min(start + _CHUNK, len(tasks)), len(tasks))
    sample = [task for task in spread(env.tasks, played) if _judgeable(env, task)]
    for task in sample:
        if task.id not in failures and (failure := _played_gold(env, task)):
            failures[task.id] = failure
    policies = WITH_TOOLS if env.tools else ANSWERING
    null_rewards = {name: mean_reward(env, policy, sample) for name, policy in policies.items() if sample}
    unnamed = sum(task.id not in failures and not env.golds(task) for task in tasks)
    verified = len(tasks) - unnamed
    return Validation(verified, tuple(failures.values()), len(sample), null_rewards, env.chance, unnamed)


def unsound(
    env: TextEnv, tasks: Sequence[Task], on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, str]:
    """The tasks by which a policy learns what it should not, and why: a gold answer fails, or a null policy passes.

    A policy that always answers the same is right now and then: a task that it passes pays for no skill all the same.
    Raises RunError if a gold answer cannot be judged through a failure of ours.
    """
    found = {}
    for failure in _failing(env, tasks):
        found[failure.task_id] = f"gold answer: {failure.outcome}, {failure.reason}"
    for seed, task in enumerate(tasks):
        if task.id not in found and (failed := _played_gold(env, task)):
            found[task.id] = f"gold answer: {failed.outcome}, {failed.reason}"
        if task.id not in found and (passing := _passing(env, task, seed)):
            found[task.id] = f"passed by policies that know nothing: {', '.join(passing)}"
        on_progress(seed + 1, len(tasks))
    lost = next((why for why in found.values() if why.startswith(f"gold answer: {Outcome.INFRA_ERROR.value}")), None)
    if lost is not None:
        raise RunError(f"the tasks cannot be judged here: {lost}")
    return found


def _passing(env: TextEnv, task: Task, seed: int) -> list[str]:
    """The null policies that earn full reward on a task."""
    policies = WITH_TOOLS if env.tools else ANSWERING
    return [name for name, policy in policies.items() if _episode(env, policy, task, seed) >= 1.0]


def spread(tasks: Sequence[Task], count: int | None) -> list[Task]:
    """`count` of the tasks, evenly spaced over the set; all of them if there are no more."""
    if count is None or count >= len(tasks):
        return list(tasks)
    return [tasks[index * len(tasks) // count] for index in range(count)]


def mean_reward(env: TextEnv, policy: Policy, tasks: Sequence[Task]) -> float:
    """The mean return of a policy over one episode of each task."""
    return float(np.mean([_episode(env, policy, task, seed) for seed, task in enumerate(tasks)]))


def _episode(env: TextEnv, policy: Policy, task: Task, seed: int) -> float:
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed, options={"task": task.id})
    total, ended = 0.0, False
    while not ended:
        observation, reward, terminated, truncated, info = env.step(policy(rng, observation, info))
        total, ended = total + reward, terminated or truncated
    return total


def _judgeable(env: TextEnv, task: Task) -> bool:
    try:
        env.golds(task)
    except VerifierInputError:
        return False
    return True


def _failing(env: TextEnv, tasks: Sequence[Task]) -> Iterator[GoldFailure]:
    """The tasks one of whose accepted answers does not verify."""
    pairs = []
    for task in tasks:
        try:
            golds = env.golds(task)
        except VerifierInputError as error:
            yield GoldFailure(task.id, "no verdict", str(error))
            continue
        pairs += [(Submission(gold), task) for gold in golds]
    for (_, task), verdict in zip(pairs, env.verifier.verify_many(pairs), strict=True):
        if not _full(verdict):
            yield GoldFailure(task.id, verdict.outcome.value, verdict.reason)


def _played_gold(env: TextEnv, task: Task) -> GoldFailure | None:
    """What the environment says to a gold episode, if it is not full reward at its end."""
    for turns in env.gold_episodes(task):
        env.reset(seed=0, options={"task": task.id})
        for turn in turns:
            _, _, terminated, truncated, info = env.step(turn)
            if terminated or truncated:
                break
        verdict = info.get("verdict")
        if not (terminated or truncated) or verdict is None:
            return GoldFailure(task.id, "not ended", "the gold answer does not end the episode")
        if not _full(verdict):
            return GoldFailure(task.id, verdict.outcome.value, f"in the environment: {verdict.reason}")
    return None


def _full(verdict: Verdict) -> bool:
    return verdict.outcome is Outcome.CORRECT
