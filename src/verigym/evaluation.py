"""How good a model is: pass rate on fixed tasks, with its confidence interval, and how reliably it passes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from verigym.agents.episode import Episode
from verigym.envs.mixture import EnvSpec
from verigym.estimates import mean_over_tasks, over_tasks, pass_hat
from verigym.interrupts import Interrupts
from verigym.players import Player
from verigym.stalls import StallWatch
from verigym.task_sampler import evaluation_plans, task_ids
from verigym.tasks.activity import doing
from verigym.tasks.errors import RunError
from verigym.verifiers.verdict import Outcome


@dataclass(frozen=True)
class Evaluation:
    """pass@1 on `tasks` tasks: the share of a task's episodes that pass, of those that could be judged; its mean.

    `low` and `high` bound the pass rate at 95 %, as if other tasks had been drawn (`estimates.mean_over_tasks`).
    `reward` is the mean return, over tasks too; `pass_hat` is pass^k for k = 1, 2, ..., see `estimates.pass_hat`.
    """

    pass_rate: float
    low: float
    high: float
    reward: float
    tasks: int
    infra_errors: int
    pass_hat: tuple[float, ...] = ()

    def __str__(self) -> str:
        return f"{self.pass_rate:.3f} [{self.low:.3f}, {self.high:.3f}] on {self.tasks} tasks"


@StallWatch()
def play(
    player: Player,
    spec: EnvSpec,
    *,
    tasks: int | None = None,
    ids: Collection[str] | None = None,
    samples: int = 1,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Episode]:
    """`samples` episodes of a model on each of the first `tasks` tasks (None: all) of an environment, in their order.

    `player` is a `LocalPlayer` (a checkpoint) or an `EndpointPlayer`; it is closed. With `ids`, only tasks of these are
    played. `on_progress` hears how many have ended, and of how many. Raises RunInterrupted on Ctrl-C.
    """
    plans = evaluation_plans([spec], len(task_ids(spec)) if tasks is None else tasks, seed, samples)
    plans = [plan for plan in plans if ids is None or plan.task_id in ids]
    with Interrupts() as interrupts, doing("evaluating"):
        try:
            played = player.play(spec, plans, interrupted=lambda: interrupts.requested)
            return _in_order(_counted(played, lambda done: on_progress(done, len(plans))))
        finally:
            player.close()


def _counted(
    played: Iterable[tuple[int, Episode]], on_progress: Callable[[int], None]
) -> Iterator[tuple[int, Episode]]:
    for done, ended in enumerate(played, start=1):
        on_progress(done)
        yield ended


def _in_order(played: Iterable[tuple[int, Episode]]) -> list[Episode]:
    return [episode for _, episode in sorted(played, key=lambda pair: pair[0])]


def summarise(episodes: Sequence[Episode]) -> Evaluation:
    """The evaluation of played episodes. Raises RunError if none could be judged."""
    judged = [episode for episode in episodes if episode.verdict.outcome is not Outcome.INFRA_ERROR]
    if not judged:
        reason = episodes[0].verdict.reason if episodes else "there were none"
        raise RunError(f"no episode of {len(episodes)} could be judged: {reason}")
    by_task: dict[int, list[Episode]] = defaultdict(list)
    for episode in judged:
        by_task[episode.group_id].append(episode)
    counts = [(len(group), sum(e.verdict.outcome is Outcome.CORRECT for e in group)) for group in by_task.values()]
    rate = mean_over_tasks([passed / total for total, passed in counts])
    reward = sum(sum(e.reward for e in group) / len(group) for group in by_task.values()) / len(by_task)
    most = max(total for total, _ in counts)
    hats = [over_tasks(counts, pass_hat, k) for k in range(1, most + 1)]
    hat = tuple(estimate.value for estimate in hats if estimate is not None)
    return Evaluation(rate.value, rate.low, rate.high, reward, rate.tasks, len(episodes) - len(judged), hat)
