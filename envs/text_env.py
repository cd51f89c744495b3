"""The text environment: a Gymnasium `Env[str, str]` over a task set and a verifier."""

from __future__ import annotations

import json
import re
import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np

from verigym import verifiers
from verigym.envs._waiting import call_until
from verigym.envs.spaces import TextSpace
from verigym.tasks.activity import doing
from verigym.tasks.errors import ConfigError, EnvClosedError, EnvUsageError, SnapshotError, UnknownNameError
from verigym.tasks.task import Task, TaskSet
from verigym.verifiers.verdict import Submission, Verdict
from verigym.verifiers.verifier import Verifier

Message = dict[str, Any]
T = TypeVar("T")
_WORD_OR_SYMBOL = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Budget:
    """What an episode may cost: turns of the agent, and tokens per turn and per episode (None: no limit)."""

    turns: int
    tokens_per_turn: int | None = None
    tokens_per_episode: int | None = None

    def __post_init__(self) -> None:
        for name in ("turns", "tokens_per_turn", "tokens_per_episode"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"max_{name} must be a whole number of at least 1, not {value!r}")


@dataclass(frozen=True, slots=True)
class Reply:
    """What the environment says to a turn: new messages, or the end of the task; and a reward for the turn."""

    messages: Sequence[Message] = ()
    final: bool = False
    reward: float = 0.0


def estimate_tokens(text: str) -> int:
    """Words and symbols in `text`: the count used for a turn whose agent did not state its tokens."""
    return sum(1 for _ in _WORD_OR_SYMBOL.finditer(text))


class TextEnv(gym.Env[str, str]):
    """An episode is one task: `reset` asks, `step` takes the agent's turn, the verifier judges the end.

    `info["messages"]` holds the new messages with their roles and is authoritative; the observation is the
    contents of those that are not from the system, joined by a blank line. `info` also has `task_id`, `tools`
    (JSON schemas, on reset) and `verdict` (at the end). The rewards of `step` sum to the return; the verdict's
    reward comes with the last step. The end by a budget is `truncated`, `info["truncation"]` names it (turns or
    tokens), and the text as it stands is judged then too.

    A verifier given by name is made, and closed, by the environment. One given as an object may be shared: it
    stays open, and `close` ends only this environment's wait for it.

    A subclass implements `respond`. Raises UnknownNameError for an unknown reset option or task,
    EnvUsageError for a wrong action or a step outside an episode, EnvClosedError after `close`.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self,
        tasks: TaskSet,
        verifier: Verifier | str,
        *,
        budget: Budget,
        verifier_options: Mapping[str, Any] | None = None,
        chance: float | Callable[[], float] = 0.0,
        render_mode: str | None = None,
    ) -> None:
        if not len(tasks):
            raise ConfigError(f"{tasks!r} is empty; an environment needs at least one task")
        if render_mode not in (None, "ansi"):
            raise UnknownNameError.of("render mode", str(render_mode), ["ansi"])
        if not isinstance(verifier, Verifier | str):
            raise ConfigError(f"verifier must be a Verifier or the name of one, not {verifier!r}")
        if isinstance(verifier, Verifier) and verifier_options:
            raise ConfigError("verifier_options go with the name of a verifier; this one is made already")
        self.tasks, self.budget = tasks, budget
        self._chance = chance if callable(chance) else _share(chance)
        self._owns_verifier = isinstance(verifier, str)
        options = dict(verifier_options or {})
        self.verifier = verifiers.make(verifier, **options) if isinstance(verifier, str) else verifier
        self._verifier_name = verifier if isinstance(verifier, str) else type(verifier).__name__
        self.render_mode = render_mode
        self.observation_space, self.action_space = TextSpace(), TextSpace()
        self._closed = threading.Event()
        self._task: Task | None = None
        self._messages: list[Message] = []
        self._turns: list[tuple[str, int]] = []
        self._announced: tuple[int, bool] | None = None
        self._over = True

    @cached_property
    def chance(self) -> float:
        """The mean reward that a policy can earn without reading the question. Raises ConfigError outside [0, 1]."""
        return _share(self._chance()) if callable(self._chance) else self._chance

    # What a subclass says.

    @abstractmethod
    def respond(self, action: str) -> Reply:
        """The environment's answer to one turn of the agent."""

    def opening(self, task: Task) -> list[Message]:
        """The first messages of an episode; the last one is the user's."""
        return [{"role": "user", "content": task.prompt}]

    @property
    def tools(self) -> list[dict[str, Any]]:
        """JSON schemas of the tools that the agent may call."""
        return []

    @property
    def isolated(self) -> bool:
        """Whether nothing that the agent says runs where it could reach the trainer; training asks for that."""
        return self.verifier.isolated

    def golds(self, task: Task) -> list[str]:
        """Final turns that are right, one for each accepted answer, for validation."""
        return self.verifier.golds(task)

    def gold_episodes(self, task: Task) -> list[list[str]]:
        """The turns of whole episodes that are right: of each gold answer, unless a subclass needs more turns."""
        return [[gold] for gold in self.golds(task)]

    def demonstration(self, rng: np.random.Generator) -> list[str]:
        """The turns of one demonstration of the current task, for a supervised warm start. Raises ConfigError."""
        raise ConfigError(f"{type(self).__name__} has no demonstrations: give it a method demonstration(rng)")

    # What Gymnasium asks.

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts an episode: a task drawn by `seed`, `options["task"]` (an id), or a fork of `options["snapshot"]`."""
        self._refuse_if_closed()
        options = dict(options or {})
        for name in options:
            if name not in ("task", "snapshot"):
                raise UnknownNameError.of("reset option", name, ["task", "snapshot"])
        snapshot, task_id = options.get("snapshot"), options.get("task")
        if snapshot is not None:
            if task_id is not None:
                raise EnvUsageError("a snapshot names its own task: give the option 'task' or 'snapshot', not both")
            return self._restore(snapshot)
        if seed is None:
            # Every episode has a seed of its own, so that a snapshot can name it. Seeds this wide do not repeat
            # within a run, as each one follows from the one before.
            seed = int(self.np_random.integers(2**62))
        super().reset(seed=seed)
        if task_id is None:
            task_id = self.tasks[int(self.np_random.integers(len(self.tasks)))].id
        return self._open(self.tasks.get(str(task_id)))

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Plays the agent's turn, a text in canonical syntax: `(observation, reward, terminated, truncated, info)`.

        Raises EnvUsageError for what is no text and outside an episode, EnvClosedError once closed.
        """
        self._refuse_if_closed()
        if not isinstance(action, str):
            raise EnvUsageError(f"an action is the agent's turn as text (str), not {type(action).__name__}")
        if self._over or self._task is None:
            raise EnvUsageError("step outside an episode: call reset first")
        tokens, cut = self._announced or self._estimate(action)
        self._announced = None
        self._turns.append((action, tokens))
        self._messages.append({"role": "assistant", "content": action})
        reply = Reply() if cut else self.respond(action)  # a turn that was cut short says nothing reliable
        self._refuse_if_closed()
        new = [dict(message) for message in reply.messages]
        self._messages.extend(deepcopy(new))
        truncated = cut or (not reply.final and self._spent())
        terminated = reply.final and not truncated
        info: dict[str, Any] = {"task_id": self._task.id, "messages": new}
        reward = float(reply.reward)
        if truncated:
            out_of_turns = not cut and len(self._turns) >= self.budget.turns
            info["truncation"] = "turns" if out_of_turns else "tokens"
        if terminated or truncated:
            self._over = True
            verdict = info["verdict"] = self._judge(self.submission(action), self._task)
            reward += verdict.reward
        return observation_of(new), reward, terminated, truncated, info

    def submission(self, action: str) -> Submission:
        """What the verifier judges when `action` was the last turn."""
        return Submission(action, tuple(self._messages))

    def announce(self, tokens: int, *, cut: bool = False) -> None:
        """States the exact tokens of the coming action, and whether a token budget cut it short.

        Without it tokens are estimated (`estimate_tokens`), and a turn counts as cut if they exceed a budget.
        """
        self._announced = (tokens, cut)

    def tokens_left(self) -> int | None:
        """Tokens that the coming turn may have, by the turn's and the episode's budget (None: no limit)."""
        used = sum(tokens for _, tokens in self._turns)
        limits = [self.budget.tokens_per_turn]
        if self.budget.tokens_per_episode is not None:
            limits.append(self.budget.tokens_per_episode - used)
        known = [limit for limit in limits if limit is not None]
        return max(0, min(known)) if known else None

    def snapshot(self) -> dict[str, Any]:
        """The running episode as plain data (JSON), for `reset(options={"snapshot": ...})`."""
        if self._over or self._task is None:
            raise EnvUsageError("snapshot outside an episode: call reset first")
        return {
            "task": self._task.id,
            "task_hash": self._task.content_hash(),
            "seed": int(self.np_random_seed or 0),
            "turns": [list(turn) for turn in self._turns],
            "messages": deepcopy(self._messages),
        }

    def render(self) -> str | None:  # type: ignore[override]
        """The conversation so far (render_mode "ansi")."""
        if self.render_mode is None:
            return None
        return "\n".join(f"[{message['role']}] {message['content']}" for message in self._messages)

    def close(self) -> None:
        """Ends the environment and, from another thread, what a running `step` waits for. Idempotent."""
        self._closed.set()
        if self._owns_verifier:
            self.verifier.close()

    # What stays inside.

    def _open(self, task: Task) -> tuple[str, dict[str, Any]]:
        self._task, self._turns, self._announced, self._over = task, [], None, False
        self._messages = self.opening(task)
        tools = json.loads(json.dumps(self.tools))  # a copy, in a fifth of the time that deepcopy takes
        info = {"task_id": task.id, "tools": tools, "messages": deepcopy(self._messages)}
        return observation_of(self._messages), info

    def _restore(self, snapshot: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Replays a snapshot and compares; `info["messages"]` is then the whole conversation."""
        try:
            task_id, content = str(snapshot["task"]), snapshot["task_hash"]
            seed, messages = int(snapshot["seed"]), list(snapshot["messages"])
            turns = [(str(action), int(tokens)) for action, tokens in snapshot["turns"]]
        except (KeyError, TypeError, ValueError) as error:
            raise SnapshotError(f"not a snapshot of an environment ({error}); it must come from snapshot()") from error
        try:
            observation, info = self._replay(task_id, seed, turns)
            if self._task is None or self._task.content_hash() != content:
                raise SnapshotError(f"the task '{task_id}' is not the one that the snapshot was taken of")
            if self._messages != messages:
                raise SnapshotError(f"the snapshot of task '{task_id}' replays to other messages than it holds")
        except UnknownNameError as error:
            raise SnapshotError(f"the snapshot is of another environment: {error}") from error
        except SnapshotError:
            self._over = True
            raise
        return observation, {**info, "messages": deepcopy(self._messages)}

    def _replay(self, task_id: str, seed: int, turns: Sequence[tuple[str, int]]) -> tuple[str, dict[str, Any]]:
        observation, info = self.reset(seed=seed, options={"task": task_id})
        for action, tokens in turns:
            self.announce(tokens)
            observation, _, terminated, truncated, _ = self.step(action)
            if terminated or truncated:
                raise SnapshotError(f"the snapshot of task '{task_id}' ended on replay; it did not when taken")
        return observation, info

    def _judge(self, submission: Submission, task: Task) -> Verdict:
        return self._ask(lambda: self.verifier.verify(submission, task))

    def _ask(self, question: Callable[[], T]) -> T:
        """What the verifier says to a question, unless `close` ends the wait for it."""
        with doing("verifier", self._verifier_name):
            said = question() if self._owns_verifier else call_until(self._closed, question)
        self._refuse_if_closed()
        return said

    def _estimate(self, action: str) -> tuple[int, bool]:
        tokens, left = estimate_tokens(action), self.tokens_left()
        return tokens, left is not None and tokens > left

    def _spent(self) -> bool:
        """Whether nothing is left for another turn."""
        used = sum(tokens for _, tokens in self._turns)
        episode = self.budget.tokens_per_episode
        return len(self._turns) >= self.budget.turns or (episode is not None and used >= episode)

    def _refuse_if_closed(self) -> None:
        if self._closed.is_set():
            raise EnvClosedError("the environment was closed")


def _share(chance: Any) -> float:
    if isinstance(chance, bool) or not isinstance(chance, int | float) or not 0 <= chance <= 1:
        raise ConfigError(f"chance must be a number from 0 to 1, not {chance!r}")
    return float(chance)


def observation_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """The contents of the messages that are not from the system, joined by a blank line."""
    return "\n\n".join(str(message["content"]) for message in messages if message["role"] != "system")
