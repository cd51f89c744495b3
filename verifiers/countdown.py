r"""Verdicts on Countdown puzzles: `\boxed{(19 - 4) * 7}` uses the given numbers once each and makes the goal."""

from __future__ import annotations

import re
from collections import Counter

from verigym.tasks.calculator import evaluate
from verigym.tasks.errors import VerifierInputError
from verigym.tasks.task import Task
from verigym.verifiers.extract import answer_text, math_answer
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier

MAX_LENGTH = 500  # characters of an answer, before its LaTeX is read
_FRACTION = re.compile(r"\\d?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_JUXTAPOSED = re.compile(r"(?<=[\d)])\s*(?=\()|(?<=\))\s*(?=\d)")
_LATEX = {
    r"\times": "*",
    r"\ast": "*",
    r"\cdot": "*",
    r"\div": "/",
    r"\left": "",
    r"\right": "",
    r"\,": "",
    "{": "(",
    "}": ")",
}


class CountdownVerifier(Verifier):
    """1 if the answer is an expression of `metadata["numbers"]`, each exactly once, with the value `metadata["goal"]`.

    Plain or simple LaTeX (`\\times`, `\\cdot`, `\\div`, `\\frac`); the goal and "=" may stand on either side.
    Nothing is evaluated as Python. Raises VerifierInputError from `verify` for a task without numbers and goal.
    """

    def verify(self, submission: Submission, task: Task) -> Verdict:
        numbers, goal = _puzzle(task)
        text = answer_text(submission.text)
        if text is None:
            return Verdict(0.0, Outcome.UNPARSEABLE, "the reasoning never ends: a <think> without its </think>")
        found = math_answer(text)
        if found.answer is None:
            return Verdict(0.0, Outcome.UNPARSEABLE, found.reason)
        if len(found.answer) > MAX_LENGTH:
            return Verdict(0.0, Outcome.UNPARSEABLE, f"the answer is longer than {MAX_LENGTH} characters")
        left, _, right = _plain(found.answer).partition("=")
        details = {"answer": found.answer}
        try:
            value, used = evaluate(left)
            claimed, others = evaluate(right) if right else (value, used)
        except ValueError as error:
            return Verdict(
                0.0, Outcome.UNPARSEABLE, f"the answer is no arithmetic expression: {error}", details=details
            )
        if Counter(numbers) not in (Counter(used), Counter(others)):
            why = f"the answer must use each of {', '.join(map(str, numbers))} exactly once"
        elif value != goal or claimed != goal:
            why = f"the answer does not make {goal}"
        else:
            return Verdict(1.0, Outcome.CORRECT, f"the numbers make {goal}", details=details)
        return Verdict(0.0, Outcome.WRONG, why, details=details)

    def golds(self, task: Task) -> list[str]:
        return [f"\\boxed{{{task.target}}}"]


def _puzzle(task: Task) -> tuple[tuple[int, ...], int]:
    numbers, goal = task.metadata.get("numbers"), task.metadata.get("goal")
    whole = isinstance(numbers, list | tuple) and numbers and all(type(number) is int for number in numbers)
    if not whole or type(goal) is not int:
        raise VerifierInputError('a countdown task needs metadata such as {"numbers": [19, 4, 7], "goal": 105}')
    return tuple(numbers or ()), goal


def _plain(answer: str) -> str:
    """LaTeX of an arithmetic expression as plain text."""
    while (simpler := _FRACTION.sub(r"((\1)/(\2))", answer)) != answer:
        answer = simpler
    for latex, plain in _LATEX.items():
        answer = answer.replace(latex, plain)
    return _JUXTAPOSED.sub("*", answer.replace("$", ""))
