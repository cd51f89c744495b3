"""Several models on several environments: what is missing is played, all else is known from before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verigym import __version__
from verigym.agents.episode import Plan
from verigym.envs.mixture import EnvSpec
from verigym.estimates import Estimate
from verigym.interrupts import Interrupts
from verigym.players import Player
from verigym.results import Cell, Result, fingerprint, name_of
from verigym.scores import Scores, difference, score
from verigym.stalls import StallWatch
from verigym.task_sampler import evaluation_plans, task_ids
from verigym.tasks.activity import doing
from verigym.tasks.errors import ConfigError, RunError, RunInterrupted

Key = tuple[str, int]  # a task's fingerprint, and the number of the sample


@dataclass(frozen=True)
class Entry:
    """A model on an environment: its scores, its pass@1 less the first model's (None of the first), and its file."""

    env: str
    model: str
    scores: Scores
    difference: Estimate | None
    cell: Cell
    keys: Sequence[Key]


@dataclass(frozen=True)
class Comparison:
    """The entries by environment, in the order in which environments and models were named.

    `failures` says which models have none on which environment, and why; `splits` of which split its tasks are.
    """

    models: Sequence[str]
    envs: Mapping[str, Sequence[Entry]]
    splits: Mapping[str, str | None]
    failures: Sequence[str] = ()


class Evaluator:
    """Plays models on environments, `samples` episodes of each of the first `tasks` tasks (None: all).

    Episodes are kept in `folder`, by content: a model's weights (an endpoint's address and name), engine and device,
    the environment with its options, the task, sampling, seeds, and verigym's version. Models play the same tasks from
    the same seeds. Raises ConfigError for a model or an environment that is none, or a folder that another one uses.
    """

    def __init__(
        self,
        models: Mapping[str, Player],
        envs: Mapping[str, EnvSpec],
        folder: str | Path,
        *,
        tasks: int | None = None,
        samples: int = 1,
        seed: int = 0,
    ) -> None:
        self.models, self.envs, self.samples = models, envs, samples
        self.folder = Path(folder) / "episodes"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make the folder '{self.folder}': {error.strerror}") from error
        self.splits = {env: spec.split() for env, spec in envs.items()}
        self.plans = {env: _keyed(spec, tasks, seed, samples) for env, spec in envs.items()}
        self.cells: dict[tuple[str, str], Cell] = {}
        by_content: dict[str, Cell] = {}
        for model, player in models.items():
            identity = player.identity()
            for env, spec in envs.items():
                content = {
                    "verigym": __version__,
                    "model": identity,
                    "env": {"id": spec.find(), "kwargs": dict(spec.kwargs)},
                    "seed": seed,
                }
                name = name_of(content)
                if name not in by_content:
                    by_content[name] = Cell(self.folder, content)
                self.cells[model, env] = by_content[name]

    def missing(self, model: str, env: str) -> list[tuple[Key, Plan]]:
        """What was not played, or not judged, before."""
        known = self.cells[model, env].known
        return [(key, plan) for key, plan in self.plans[env] if key not in known]

    def play(self, on_progress: Callable[[str, str, int, int], None] = lambda model, env, done, total: None) -> None:
        """Plays what is missing; `on_progress` hears model, environment, and its episodes that are done and in all.

        Raises RunInterrupted on Ctrl-C: what has ended is kept.
        """
        with Interrupts() as interrupts, StallWatch(), doing("evaluating"):
            for model, player in self.models.items():
                try:
                    for env, spec in self.envs.items():
                        self._play(model, player, env, spec, interrupts, on_progress)
                finally:
                    player.close()

    def _play(
        self,
        model: str,
        player: Player,
        env: str,
        spec: EnvSpec,
        interrupts: Interrupts,
        on_progress: Callable[[str, str, int, int], None],
    ) -> None:
        cell, missing, total = self.cells[model, env], self.missing(model, env), len(self.plans[env])
        done = total - len(missing)
        on_progress(model, env, done, total)
        if not missing:
            return
        if interrupts.requested:
            raise RunInterrupted("interrupted while playing episodes")
        cell.start()
        plans = [plan for _, plan in missing]
        for index, episode in player.play(spec, plans, interrupted=lambda: interrupts.requested):
            cell.add(*missing[index][0], episode)
            done += 1
            on_progress(model, env, done, total)

    def compare(self) -> Comparison:
        """The figures of what was played. Raises RunError if no episode of any model could be judged."""
        found: dict[str, list[Entry]] = {}
        failures: list[str] = []
        for env, plans in self.plans.items():
            keys = [key for key, _ in plans]
            first: list[list[Result]] | None = None
            for model in self.models:
                groups = self._groups(model, env)
                difference_to_first = None if first is None else difference(groups, first)
                first = groups if first is None else first
                try:
                    scores = score(groups, self.samples)
                except RunError as error:  # that one model failed does not cost what the others showed
                    failures.append(f"{model} on {env}: {error}")
                    continue
                entry = Entry(env, model, scores, difference_to_first, self.cells[model, env], keys)
                found.setdefault(env, []).append(entry)
        if not found:
            raise RunError(failures[0])
        return Comparison(list(self.models), found, self.splits, failures)

    def close(self) -> None:
        for cell in self.cells.values():
            cell.close()

    def _groups(self, model: str, env: str) -> list[list[Result]]:
        """The results of each task, in the order of the tasks."""
        keys = [key for key, _ in self.plans[env]]
        cell = self.cells[model, env]
        return [cell.results(keys[start : start + self.samples]) for start in range(0, len(keys), self.samples)]


def _keyed(spec: EnvSpec, tasks: int | None, seed: int, samples: int) -> list[tuple[Key, Plan]]:
    """The plans with the keys under which their episodes are kept, task by task."""
    plans = evaluation_plans([spec], len(task_ids(spec)) if tasks is None else tasks, seed, samples)
    env = spec.make()
    task_set = getattr(env.unwrapped, "tasks", None)
    env.close()
    ids = dict.fromkeys(plan.task_id for plan in plans)
    names = {task_id: fingerprint(None if task_set is None else task_set.get(task_id)) for task_id in ids}
    return [((names[plan.task_id], number % samples), plan) for number, plan in enumerate(plans)]


def plain(comparison: Comparison, **settings: Any) -> dict[str, Any]:
    """The comparison as JSON has it; `settings` are put at its top."""
    envs = [
        {
            "env": env,
            "split": comparison.splits[env],
            "models": [_entry(entry, comparison.models[0]) for entry in entries],
        }
        for env, entries in comparison.envs.items()
    ]
    return {"verigym": __version__, **settings, "environments": envs, "failures": list(comparison.failures)}


def _entry(entry: Entry, first: str) -> dict[str, Any]:
    scores, cost = entry.scores, entry.scores.cost
    prompt, generated, seconds = cost.per_episode()
    return {
        "model": entry.model,
        "tasks": scores.tasks,
        "samples": scores.samples,
        "episodes": cost.episodes,
        "infra_errors": scores.infra_errors,
        **{
            name: {str(k): _estimate(estimate) for k, estimate in estimates.items()}
            for name, estimates in (
                ("pass@k", scores.pass_at),
                ("pass^k", scores.pass_hat),
                ("majority@k", scores.majority),
            )
        },
        "no_majority": scores.no_majority or None,
        "reward": _estimate(scores.reward),
        "difference": entry.difference and {"to": first, **_estimate(entry.difference)},
        "cost": {
            "prompt_tokens": cost.prompt_tokens,
            "generated_tokens": cost.generated_tokens,
            "seconds": round(cost.seconds, 3),
            "prompt_tokens_per_episode": prompt,
            "generated_tokens_per_episode": generated,
            "seconds_per_episode": seconds,
        },
        "file": f"episodes/{entry.cell.path.name}",
    }


def _estimate(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "tasks": estimate.tasks}
