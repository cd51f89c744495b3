"""A question that is answered by tool calls: judged, and not run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from verigym.envs._options import Demonstrate
from verigym.envs.question import QuestionEnv
from verigym.envs.text_env import Message, Reply
from verigym.tasks._function_docs import tool_schema
from verigym.tasks.errors import UnknownNameError
from verigym.tasks.task import Task, TaskSet
from verigym.verifiers.verdict import Submission
from verigym.verifiers.verifier import Verifier


class CallEnv(QuestionEnv):
    """The user asks; the agent's one turn holds the calls that do what is asked, or says that no function fits.

    The tools are the task's own: `metadata["tools"]`, function documents as BFCL writes them. Dots in their names are
    shown as `_` where the metadata say `safe_names`. `metadata["messages"]` stand before the question.

    Args:
        category: which of BFCL's, where that is the task set; see `tasks.bfcl`.
        others: as `QuestionEnv` has them.
    """

    def __init__(
        self,
        task_set: TaskSet | str,
        *,
        split: str = "test",
        source: str | None = None,
        verifier: Verifier | str = "call_match",
        verifier_options: Mapping[str, Any] | None = None,
        instructions: str = "",
        system_prompt: str = "",
        max_tokens_per_turn: int | None = 1024,
        chance: float | str = 0.0,
        demonstrate: Demonstrate | str | None = None,
        render_mode: str | None = None,
        **task_options: Any,
    ) -> None:
        for name in task_options.keys() & inspect.signature(QuestionEnv.__init__).parameters.keys():
            raise UnknownNameError(f"no environment option '{name}': the tools are the task's own, called in one turn")
        super().__init__(
            task_set,
            split=split,
            source=source,
            verifier=verifier,
            verifier_options=verifier_options,
            instructions=instructions,
            system_prompt=system_prompt,
            max_tokens_per_turn=max_tokens_per_turn,
            chance=chance,
            demonstrate=demonstrate,
            render_mode=render_mode,
            **task_options,
        )

    def opening(self, task: Task) -> list[Message]:
        *system, asked = super().opening(task)
        return [*system, *(dict(message) for message in task.metadata.get("messages", ())), asked]

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The schemas of the functions of the current task; before the first one, those of the first."""
        task = self._task or self.tasks[0]
        return [tool_schema(doc) for doc in task.metadata.get("tools", ())]

    def respond(self, action: str) -> Reply:
        return Reply(final=True)

    def submission(self, action: str) -> Submission:
        return Submission(action, tuple(self._messages))
