"""A question with a verifiable answer, answered at once or after calls to tools."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from verigym import tasks as task_sets
from verigym import verifiers
from verigym.envs.text_env import Budget, Message, Reply, TextEnv
from verigym.tasks.canonical import parse_turn
from verigym.tasks.errors import UnknownNameError
from verigym.tasks.task import Task, TaskSet
from verigym.tasks.worlds.tool import Tool
from verigym.verifiers.verifier import Verifier

Demonstrate = Callable[[Task, np.random.Generator], list[str]]


class QuestionEnv(TextEnv):
    """The user asks; a turn without a tool call is the answer and ends the task.

    With `tools`, a turn may call one or more of them (canonical syntax, see `tasks.canonical`): each call is
    answered by a tool message, a malformed one by a tool message that says what is wrong.

    Args:
        task_set: a TaskSet, or the name of one for `tasks.load` with `split`, `source` and `task_options`.
        verifier: a Verifier, or the registered name of one.
        instructions: a text put under the question, after a blank line ("" for none).
        system_prompt: the first message, from the system ("" for none).
        tools: functions or Tools, or "module:attribute" paths to them.
        max_turns, max_tokens_per_turn, max_tokens_per_episode: the budgets; None is no limit on tokens.
        chance: the reward that a policy blind to the question can earn; a number, or "module:function" of `level`.
        demonstrate: function (task, rng) -> turns, or "module:attribute" of one; default: the boxed gold answer.
        task_options: further options of the task set, such as `level` and `seed` of a generated one.

    Raises UnknownNameError for an option that neither the environment nor the task set has.
    """

    def __init__(
        self,
        task_set: TaskSet | str,
        *,
        split: str = "train",
        source: str | None = None,
        verifier: Verifier | str = "math",
        instructions: str = "",
        system_prompt: str = "",
        tools: Sequence[Callable[..., Any] | Tool | str] = (),
        max_turns: int = 1,
        max_tokens_per_turn: int | None = 1024,
        max_tokens_per_episode: int | None = None,
        chance: float | str = 0.0,
        demonstrate: Demonstrate | str | None = None,
        render_mode: str | None = None,
        **task_options: Any,
    ) -> None:
        if isinstance(task_set, str):
            own = set(inspect.signature(QuestionEnv.__init__).parameters) - {
                "self",
                "task_options",
                "task_set",
            }
            check_options(task_options, own | set(task_sets.options(task_set)))
            task_set = task_sets.load(task_set, split=split, source=source, **task_options)
        else:
            check_options(
                task_options,
                set(inspect.signature(QuestionEnv.__init__).parameters) - {"self", "task_options"},
            )
        if isinstance(chance, str):
            chance = float(_resolve(chance)(**{k: v for k, v in task_options.items() if k == "level"}))
        super().__init__(
            task_set,
            verifiers.make(verifier) if isinstance(verifier, str) else verifier,
            budget=Budget(max_turns, max_tokens_per_turn, max_tokens_per_episode),
            chance=chance,
            render_mode=render_mode,
        )
        self.instructions, self.system_prompt = instructions, system_prompt
        self._tools = {tool.name: tool for tool in map(_as_tool, tools)}
        self._demonstrate = _resolve(demonstrate) if isinstance(demonstrate, str) else demonstrate

    def opening(self, task: Task) -> list[Message]:
        text = f"{task.prompt}\n\n{self.instructions}" if self.instructions else task.prompt
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, {"role": "user", "content": text}]

    @property
    def tools(self) -> list[dict[str, Any]]:
        return [tool.schema for tool in self._tools.values()]

    def respond(self, action: str) -> Reply:
        if not self._tools:
            return Reply(final=True)
        turn = parse_turn(action)
        if not turn.calls and not turn.errors:
            return Reply(final=True)
        answers = [
            {"role": "tool", "name": call.name, "content": self._call(call.name, call.arguments)} for call in turn.calls
        ]
        answers += [{"role": "tool", "name": "error", "content": f"error: {error}"} for error in turn.errors]
        return Reply(answers)

    def demonstration(self, rng: np.random.Generator) -> list[str]:
        assert self._task is not None, "demonstration() follows reset()"
        if self._demonstrate is not None:
            return self._demonstrate(self._task, rng)
        target = self._task.target
        return [f"\\boxed{{{target[0] if isinstance(target, list) else target}}}"]

    def _call(self, name: str, arguments: dict[str, Any]) -> str:
        if name not in self._tools:
            return f"error: {UnknownNameError.of('tool', name, self._tools)}"
        return self._tools[name].call(arguments)


def check_options(given: dict[str, Any], known: set[str]) -> None:
    """Raises UnknownNameError, with a suggestion, for the first option that is not known."""
    for name in given:
        if name not in known:
            raise UnknownNameError.of("environment option", name, known)


def _resolve(path: str) -> Callable[..., Any]:
    module, attribute = path.split(":")
    function: Callable[..., Any] = getattr(import_module(module), attribute)
    return function


def _as_tool(tool: Callable[..., Any] | Tool | str) -> Tool:
    if isinstance(tool, str):
        tool = _resolve(tool)
    return tool if isinstance(tool, Tool) else Tool.from_function(tool)
