"""Where a step's episodes come from: they are played in turn with the learner, or beside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from verigym.agents._batcher import Batcher
from verigym.agents.collect import Collection, Collector
from verigym.agents.episode import Episode, Plan
from verigym.config import TrainConfig
from verigym.task_sampler import TaskSampler
from verigym.tasks.errors import RunInterrupted

T = TypeVar("T")

# Seconds that a run which fails while its learner updates waits for the update to end.
_PATIENCE = 30.0


class Rollouts(ABC):
    """Plays the groups of a run, in the order of its plan, and runs the learner's updates on them.

    A step calls `play` once or, with dynamic sampling, several times, and then `learn`; afterwards the engine has to
    get the new weights. Everything but the learner's update runs in the calling thread, which drives the engine.
    """

    @abstractmethod
    def play(
        self, position: Sequence[int], groups: int, *, unlocked: int | None
    ) -> tuple[list[Plan], list[Episode], list[int]]:
        """The next groups from the sampler's `position` on: their plans, their episodes, and the position after.

        Raises RunInterrupted.
        """

    @abstractmethod
    def learn(self, update: Callable[[], T]) -> T:
        """The result of an update."""

    def gaps(self) -> dict[str, float]:
        """After `learn`, the metrics of the gap between sampler and learner, where the learner's own are not of it."""
        return {}

    def pause(self) -> None:
        """Leaves the engine idle, for an evaluation. Raises RunInterrupted."""

    def close(self) -> None:
        """Gives up what is being played."""


class InTurn(Rollouts):
    """Plays a step's groups, then learns from them: every token is of the weights that learn from it."""

    def __init__(
        self, config: TrainConfig, collector: Collector, sampler: TaskSampler, on_progress: Callable[[], None]
    ) -> None:
        self.config, self.collector, self.sampler, self.on_progress = config, collector, sampler, on_progress

    def play(
        self, position: Sequence[int], groups: int, *, unlocked: int | None
    ) -> tuple[list[Plan], list[Episode], list[int]]:
        plans, after = self.sampler.plan(position, groups, self.config.group_size, unlocked=unlocked)
        return plans, self.collector.collect(plans, on_progress=self.on_progress), after

    def learn(self, update: Callable[[], T]) -> T:
        """The engine gives the learner its memory meanwhile."""
        engine = self.collector.agent.engine
        engine.sleep()
        result = update()
        engine.wake()
        return result


@dataclass(frozen=True)
class _Group:
    """A group in play: its plans, the numbers of its episodes, and the sampler's position after it."""

    plans: list[Plan]
    numbers: list[int]
    position: list[int]


class Beside(Rollouts):
    """Goes on playing while the learner updates, in a thread of its own; no token gets older than `staleness`.

    That holds by counting. When a step begins, at most `staleness` + 1 steps' groups are in play or ended and not
    learned from. Groups are learned from in the order in which they began, at least a step's worth in each step, so
    the last of them is learned from `staleness` versions later. Later groups begin when the step after begins. Groups
    that dynamic sampling adds are learned from in the step in which they began.

    What is in play when a run ends is given up: a run that goes on plans it again.
    """

    def __init__(
        self,
        config: TrainConfig,
        collector: Collector,
        sampler: TaskSampler,
        on_progress: Callable[[], None],
        *,
        steps: int,
    ) -> None:
        """`steps` are those that the run still has to go."""
        self.config, self.collector, self.sampler = config, collector, sampler
        self.collection = Collection(collector, on_progress)
        self.groups: deque[_Group] = deque()
        self.learner: Batcher[Callable[[], Any], Any] = Batcher(lambda updates: [update() for update in updates], 1)
        self._taken: list[Episode] = []  # by the last `play`
        self._steps = steps
        self._room = self._most()

    def play(
        self, position: Sequence[int], groups: int, *, unlocked: int | None
    ) -> tuple[list[Plan], list[Episode], list[int]]:
        while len(self.groups) < max(groups, self._room):
            self._begin(self.groups[-1].position if self.groups else position, unlocked)
        taken = [self.groups[index] for index in range(groups)]
        while not all(number in self.collection.ended for group in taken for number in group.numbers):
            self.collection.advance()
        for _ in taken:
            self.groups.popleft()
        self._room -= groups
        plans = [plan for group in taken for plan in group.plans]
        episodes = self.collection.take([number for group in taken for number in group.numbers])
        self._taken = episodes
        return plans, episodes, taken[-1].position

    def learn(self, update: Callable[[], T]) -> T:
        """Ends the step. An interrupt ends only the playing: the update is waited for.

        An error of the playing is raised when the update has ended, at most 30 seconds later.
        """
        future = self.learner.submit(update)
        future.add_done_callback(lambda _: self.collector.workers.wake())
        try:
            with suppress(RunInterrupted):
                while not future.done():
                    self.collection.advance()
        except BaseException:
            wait([future], timeout=_PATIENCE)
            raise
        result: T = future.result()
        self._steps -= 1
        self._room = self._most()
        return result

    def gaps(self) -> dict[str, float]:
        """The learner's log-probabilities of older tokens differ from the sampler's as they should. Like is compared
        with like: the engine scores again what its weights sampled last, and the proof of sync says that these are the
        learner's."""
        gaps = self.collection.gaps(self._taken)
        return {
            "sampler_gap_mean": float(gaps.mean()) if gaps.size else 0.0,
            "sampler_gap_max": float(gaps.max(initial=0)),
        }

    def pause(self) -> None:
        while self.collection.running:
            self.collection.advance(begin=False)

    def close(self) -> None:
        self.collection.abandon()
        self.learner.close()

    def _most(self) -> int:
        """Groups that may be in play, or ended, when a step begins; none that the run would not learn from."""
        return self.config.groups * min(self.config.staleness + 1, self._steps)

    def _begin(self, position: Sequence[int], unlocked: int | None) -> None:
        plans, after = self.sampler.plan(position, 1, self.config.group_size, unlocked=unlocked)
        self.groups.append(_Group(plans, self.collection.add(plans), after))


def make_rollouts(
    config: TrainConfig, collector: Collector, sampler: TaskSampler, *, steps: int, on_progress: Callable[[], None]
) -> Rollouts:
    """What `config` asks for; `steps` are those that the run still has to go."""
    if config.staleness:
        return Beside(config, collector, sampler, on_progress, steps=steps)
    return InTurn(config, collector, sampler, on_progress)
