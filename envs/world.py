"""An environment whose agent acts on a simulated world by tools, and talks with a user: a script, or another agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np

from verigym.envs._options import Demonstrate, chance_of, load_tasks, player, positive, resolve, shortened
from verigym.envs._waiting import call_until
from verigym.envs.text_env import Budget, Message, Reply, TextEnv
from verigym.tasks.canonical import parse_turn
from verigym.tasks.errors import EnvUsageError
from verigym.tasks.task import Task, TaskSet
from verigym.tasks.worlds.scenario import Scenario
from verigym.tasks.worlds.simulated import Player
from verigym.verifiers.state import gold_turns
from verigym.verifiers.verdict import Submission
from verigym.verifiers.verifier import Verifier

T = TypeVar("T")


class WorldEnv(TextEnv):
    """The user asks; a turn with calls acts on the task's world, a turn without one speaks to the user.

    A task's metadata has its world (`world`, `state`, `tools`: see `worlds.world_of`) and its user (`user`: see
    `worlds.Scenario`). Each call is answered by a tool message, a wrong one by a message that helps; text beside calls
    is not heard by anybody. The episode ends with the user's last word, or with a call that ends all. The verifier gets
    `Scenario.states` as the submission's `state`, and the world's log as its `events`.

    Args:
        task_set: a TaskSet (`split` then says nothing), or the name of one for `tasks.load` with `split`, `source`
            and `task_options`.
        verifier: the registered name of a Verifier, or one that may be shared and that its owner closes.
        verifier_options: options of a verifier given by name.
        instructions: a text put under the first question, after a blank line ("" for none).
        system_prompt: the first message, from the system ("" for none); a task's own `policy` follows in it.
        user: who plays the users, anything with an Agent's `act`, or "module:function" of what makes one (None: the
            tasks' scripts). It is told the `instruction` of each task; a fork needs one that says the same again.
        max_calls: calls in an episode; what is above is not run, and told so (None: no limit).
        max_reply: characters of a tool's reply; what is longer is cut.
        max_turns, max_tokens_per_turn, max_tokens_per_episode: the budgets; None is no limit on tokens.
        chance: the reward that a policy blind to the question can earn; a number, or "module:function" of any of
            the task set (as `task_set`) and the task options, called when it is asked for.
        demonstrate: function (task, rng) -> turns, or "module:attribute" of one; default: the gold episode.
        task_options: further options of the task set, such as `level` and `seed` of a generated one.

    Raises UnknownNameError for an option that neither the environment nor the task set has, ConfigError for a
    value that cannot be.
    """

    def __init__(
        self,
        task_set: TaskSet | str,
        *,
        split: str = "train",
        source: str | None = None,
        verifier: Verifier | str = "state_match",
        verifier_options: Mapping[str, Any] | None = None,
        instructions: str = "",
        system_prompt: str = "",
        user: Player | str | None = None,
        max_calls: int | None = None,
        max_reply: int = 4000,
        max_turns: int = 20,
        max_tokens_per_turn: int | None = 1024,
        max_tokens_per_episode: int | None = None,
        chance: float | str = 0.0,
        demonstrate: Demonstrate | str | None = None,
        render_mode: str | None = None,
        **task_options: Any,
    ) -> None:
        loaded = load_tasks(WorldEnv, task_set, split, source, task_options)
        super().__init__(
            loaded,
            verifier,
            verifier_options=verifier_options,
            budget=Budget(max_turns, max_tokens_per_turn, max_tokens_per_episode),
            chance=chance_of(chance, {**task_options, "task_set": loaded}),
            render_mode=render_mode,
        )
        self.instructions, self.system_prompt = instructions, system_prompt
        self._player = player("user", user)
        self.max_calls = None if max_calls is None else positive("max_calls", max_calls)
        self.max_reply = positive("max_reply", max_reply)
        self._demonstrate = resolve(demonstrate) if isinstance(demonstrate, str) else demonstrate
        self._scenario = Scenario(self.tasks[0], self._player)  # whose tools are asked for before the first reset

    def opening(self, task: Task) -> list[Message]:
        self._scenario = Scenario(task, self._player)
        said = self._heard(self._scenario.user.opening)
        text = f"{said}\n\n{self.instructions}" if self.instructions else said
        rules = "\n\n".join(filter(None, [self.system_prompt, task.metadata.get("policy", "")]))
        system = [{"role": "system", "content": rules}] if rules else []
        return [*system, {"role": "user", "content": text}]

    @property
    def tools(self) -> list[dict[str, Any]]:
        return self._scenario.world.schemas

    def respond(self, action: str) -> Reply:
        turn = parse_turn(action)
        if not (turn.calls or turn.errors):
            said, final = self._heard(partial(self._scenario.hear, turn.content))
            return Reply([{"role": "user", "content": said}], final=final)
        answers = [
            {"role": "tool", "name": call.name, "content": self._call(call.name, call.arguments)} for call in turn.calls
        ]
        answers += [{"role": "tool", "name": "error", "content": f"error: {error}"} for error in turn.errors]
        return Reply(answers, final=self._scenario.world.ended)

    def submission(self, action: str) -> Submission:
        return Submission(action, tuple(self._messages), self._scenario.states, tuple(self._scenario.world.events))

    def gold_episodes(self, task: Task) -> list[list[str]]:
        return [gold_turns(task)]

    def demonstration(self, rng: np.random.Generator) -> list[str]:
        if self._task is None:
            raise EnvUsageError("demonstration outside an episode: call reset first")
        return gold_turns(self._task) if self._demonstrate is None else self._demonstrate(self._task, rng)

    def _heard(self, user: Callable[[], T]) -> T:
        """What the user says: a script at once, another agent until the environment is closed."""
        return user() if self._player is None else call_until(self._closed, user)

    def _call(self, name: str, arguments: dict[str, Any]) -> str:
        if self._scenario.world.ended:
            return f"error: not run, as {name} was called after the end"
        if self.max_calls is not None and len(self._scenario.world.events) >= self.max_calls:
            return f"error: not run, as all {self.max_calls} calls of this task are used up"
        return shortened(self._scenario.world.call(name, arguments), self.max_reply)
