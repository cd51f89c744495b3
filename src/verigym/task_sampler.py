"""Which tasks a step plays: a mixture by weight, each environment's tasks in shuffled passes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verigym.agents.episode import Plan, derive_seed
from verigym.envs.mixture import EnvSpec
from verigym.tasks.errors import ConfigError, VerifierInputError
from verigym.tasks.task import Task, TaskSet


class TaskSampler:
    """A pure function of (seed, position): `position` holds how many groups of each environment were drawn.

    Raises ConfigError for an environment that runs what a policy says where it could reach the trainer, and for one
    with a task that its verifier cannot judge.
    """

    def __init__(self, specs: Sequence[EnvSpec], seed: int) -> None:
        self.seed = seed
        self.weights = np.array([spec.weight for spec in specs], float)
        self.task_ids = [task_ids(_judgeable(_isolated(spec))) for spec in specs]
        self.start = [0] * len(specs)

    def plan(
        self, position: Sequence[int], groups: int, group_size: int, *, unlocked: int | None = None
    ) -> tuple[list[Plan], list[int]]:
        """The episodes of the next groups, group by group, and the position after them.

        They are of the first `unlocked` environments, by weight (None: of all).
        """
        after, plans = list(position), []
        weights = self.weights[:unlocked]
        for group_id in range(sum(position), sum(position) + groups):
            env = self._env(group_id, weights / weights.sum())
            ids = self.task_ids[env]
            epoch, index = divmod(after[env], len(ids))
            after[env] += 1
            task_id = ids[_shuffled(derive_seed(self.seed, "pass", env, epoch), len(ids))[index]]
            seed = derive_seed(self.seed, "group", group_id)
            plans += [
                Plan(env, task_id, group_id, seed, derive_seed(self.seed, "sampling", group_id, member))
                for member in range(group_size)
            ]
        return plans, after

    def _env(self, group_id: int, shares: NDArray[np.float64]) -> int:
        """The environment of a group: drawn by share."""
        if len(shares) == 1:
            return 0
        rng = np.random.default_rng(derive_seed(self.seed, "mixture", group_id))
        return int(rng.choice(len(shares), p=shares))


@dataclass
class Curriculum:
    """Unlocks the environments one after the other: the next one when the newest is passed often enough.

    Success-driven, as in teacher-student curricula (Matiisen et al. 2017, arXiv:1707.00183), with a threshold in the
    place of a bandit. `recent` holds the outcomes of the newest environment's last episodes.
    """

    threshold: float
    window: int
    unlocked: int = 1
    recent: list[bool] = field(default_factory=list)

    def record(self, passed: Sequence[bool], available: int) -> bool:
        """Takes the outcomes of the newest environment's judged episodes; whether another one was unlocked."""
        self.recent = [*self.recent, *passed][-self.window :]
        mastered = len(self.recent) == self.window and sum(self.recent) >= self.threshold * self.window
        if not mastered or self.unlocked >= available:
            return False
        self.unlocked, self.recent = self.unlocked + 1, []
        return True


def evaluation_plans(specs: Sequence[EnvSpec], tasks: int, seed: int, samples: int = 1) -> list[Plan]:
    """`samples` episodes, a group, for each of the first tasks of every environment, `tasks` in all by weight."""
    weights = np.array([spec.weight for spec in specs], float)
    counts = np.maximum(1, np.round(tasks * weights / weights.sum())).astype(int)
    plans: list[Plan] = []
    for env, spec in enumerate(specs):
        for task_id in task_ids(spec)[: counts[env]]:
            reset, first = (derive_seed(seed, "evaluation", env, task_id, kind) for kind in ("reset", "sampling"))
            others = [derive_seed(seed, "evaluation", env, task_id, "sampling", n) for n in range(1, samples)]
            group_id = len(plans) // samples
            plans += [Plan(env, task_id, group_id, reset, sampling) for sampling in (first, *others)]
    return plans


def task_ids(spec: EnvSpec) -> list[str]:
    """The ids of an environment's tasks; of one that has no task set, a single empty id: the seed decides."""
    env = spec.make()
    tasks: TaskSet | None = getattr(env.unwrapped, "tasks", None)
    env.close()
    return [""] if tasks is None else tasks.ids


def not_held_out(spec: EnvSpec, split: str | None) -> str | None:
    """What to tell who evaluates on it, if its tasks, of `split`, are of another one than was asked for, or of none."""
    if split == spec.kwargs.get("split", "test"):
        return None
    tasks = f"tasks of split {split}, not test" if split else "all its tasks, as it takes no split"
    return f"{spec.id} is evaluated on {tasks}: training may have seen them"


def trained_on(specs: Sequence[EnvSpec], evaluated: Sequence[EnvSpec], plans: Sequence[Plan]) -> list[str]:
    """What to tell who trains on `specs`, of each environment of whose `plans` some tasks are among those, whatever
    their ids and splits are called. Tasks that are made when they are asked for are not compared."""
    asked = [_rows(spec, {plan.task_id for plan in plans if plan.env == env}) for env, spec in enumerate(evaluated)]
    prompts = {task.prompt for tasks in asked for task in tasks}
    known = {task.content_hash() for spec in specs for task in _rows(spec) if task.prompt in prompts} if prompts else ()
    same = [[task.id for task in tasks if task.content_hash() in known] for tasks in asked]
    return [
        f"{len(ids)} of the {len(tasks)} tasks on which {spec.id} is evaluated are also trained on ('{ids[0]}'): "
        "name others in eval_envs"
        for spec, tasks, ids in zip(evaluated, asked, same, strict=True)
        if ids
    ]


def _rows(spec: EnvSpec, ids: Collection[str] | None = None) -> list[Task]:
    """The tasks (of these ids) of a set of rows, of which question and answer are texts or numbers."""
    env = spec.make()
    try:
        tasks = getattr(env.unwrapped, "tasks", None)
        rows = tasks if type(tasks) is TaskSet else ()
        told = [task for task in rows if isinstance(task.prompt, str) and isinstance(task.target, str | int | float)]
        return [task for task in told if ids is None or task.id in ids]
    finally:
        env.close()


def _isolated(spec: EnvSpec) -> EnvSpec:
    """`spec`, if what a policy says in it runs in isolation. Raises ConfigError."""
    env = spec.make()
    isolated = getattr(env.unwrapped, "isolated", True)
    env.close()
    if not isolated:
        raise ConfigError(
            f"{spec.id} is not trained on: it runs the policy's code without isolation; "
            "choose a sandbox that isolates (docker or bubblewrap, see docs/verifiers.md)"
        )
    return spec


def _judgeable(spec: EnvSpec) -> EnvSpec:
    """`spec`, if each task that was loaded for it can be judged; generated ones are as their generator makes them."""
    env = spec.make()
    tasks: Any = getattr(env.unwrapped, "tasks", None)
    verifier: Any = getattr(env.unwrapped, "verifier", None)
    try:
        for task in tasks if type(tasks) is TaskSet and verifier is not None else ():
            verifier.golds(task)
    except VerifierInputError as error:
        raise ConfigError(f"{spec.id} is not trained on: task '{task.id}' cannot be judged: {error}") from error
    finally:
        env.close()
    return spec


@lru_cache(maxsize=8)
def _shuffled(seed: int, size: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(size)
