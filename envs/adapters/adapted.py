"""What the environments of other packages have in common here: their tasks, their sessions, what they are paid."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Event
from types import MappingProxyType
from typing import Any, ClassVar

from verigym.envs.adapters._sessions import MissingPackageError, Session, SessionError, describe
from verigym.envs.null_policies import ANSWERING, WITH_TOOLS
from verigym.envs.text_env import Budget, Message, Reply, TextEnv
from verigym.envs.validation import PLAYED, mean_reward, spread
from verigym.tasks._generate import MAX_SIZE, SPLITS, whole_number
from verigym.tasks.canonical import parse_turn
from verigym.tasks.errors import ConfigError, TaskDataError, UnknownNameError, VerifierInputError
from verigym.tasks.task import GeneratedTaskSet, Task, TaskSet
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier

DEFAULT_SIZE = {"train": 1000, "test": 200}
MAX_TURN = 20_000  # characters of a turn that a package is given: none is written for more


@dataclass(frozen=True, slots=True)
class Ending:
    """How an episode ended for its package: what it paid at the end, why, and in which parts; or how it failed."""

    reward: float = 0.0
    reason: str = "the episode was ended by a budget before the environment paid anything"
    components: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    invalid: bool = False
    """Whether the agent's last turn was none that the environment can read."""
    failure: str = ""


class OwnReward(Verifier):
    """The reward that the environment's package itself pays; CORRECT from 1. An Ending is the submission's state."""

    def verify(self, submission: Submission, task: Task) -> Verdict:
        end = submission.state
        if not isinstance(end, Ending):
            raise VerifierInputError(f"task {task.id} is judged by its environment alone, at the end of an episode")
        if end.failure:
            return Verdict.infra_error(end.failure)
        outcome = Outcome.UNPARSEABLE if end.invalid else Outcome.CORRECT if end.reward >= 1 else Outcome.WRONG
        return Verdict(end.reward, outcome, end.reason, end.components)

    def golds(self, task: Task) -> list[str]:
        """None: the packages do not name them."""
        return []


class AdaptedEnv(TextEnv):
    """An environment of another package, played in a worker process of `python`; see the subclasses for options."""

    adapter: ClassVar[str]
    package: ClassVar[str]
    """As it is installed."""
    extra: ClassVar[str]

    def __init__(
        self,
        tasks: TaskSet,
        *,
        spec: Mapping[str, Any],
        python: str | None,
        instructions: str,
        budget: Budget,
        chance: float | None,
        render_mode: str | None,
    ) -> None:
        super().__init__(
            tasks,
            OwnReward(),
            budget=budget,
            chance=self._measured_chance if chance is None else chance,
            render_mode=render_mode,
        )
        self.instructions, self._spec, self._python = instructions, spec, python
        self._session: Session | None = None
        self._end: Ending | None = None
        self._heard = 0  # the number of the last turn that the package got

    def opening(self, task: Task) -> list[Message]:
        start = {"spec": self._spec, **{name: task.metadata[name] for name in ("seed", "index")}}
        self._session = Session(self.adapter, self._python, start, self._closed)
        self._end, self._heard = None, 0
        try:
            messages = self.begin(self._session, self._session.open())
        except SessionError as error:
            raise TaskDataError(f"{self.package} cannot begin the task {task.id}: {error}") from error
        if self.instructions:
            messages[-1] = {**messages[-1], "content": f"{messages[-1]['content']}\n\n{self.instructions}"}
        return messages

    def respond(self, action: str) -> Reply:
        assert self._session is not None
        self._heard = len(self._turns)
        try:
            return self.play(self._session, action)
        except SessionError as error:
            self._end = Ending(failure=f"{self.package} failed: {error}")
            return Reply(final=True)

    def submission(self, action: str) -> Submission:
        if self._end is None:
            assert self._session is not None
            try:
                self._end = self.broken_off(self._session, action if self._heard < len(self._turns) else None)
            except SessionError as error:
                self._end = Ending(failure=f"{self.package} failed: {error}")
        return Submission(action, tuple(self._messages), self._end)

    @abstractmethod
    def begin(self, session: Session, reply: Mapping[str, Any]) -> list[Message]:
        """The first messages of an episode, from the worker's reply to its start."""

    @abstractmethod
    def play(self, session: Session, action: str) -> Reply:
        """What the package says to a turn; sets `_end` where that was the last one."""

    def broken_off(self, session: Session, cut: str | None) -> Ending:
        """What an episode is worth that a budget ended; `cut` is a last turn that the package did not get."""
        return Ending()

    def _measured_chance(self) -> float:
        """What the best of the policies that know nothing earns, on those tasks that `validate` has them play."""
        policies = WITH_TOOLS if self.tools else ANSWERING
        best = max(mean_reward(self, policy, spread(self.tasks, PLAYED)) for policy in policies.values())
        return min(1.0, max(0.0, best))


def turn_text(action: str) -> str:
    """A turn without its reasoning, up to so many characters: what another package gets to read."""
    spoken = parse_turn(action).content if "<think>" in action or "</think>" in action else action
    return spoken[:MAX_TURN]


def described(env: type[AdaptedEnv], python: str | None, spec: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the package says of `spec`. Raises ConfigError and UnknownNameError, for the environment called `name`."""
    try:
        found = describe(env.adapter, python, spec)
    except MissingPackageError as error:
        where = f"'{python}'" if python else "this interpreter"
        how = f"{python} -m pip install {env.package}" if python else f"pip install 'verigym[{env.extra}]'"
        raise ConfigError(f"{where} has no {env.package} ({error}); {how}") from error
    except SessionError as error:
        raise ConfigError(f"{env.package} cannot make '{name}': {error}") from error
    if "names" in found:
        if not name:
            raise ConfigError(f"an environment of {env.package} needs a name, such as game={found['names'][0]!r}")
        raise UnknownNameError.of(f"environment of {env.package} named", name, found["names"])
    return found


def seeded_tasks(env: type[AdaptedEnv], python: str | None, spec: Mapping[str, Any], split: str, seed: int) -> Drawn:
    """Tasks that are seeds for the package: even ones in train, odd ones in test."""
    if split not in SPLITS:
        raise UnknownNameError.of(f"split of '{env.adapter}' named", str(split), SPLITS)
    seed = whole_number(env.adapter, "seed", seed, 0, None)
    first = int.from_bytes(hashlib.sha256(f"{env.adapter}/{seed}".encode()).digest()[:3], "big") * 2
    return Drawn(env, python, spec, split, f"{spec['game']}-{split}-seed{seed}", first + (split == "test"), 2)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Tasks of a package; the prompt of one is what its worker says that it begins with.

    Task i has the seed `first + i * step`. A task set is `of_size` of them; one that cannot begin is a TaskDataError.
    """

    env: type[AdaptedEnv]
    python: str | None
    spec: Mapping[str, Any]
    split: str
    prefix: str
    first: int
    step: int

    def of_size(self, size: int | None) -> TaskSet:
        """`size` of the tasks (default: 1,000 train, 200 test)."""
        size = whole_number(self.env.adapter, "size", DEFAULT_SIZE[self.split] if size is None else size, 1, MAX_SIZE)
        make = lru_cache(maxsize=4096)(self._make)
        name = f"{self.env.adapter}/{self.prefix}"
        return GeneratedTaskSet(make, size=size, name=name, split=self.split, prefix=self.prefix)

    def _make(self, index: int) -> Task:
        start = {"seed": self.first + index * self.step, "index": index}
        session = Session(self.env.adapter, self.python, {"spec": self.spec, **start}, Event())
        task_id = f"{self.prefix}/{index}"
        try:
            prompt = session.open()["prompt"]
        except SessionError as error:
            raise TaskDataError(f"{self.env.package} cannot begin the task {task_id}: {error}") from error
        return Task(task_id, prompt, None, MappingProxyType(start))
