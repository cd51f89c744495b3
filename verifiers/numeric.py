r"""Verdicts on numbers within a tolerance: `\boxed{3.14}` for 3.14159 with `tolerance=0.01`."""

from __future__ import annotations

from typing import Any

from verigym.tasks._boxed import boxed_contents
from verigym.tasks.errors import ConfigError, VerifierInputError
from verigym.tasks.task import Task
from verigym.verifiers import _guard
from verigym.verifiers._equal import Rules, equal
from verigym.verifiers._latex import tidy
from verigym.verifiers._numbers import Tolerance, exact_number
from verigym.verifiers._units import split_unit
from verigym.verifiers.extract import answer_text, math_answer
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier


class NumericVerifier(Verifier):
    """1 if the final answer is a number within `tolerance`, or within `relative` parts, of the target; else 0.

    The answer is found and its units and percent signs are read as by the math verifier, but an answer that is
    no plain number (whole, decimal, fraction, mixed, scientific) is wrong, so that no worker process is needed.
    `task.metadata["tolerance"]` stands in for `tolerance` where it is there. Without any tolerance a decimal may
    be rounded, as in the math verifier. A target that is a list holds several accepted numbers.
    Raises ConfigError for a bound that is no finite number from 0 on, VerifierInputError for a target that is no
    number.
    """

    def __init__(self, *, tolerance: float | None = None, relative: float | None = None) -> None:
        self._absolute, self._relative = tolerance, relative
        try:
            self._tolerance = _bounds(tolerance, relative)
        except ValueError as error:
            raise ConfigError(f"a tolerance {error}") from error

    def verify(self, submission: Submission, task: Task) -> Verdict:
        golds, tolerance = _golds(task), self._tolerance_of(task)
        text = answer_text(submission.text)
        if text is None:
            return Verdict(0.0, Outcome.UNPARSEABLE, "the reasoning never ends: a <think> without its </think>")
        found = math_answer(text)
        why = found.reason if found.answer is None else _guard.too_long(found.answer)
        if found.answer is None or why:
            return Verdict(0.0, Outcome.UNPARSEABLE, why or found.reason)
        details = {"answer": found.answer, "gold": task.target}
        rules = [Rules(_no_oracle, tolerance, is_float) for _, is_float in golds]
        if any(equal(gold, found.answer, rule) for (gold, _), rule in zip(golds, rules, strict=True)):
            return Verdict(1.0, Outcome.CORRECT, "the answer is within the tolerance", details=details)
        return Verdict(0.0, Outcome.WRONG, "the answer is no number within the tolerance", details=details)

    def golds(self, task: Task) -> list[str]:
        return [f"\\boxed{{{gold}}}" for gold, _ in _golds(task)]

    def _tolerance_of(self, task: Task) -> Tolerance | None:
        own = task.metadata.get("tolerance")
        if own is None:
            return self._tolerance
        try:
            return _bounds(own, self._relative)
        except ValueError as error:
            raise VerifierInputError(f"the tolerance of task '{task.id}' {error}") from error


def _bounds(absolute: Any, relative: Any) -> Tolerance | None:
    if absolute is None and relative is None:
        return None
    return Tolerance.of(0 if absolute is None else absolute, 0 if relative is None else relative)


def _golds(task: Task) -> list[tuple[str, bool]]:
    """Each accepted number as text, and whether it came as a float. Raises VerifierInputError if it is none."""
    targets = task.target if isinstance(task.target, list | tuple) else [task.target]
    if not targets:
        raise VerifierInputError("the numeric target is an empty list; drop the task or give it an answer")
    return [(_gold(target), isinstance(target, float)) for target in targets]


def _gold(target: Any) -> str:
    if isinstance(target, bool) or not isinstance(target, str | int | float):
        raise VerifierInputError(f"a numeric target must be a number or its text, not {type(target).__name__}")
    text = str(target).strip()
    boxes = boxed_contents(text)
    text = boxes[-1] if boxes else text
    if exact_number(split_unit(tidy(text))[0]) is None:
        raise VerifierInputError(f"the numeric target {text[:60]!r} is no plain number; the math verifier takes others")
    return text


def _no_oracle(_gold: str, _answer: str) -> bool:
    return False
