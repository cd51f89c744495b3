"""Chooses the tasks of an environment that are worth training on, and says of each other one why it is not there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from verigym import __version__
from verigym.envs.mixture import EnvSpec
from verigym.envs.text_env import TextEnv
from verigym.envs.validation import unsound
from verigym.tasks.curation import NEAR, NGRAM, Hit, contaminated, duplicates
from verigym.tasks.errors import ConfigError, RunError
from verigym.tasks.task import Task, TaskSet

STAGES = ("unsound", "duplicate", "contaminated", "not judged", "too hard", "too easy")


@dataclass(frozen=True)
class Difficulty:
    """The model whose pass rates decide, and the rates that are kept."""

    model: str
    """Checkpoint that plays: a folder or a hub id."""
    samples: int = 8
    """Episodes of each task (avg@k)."""
    low: float = 0.1
    """The lowest pass rate that is kept."""
    high: float = 0.9
    """The highest pass rate that is kept."""
    temperature: float = 1.0
    """Sampling temperature."""
    max_new_tokens: int = 1024
    """Tokens per turn where the environment sets no budget."""
    seed: int = 0
    """Seed of episodes and sampling."""
    device: str = "auto"
    """Where the model lives."""

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ConfigError(f"the band of pass rates must be within 0 to 1, not {self.low} to {self.high}")
        if self.samples < 1 or self.max_new_tokens < 1 or self.temperature < 0:
            raise ConfigError("samples and max-new-tokens must be at least 1, the temperature at least 0")


@dataclass(frozen=True)
class Dropped:
    """A task that is not kept: at which stage (see `STAGES`), and why."""

    task_id: str
    stage: str
    why: str


@dataclass(frozen=True)
class Curated:
    """The tasks that are kept, in their order, with (pass rate, attempts) if a model played; and all that is not."""

    tasks: TaskSet
    dropped: tuple[Dropped, ...]
    hits: tuple[Hit, ...]
    """Every likeness that was found: duplicates, and what evaluation sets have."""
    rates: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


def curate(
    spec: EnvSpec,
    *,
    limit: int | None = None,
    against: Mapping[str, Sequence[Task]] | None = None,
    near: float = NEAR,
    ngram: int = NGRAM,
    difficulty: Difficulty | None = None,
    on_stage: Callable[[str, int], None] = lambda stage, left: None,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Curated:
    """Chooses among the first `limit` tasks (None: all) of an environment, the cheapest stage first.

    Left out are tasks whose gold fails or that null policies pass, duplicates, what is in the sets `against`, and with
    `difficulty` those whose pass rate is outside the band. `on_stage` hears how many tasks are left after a stage, and
    `on_progress` how far one has come that takes long. Raises ConfigError for settings that cannot be, RunError if
    nothing is left or what is there cannot be judged.
    """
    contaminated([], {}, near=near, ngram=ngram)  # what is wrong is told before anything is played
    if difficulty is not None:
        from verigym.agents.agent import load_chat

        load_chat(difficulty.model)
    env, against = spec.make().unwrapped, against or {}
    if not isinstance(env, TextEnv):
        raise ConfigError(f"'{spec.id}' has no task set to choose from")
    source, dropped, hits = env.tasks, list[Dropped](), list[Hit]()
    left = list(source if limit is None else source[:limit])

    def drop(stage: str, reasons: Mapping[str, str]) -> None:
        nonlocal left
        dropped.extend(Dropped(task.id, stage, reasons[task.id]) for task in left if task.id in reasons)
        left = [task for task in left if task.id not in reasons]
        on_stage(stage, len(left))

    drop("unsound", unsound(env, left, partial(on_progress, "gold answers and null policies")))
    env.close()
    for stage, found in (
        ("duplicate", lambda: duplicates(left, near=near)),
        ("contaminated", lambda: contaminated(left, against, near=near, ngram=ngram) if against else []),
    ):
        likes = found()
        hits += likes
        drop(stage, {hit.task_id: f"{hit.kind}: {hit.other} ({hit.similarity:.2f})" for hit in reversed(likes)})
    rates: dict[str, tuple[float, int]] = {}
    if difficulty is not None and left:
        rates = pass_rates(spec, [task.id for task in left], difficulty, partial(on_progress, "episodes"))
        drop("not judged", {task.id: "no episode could be judged" for task in left if task.id not in rates})
        said = {name: f"pass rate {rate:.3f} of {count} episodes" for name, (rate, count) in rates.items()}
        drop("too hard", {name: said[name] for name, (rate, _) in rates.items() if rate < difficulty.low})
        drop("too easy", {name: said[name] for name, (rate, _) in rates.items() if rate > difficulty.high})
    if not left:
        counts = ", ".join(f"{stage} {count}" for stage, count in Counter(each.stage for each in dropped).items())
        raise RunError(f"no task of {spec.id} is left: {counts}")
    kept = TaskSet(left, name=source.name, split=source.split)
    provenance = {
        "verigym": __version__,
        "env": {"id": spec.id, "kwargs": {name: str(value) for name, value in spec.kwargs.items()}},
        "source": {"name": source.name, **_described(source), "first": limit},
        "against": {name: _described(TaskSet(others, name=name, split="")) for name, others in against.items()},
        "near": near,
        "ngram": ngram,
        "difficulty": None if difficulty is None else asdict(difficulty),
        "dropped": {stage: sum(each.stage == stage for each in dropped) for stage in STAGES},
        "kept": _described(kept),
    }
    return Curated(kept, tuple(dropped), tuple(hits), {task.id: rates[task.id] for task in left if rates}, provenance)


def pass_rates(
    spec: EnvSpec,
    ids: Sequence[str],
    difficulty: Difficulty,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, tuple[float, int]]:
    """By task (the share of its judged episodes that pass, their number): avg@k of those that could be judged."""
    from verigym.evaluation import play
    from verigym.players import LocalPlayer
    from verigym.verifiers.verdict import Outcome

    player = LocalPlayer(
        difficulty.model,
        temperature=difficulty.temperature,
        max_new_tokens=difficulty.max_new_tokens,
        deterministic=True,
        device=difficulty.device,
    )
    episodes = play(
        player, spec, ids=frozenset(ids), samples=difficulty.samples, seed=difficulty.seed, on_progress=on_progress
    )
    judged = [episode for episode in episodes if episode.verdict.outcome is not Outcome.INFRA_ERROR]
    attempts = Counter(episode.task_id for episode in judged)
    passed = Counter(episode.task_id for episode in judged if episode.verdict.outcome is Outcome.CORRECT)
    return {task_id: (passed[task_id] / count, count) for task_id, count in attempts.items()}


def _described(tasks: TaskSet) -> dict[str, Any]:
    return {"tasks": len(tasks), "fingerprint": tasks.fingerprint}
