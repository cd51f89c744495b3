"""A question with a verifiable answer, answered at once or after calls to tools."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from verigym.envs._options import Demonstrate, chance_of, load_tasks, positive, resolve, shortened
from verigym.envs.text_env import Budget, Message, Reply, TextEnv
from verigym.tasks.canonical import parse_turn
from verigym.tasks.errors import ConfigError, EnvUsageError, UnknownNameError
from verigym.tasks.task import Task, TaskSet
from verigym.tasks.worlds.tool import Tool
from verigym.verifiers.verdict import Submission
from verigym.verifiers.verifier import Verifier


class QuestionEnv(TextEnv):
    """The user asks; a turn without a tool call is the answer and ends the task, or is sent back (`feedback`).

    With `tools`, a turn may call one or more of them (canonical syntax, see `tasks.canonical`): each call is
    answered by a tool message, a malformed one by a tool message that says what is wrong. Of a turn that calls and
    is the last one by the budget, the text beside the calls is judged.

    Args:
        task_set: a TaskSet (`split` then says nothing), or the name of one for `tasks.load` with `split`, `source`
            and `task_options`.
        verifier: the registered name of a Verifier, or one that may be shared and that its owner closes.
        verifier_options: options of a verifier given by name, such as {"extract": "latex"}.
        instructions: a text put under the question, after a blank line ("" for none).
        system_prompt: the first message, from the system ("" for none).
        tools: functions or Tools, or "module:attribute" paths to them; one or several. A function that returns a Tool
            or a list of them is called, and makes this environment's own.
        feedback: "public" tells a turn that fails the task's public tests so, and lets it try again while turns are
            left; "none" takes the first answer. Only a verifier with public tests has something to tell.
        max_calls: calls in an episode; what is above is not run, and told so (None: no limit).
        max_reply: characters of a tool's reply; what is longer is cut.
        turns: N is short for `feedback="public", max_turns=N`: an answer, and N - 1 corrections of it.
        max_turns, max_tokens_per_turn, max_tokens_per_episode: the budgets; None is no limit on tokens.
        chance: the reward that a policy blind to the question can earn; a number, or "module:function" of any of
            the task set (as `task_set`) and the task options, called when it is asked for.
        demonstrate: function (task, rng) -> turns, or "module:attribute" of one; default: the boxed gold answer.
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
        verifier: Verifier | str = "math",
        verifier_options: Mapping[str, Any] | None = None,
        instructions: str = "",
        system_prompt: str = "",
        tools: Sequence[Callable[..., Any] | Tool | str] | Callable[..., Any] | Tool | str = (),
        feedback: str = "none",
        turns: int | None = None,
        max_calls: int | None = None,
        max_reply: int = 4000,
        max_turns: int = 1,
        max_tokens_per_turn: int | None = 1024,
        max_tokens_per_episode: int | None = None,
        chance: float | str = 0.0,
        demonstrate: Demonstrate | str | None = None,
        render_mode: str | None = None,
        **task_options: Any,
    ) -> None:
        loaded = load_tasks(QuestionEnv, task_set, split, source, task_options)
        if turns is not None:
            feedback, max_turns = "public", positive("turns", turns)
        super().__init__(
            loaded,
            verifier,
            verifier_options=verifier_options,
            budget=Budget(max_turns, max_tokens_per_turn, max_tokens_per_episode),
            chance=chance_of(chance, {**task_options, "task_set": loaded}),
            render_mode=render_mode,
        )
        if feedback not in ("none", "public"):
            raise ConfigError(f"feedback must be none or public, not {feedback!r}")
        self.instructions, self.system_prompt, self.feedback = instructions, system_prompt, feedback
        several = tools if isinstance(tools, Sequence) and not isinstance(tools, str) else [tools]
        self._tools = _by_name([tool for given in several for tool in _as_tools(given)])
        self.max_calls = None if max_calls is None else positive("max_calls", max_calls)
        self.max_reply = positive("max_reply", max_reply)
        self._calls = 0
        self._demonstrate = resolve(demonstrate) if isinstance(demonstrate, str) else demonstrate

    def opening(self, task: Task) -> list[Message]:
        self._calls = 0
        for tool in self._tools.values():
            tool.reset()
        text = f"{task.prompt}\n\n{self.instructions}" if self.instructions else task.prompt
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, {"role": "user", "content": text}]

    @property
    def isolated(self) -> bool:
        return super().isolated and all(tool.isolated for tool in self._tools.values())

    def close(self) -> None:
        super().close()
        for tool in self._tools.values():
            tool.close()

    @property
    def tools(self) -> list[dict[str, Any]]:
        return [tool.schema for tool in self._tools.values()]

    def respond(self, action: str) -> Reply:
        turn = parse_turn(action) if self._tools else None
        if turn is None or not (turn.calls or turn.errors):
            return self._told(action)
        answers = [
            {"role": "tool", "name": call.name, "content": self._call(call.name, call.arguments)} for call in turn.calls
        ]
        answers += [{"role": "tool", "name": "error", "content": f"error: {error}"} for error in turn.errors]
        return Reply(answers)

    def _told(self, action: str) -> Reply:
        """The end of the task, or what the verifier tells of an answer that can still be corrected."""
        task = self._task
        if task is None or self.feedback == "none" or len(self._turns) >= self.budget.turns:
            return Reply(final=True)
        told = self._ask(lambda: self.verifier.feedback(self.submission(action), task))
        return Reply(final=True) if told is None else Reply([{"role": "user", "content": told}])

    def submission(self, action: str) -> Submission:
        turn = parse_turn(action) if self._tools else None
        if turn is None or not (turn.calls or turn.errors):
            return super().submission(action)
        # what stands inside a call is an argument, not an answer
        return Submission(turn.content, tuple(self._messages))

    def demonstration(self, rng: np.random.Generator) -> list[str]:
        if self._task is None:
            raise EnvUsageError("demonstration outside an episode: call reset first")
        if self._demonstrate is not None:
            return self._demonstrate(self._task, rng)
        return self.golds(self._task)[:1]

    def _call(self, name: str, arguments: dict[str, Any]) -> str:
        self._calls += 1
        if self.max_calls is not None and self._calls > self.max_calls:
            return f"error: not run, as all {self.max_calls} calls of this task are used up"
        if name not in self._tools:
            return f"error: {UnknownNameError.of('tool', name, self._tools)}"
        return shortened(self._tools[name].call(arguments), self.max_reply)


def _as_tools(given: Callable[..., Any] | Tool | str) -> list[Tool]:
    made = resolve(given) if isinstance(given, str) else given
    if not isinstance(made, Tool) and inspect.signature(made).return_annotation in _MAKES_TOOLS:
        made = made()
    if isinstance(made, Tool):
        return [made]
    if isinstance(made, list):
        return made
    try:
        return [Tool.from_function(made)]
    except TypeError as error:
        raise ConfigError(f"not a tool: {error}") from error


_MAKES_TOOLS = (Tool, "Tool", list[Tool], "list[Tool]")


def _by_name(tools: Sequence[Tool]) -> dict[str, Tool]:
    named = {tool.name: tool for tool in tools}
    if len(named) < len(tools):
        twice = next(tool.name for tool in tools if named[tool.name] is not tool)
        raise ConfigError(f"two tools are named '{twice}'; an agent could not tell them apart")
    return named
