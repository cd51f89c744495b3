"""Verdicts on what the agent told the user: exact fields, `[price of order 412: 30]`, no more than were asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from verigym.tasks.canonical import parse_turn
from verigym.tasks.errors import VerifierInputError
from verigym.tasks.task import Task
from verigym.verifiers._plain import cut
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier

# a name never begins in the middle of a longer text, so what is too long is no field, and the search stays linear
_FIELD = re.compile(r"\[([^\[\]:\n]{1,120}):([^\[\]\n]{1,500})\]")


class CommunicationVerifier(Verifier):
    """1 if the agent told the user the fields of `target["tell"]`, and no others; else 0.

    A field is told as `[name: value]` in a turn without calls, outside the reasoning. Of names, case, white space
    and a leading "the" do not count; values are compared as they are, white space at their ends left out. A field
    that nobody asked for, or one with two values, is wrong: telling everything tells nothing.
    """

    def verify(self, submission: Submission, task: Task) -> Verdict:
        owed = owed_by(task)
        if not owed:
            raise VerifierInputError(f'task {task.id} owes the user nothing: its target needs {{"tell": {{...}}}}')
        problem = problem_of(submission, owed)
        outcome = Outcome.WRONG if problem else Outcome.CORRECT
        return Verdict(float(not problem), outcome, problem or "the user was told what was asked for, and no more")

    def golds(self, task: Task) -> list[str]:
        return [" ".join(f"[{name}: {value}]" for name, value in owed_by(task).items())]


def owed_by(task: Task) -> dict[str, str]:
    """What the user must be told, by name. Raises VerifierInputError for a target that does not say it as texts."""
    tell = task.target.get("tell", {}) if isinstance(task.target, Mapping) else None
    if not isinstance(tell, Mapping) or not all(isinstance(part, str) for pair in tell.items() for part in pair):
        raise VerifierInputError(f'task {task.id} needs a target such as {{"tell": {{"price of order 412": "30"}}}}')
    return {_named(name): value.strip() for name, value in tell.items()}


def problem_of(submission: Submission, owed: Mapping[str, str]) -> str:
    """What is wrong with what the user was told, in one sentence; "" if nothing is. It never says what is right."""
    told: dict[str, str] = {}
    for name, value in _fields(submission):
        if name not in owed:
            return f"the user was told {cut(name, 80)!r}, which nobody asked for"
        if told.setdefault(name, value) != value:
            return f"the user was told two values of {cut(name, 80)!r}"
    missing = len(owed) - len(told)
    if missing:
        return f"{missing} of {len(owed)} fields that the user asked for were not told"
    wrong = [name for name in owed if told[name] != owed[name]]
    return f"the user was told a wrong value of {cut(wrong[0], 80)!r}" if wrong else ""


def _fields(submission: Submission) -> Iterator[tuple[str, str]]:
    for message in spoken(submission):
        for name, value in _FIELD.findall(message):
            yield _named(name), value.strip()


def spoken(submission: Submission) -> Iterator[str]:
    """What reached the user; a submission that is a text alone is one message, its calls left out."""
    spoken = [str(message["content"]) for message in submission.messages if message["role"] == "assistant"]
    for text in spoken or [submission.text]:
        turn = parse_turn(text)
        if not spoken or not (turn.calls or turn.errors):
            yield turn.content


def _named(name: str) -> str:
    return " ".join(name.casefold().split()).removeprefix("the ")
