"""Verdicts on tool calls: whether they are the calls that a row asks for, by BFCL's ground truth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from verigym.tasks._boxed import boxed_contents
from verigym.tasks._function_docs import (
    ANY_CALL,
    AskedCall,
    Doc,
    asked_calls,
    fault,
    find_doc,
    gold_arguments,
    read_docs,
    safe_name,
    tool_schema,
)
from verigym.tasks.canonical import ToolCall, Turn, parse_turn, render_call
from verigym.tasks.errors import ConfigError, TaskDataError, UnknownNameError, VerifierInputError
from verigym.tasks.task import Task
from verigym.tasks.worlds.tool import Tool
from verigym.verifiers import _bfcl, _calls
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier

POLICIES = ("strict", "bfcl")
_TEXT = re.compile(r"\\text\{(.*)\}")


class CallMatchVerifier(Verifier):
    r"""1 if a turn makes the calls that are asked for, in whatever order, and no other one; else 0.

    `task.target` is BFCL's ground truth, `[{function: {argument: [allowed values]}}]` ("" among them: it may be left
    out), or calls written as Python (`["area(base=10)"]`). `[]` asks for no call and for a message; "any call" for
    any call that the functions take. `task.metadata` has `tools`, BFCL's function documents; where they are there,
    `message`, which a turn without a call must give in its last `\boxed{}`, and `language` (python, java, javascript).

    - "strict" (the default): a value is one of the allowed ones and of its type; between whole and decimal numbers
      the schema decides. Calls and asked calls are assigned to each other in the best way, not in the first.
    - "bfcl": what BFCL's checker accepts; see `_bfcl`. No call is a message there, too.

    A bad row, which no call can satisfy, is no fault of the submission: an INFRA_ERROR that says why; "bfcl" gives it
    the official 0 and says so. Raises VerifierInputError for what is no ground truth or no function document.
    """

    def __init__(self, policy: str = "strict") -> None:
        if policy not in POLICIES:
            raise ConfigError(f"policy must be strict or bfcl, not {policy!r}")
        self.policy = policy

    def verify(self, submission: Submission, task: Task) -> Verdict:
        asked, docs = _question(task)
        verdict = self._judged(parse_turn(submission.text), asked, docs, task)
        bad = "" if verdict.reward or asked == ANY_CALL else fault(asked, docs)
        if not bad:
            return verdict
        if self.policy == "bfcl":
            return Verdict(0.0, Outcome.WRONG, f"the row is bad, the official checker accepts nothing: {bad}")
        return Verdict.infra_error(f"the row is bad: {bad}")

    def _judged(self, turn: Turn, asked: Any, docs: Sequence[Doc], task: Task) -> Verdict:
        """The verdict, if the row is good."""
        if turn.errors and (asked or self.policy == "strict"):
            return Verdict(0.0, Outcome.UNPARSEABLE, turn.errors[0])
        calls = [_original(call, docs, task) for call in turn.calls]
        if asked == ANY_CALL:
            return _any_call(calls, docs)
        if not asked:
            return self._none(turn, task.metadata.get("message"))
        if not calls:
            return Verdict(0.0, Outcome.UNPARSEABLE, "there is no tool call in the answer")
        if self.policy == "bfcl":
            problem = _bfcl.problem(calls, asked, docs, task.metadata.get("language"))
        else:
            problem = _calls.problem(calls, asked, docs)
        return Verdict(0.0, Outcome.WRONG, problem) if problem else _RIGHT

    def golds(self, task: Task) -> list[str]:
        """The calls with the first allowed value of each argument, and without those that may be left out.

        None for a bad row, and for a task that any call answers.
        """
        asked, docs = _question(task)
        if asked == ANY_CALL or fault(asked, docs):
            return []
        if not asked:
            return [f"\\boxed{{{task.metadata['message']}}}"] if "message" in task.metadata else ["No function fits."]
        rendered = [_rendered(asked, docs, task, minimal=minimal) for minimal in (False, True)]
        return list(dict.fromkeys(rendered))

    def _none(self, turn: Turn, message: str | None) -> Verdict:
        """The verdict where no call is the right answer."""
        if turn.calls:
            return Verdict(0.0, Outcome.WRONG, f"it calls '{turn.calls[0].name[:80]}' where no function fits")
        if self.policy == "bfcl":
            return Verdict(1.0, Outcome.CORRECT, "it makes no call, and none is right")
        said = boxed_contents(turn.content)[-1:] if message is not None else [turn.content]
        if not said or not said[0].strip():
            return Verdict(0.0, Outcome.WRONG, "it makes no call, which is right, but does not say that none fits")
        if message is not None and _TEXT.sub(r"\1", said[0]).strip(" .").lower() != message:
            return Verdict(0.0, Outcome.WRONG, "what it says instead of a call is not that no function fits")
        return Verdict(1.0, Outcome.CORRECT, "it says that no function fits, and makes no call")


_RIGHT = Verdict(1.0, Outcome.CORRECT, "the calls are those that are asked for")


def _question(task: Task) -> tuple[Any, list[Doc]]:
    """What the task asks for, and its functions."""
    try:
        docs = read_docs(task.metadata.get("tools", ()))
        if task.target == ANY_CALL:
            return ANY_CALL, [doc for doc in docs if tool_schema(doc)]
        return asked_calls(task.target, docs), docs
    except TaskDataError as error:
        raise VerifierInputError(f"the task cannot be judged: {error}") from error


def _original(call: ToolCall, docs: Sequence[Doc], task: Task) -> ToolCall:
    """The call by the name in its document, where the agent knows the function by a safe name."""
    if not task.metadata.get("safe_names"):
        return call
    name = next((doc["name"] for doc in docs if safe_name(doc["name"]) == call.name), call.name)
    return ToolCall(name, call.arguments)


def _rendered(asked: Sequence[AskedCall], docs: Sequence[Doc], task: Task, *, minimal: bool) -> str:
    known = safe_name if task.metadata.get("safe_names") else str
    pairs = [(call, find_doc(docs, call.name)) for call in asked]
    return "\n".join(
        render_call(known(call.name), gold_arguments(call, doc, minimal=minimal)) for call, doc in pairs if doc
    )


def _any_call(calls: Sequence[ToolCall], docs: Sequence[Doc]) -> Verdict:
    """The verdict where any call is right that its function takes."""
    if not calls:
        return Verdict(0.0, Outcome.WRONG, "it makes no call, where a function fits")
    for call in calls:
        doc = find_doc(docs, call.name)
        if doc is None:
            return Verdict(0.0, Outcome.WRONG, str(UnknownNameError.of("function", call.name, _names(docs))))
        if problem := _tool(doc).problem(call.arguments):
            return Verdict(0.0, Outcome.WRONG, problem)
    return Verdict(1.0, Outcome.CORRECT, "its calls are such as the functions take")


def _names(docs: Sequence[Doc]) -> list[str]:
    return [str(doc["name"]) for doc in docs]


def _tool(doc: Mapping[str, Any]) -> Tool:
    schema = tool_schema(doc)["function"]
    return Tool(doc["name"], schema["description"], schema["parameters"], lambda **_: None)
