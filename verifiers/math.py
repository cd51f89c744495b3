r"""Verdicts on mathematical answers: `\boxed{\frac{1}{2}}` against the gold answer 0.5.

The answer is what `extract.math_answer` finds after the reasoning; what counts as equal is the policy of
`_equal`, what is refused as unevaluated that of `_restated`. Size limits are in `_guard`, time limits in
`_pool`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Literal

from verigym.tasks._boxed import boxed_contents
from verigym.tasks._pool import AnswerCrash, AnswerTimeout, Budget, Cancelled, PoolFailure
from verigym.tasks.errors import UnknownNameError, VerifierInputError
from verigym.tasks.task import Task
from verigym.verifiers import _guard, _pool
from verigym.verifiers._equal import Rules, equal
from verigym.verifiers._latex import canonical, fold_unicode
from verigym.verifiers._numbers import Tolerance
from verigym.verifiers._restated import restated
from verigym.verifiers._units import drop_prompt_unit
from verigym.verifiers.extract import answer_text, math_answer
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier

_EXTRACT = ("boxed", "latex")
_UNITS = ("optional", "required")
MAX_KNOWN, MAX_KNOWN_LENGTH = 20_000, 300
_PERCENT = ("either", "strict")


class _NeedsWorker(Exception):  # noqa: N818 - control flow: the rules alone do not decide
    """Raised instead of asking a worker."""


class MathVerifier(Verifier):
    r"""1 if the final answer of the text equals the task's target, else 0.

    `task.target` is a string (LaTeX or plain, `$...$` and `\boxed{...}` around it are taken off), a number,
    or a list of these: any of several accepted answers. `task.metadata["tolerance"]`, if it is there, is how far
    a number may be from the gold answer. Workers are shared by all instances, and start on first use.

    - `extract="latex"` also takes the last LaTeX span of a text without a box or "the answer is", wherever it stands;
    - `units="required"` asks for the unit of the gold answer where it has one; by default it may be missing;
    - `percent="strict"` takes `10\%` for 0.1 and not for 10; by default it is either.

    Raises VerifierInputError from `verify` for a target that is empty or of another type, or a wrong tolerance.
    """

    def __init__(
        self,
        *,
        extract: Literal["boxed", "latex"] = "boxed",
        units: Literal["optional", "required"] = "optional",
        percent: Literal["either", "strict"] = "either",
    ) -> None:
        for kind, value, known in (
            ("way to extract answers", extract, _EXTRACT),
            ("way to treat units", units, _UNITS),
            ("way to read percentages", percent, _PERCENT),
        ):
            if value not in known:
                raise UnknownNameError.of(kind, str(value), known)
        self._latex = extract == "latex"
        self._units, self._strict_percent = units == "required", percent == "strict"
        self._closed = threading.Event()

    def verify(self, submission: Submission, task: Task) -> Verdict:
        return self._judge(submission, task, workers=True)

    def verify_many(self, pairs: Sequence[tuple[Submission, Task]]) -> list[Verdict]:
        """The verdicts in order; answers that need a worker are spread over the pool."""
        verdicts: list[Verdict | None] = []
        for submission, task in pairs:
            try:
                verdicts.append(self._judge(submission, task, workers=False))
            except _NeedsWorker:
                verdicts.append(None)
        with ThreadPoolExecutor(max_workers=_pool.shared_pool().size) as threads:
            open_pairs = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is None]
            judged = iter(list(threads.map(lambda pair: self.verify(*pair), open_pairs)))
        return [verdict if verdict is not None else next(judged) for verdict in verdicts]

    def golds(self, task: Task) -> list[str]:
        return [f"\\boxed{{{gold.text}}}" for gold in _golds(task.target)]

    def close(self) -> None:
        """Ends the waits of calls in flight, which return an INFRA_ERROR; the pool goes on for others."""
        self._closed.set()

    def _judge(self, submission: Submission, task: Task, *, workers: bool) -> Verdict:
        golds, tolerance = _golds(task.target), _tolerance(task)
        text = answer_text(submission.text)
        if text is None:
            return _verdict(Outcome.UNPARSEABLE, "the reasoning never ends: a <think> without its </think>")
        found = math_answer(text, latex=self._latex)
        if found.answer is None:
            return _verdict(Outcome.UNPARSEABLE, found.reason)
        if why := _guard.too_long(found.answer):
            return _verdict(Outcome.UNPARSEABLE, why)
        details = {"answer": found.answer, "gold": task.target}
        if self._closed.is_set():
            return Verdict.infra_error("the verifier was closed", **details)
        try:
            return self._compare(golds, found.answer, task, details, self._rules(tolerance, task.prompt, workers))
        except AnswerTimeout:
            why = f"comparing the answer took more than {_pool.CPU_SECONDS:g} s of CPU time"
            return _verdict(Outcome.TIMEOUT, why, details)
        except AnswerCrash as error:
            return _verdict(Outcome.ERROR, str(error), details)
        except Cancelled:
            return Verdict.infra_error("the verifier was closed", **details)
        except (PoolFailure, OSError) as error:
            return Verdict.infra_error(f"no worker could compare the answer: {error}", **details)

    def _rules(self, tolerance: Tolerance | None, prompt: str, workers: bool) -> _RulesOf:
        """The rules for one answer, whose comparisons share its budget, by gold answer."""
        budget = Budget(self._closed, _pool.CPU_SECONDS)
        bound = float(tolerance.absolute) if tolerance else None

        def near(gold: str, given: str, within: float | None) -> bool:
            return _equal_by_worker(_pool.Question(gold, given, within), budget, workers)

        def oracle(gold: str, given: str) -> bool:
            return near(gold, given, bound)

        return lambda gold: Rules(oracle, tolerance, gold.is_float, self._units, self._strict_percent, prompt, near)

    def _compare(
        self,
        golds: tuple[_Gold, ...],
        answer: str,
        task: Task,
        details: dict[str, Any],
        rules: Callable[[_Gold], Rules],
    ) -> Verdict:
        if not any(canonical(gold.text) == canonical(answer) for gold in golds):
            folded = fold_unicode(answer)
            if why := restated(folded, [gold.text for gold in golds], task.prompt):
                return _verdict(Outcome.WRONG, why, details)
            if why := _guard.too_large(folded):
                return _verdict(Outcome.TIMEOUT, why, details)
        if not self._units:
            answer = drop_prompt_unit(answer, task.prompt)
        texts = [gold.text if self._units else drop_prompt_unit(gold.text, task.prompt) for gold in golds]
        matches = (equal(text, answer, rules(gold)) for text, gold in zip(texts, golds, strict=True))
        if any(matches):
            return _verdict(Outcome.CORRECT, "the answer equals the gold answer", details)
        return _verdict(Outcome.WRONG, f"the answer {_shown(answer)} does not equal the gold answer", details)


class _Gold:
    """One accepted answer as text, and whether it came as a float."""

    __slots__ = ("is_float", "text")

    def __init__(self, target: Any) -> None:
        self.is_float = isinstance(target, float)
        if isinstance(target, float) and target.is_integer():
            target = int(target)
        text = str(target).strip()
        boxes = boxed_contents(text)
        self.text = boxes[-1] if boxes else text


_RulesOf = Callable[[_Gold], Rules]


def _golds(target: Any) -> tuple[_Gold, ...]:
    """The accepted answers. Raises VerifierInputError if there is none."""
    options = target if isinstance(target, list | tuple) else [target]
    for option in options:
        if isinstance(option, bool) or not isinstance(option, str | int | float):
            raise VerifierInputError(f"a math target must be a string or a number, not {type(option).__name__}")
        if isinstance(option, float) and not math.isfinite(option):
            raise VerifierInputError(f"a math target must be a finite number, not {option}")
    golds = tuple(gold for gold in map(_gold, map(type, options), options) if canonical(gold.text))
    if not golds:
        raise VerifierInputError("the math target is empty; drop the task or give it an answer")
    return golds


@lru_cache(maxsize=8192)
def _gold(_kind: type, target: Any) -> _Gold:  # the type is part of the key: 2 and 2.0 are one to a cache
    return _Gold(target)


def _tolerance(task: Task) -> Tolerance | None:
    """The task's own tolerance. Raises VerifierInputError if it is none."""
    bound = task.metadata.get("tolerance")
    try:
        return None if bound is None else Tolerance.of(bound)
    except ValueError as error:
        raise VerifierInputError(f"the tolerance of task '{task.id}' {error}") from error


def _equal_by_worker(question: _pool.Question, budget: Budget, workers: bool) -> bool:
    known = _known.get(question)
    if known is None:
        if not workers:
            raise _NeedsWorker
        known = _pool.equal(question, budget)
        if len(_known) >= MAX_KNOWN:
            _known.clear()
        if len(question.answer) <= MAX_KNOWN_LENGTH:
            _known[question] = known
    return known


_known: dict[_pool.Question, bool] = {}  # a group of episodes repeats its answers


def _shown(answer: str) -> str:
    text = answer if len(answer) <= 60 else answer[:57] + "..."
    return repr(text)


def _verdict(outcome: Outcome, reason: str, details: dict[str, Any] | None = None) -> Verdict:
    return Verdict(1.0 if outcome is Outcome.CORRECT else 0.0, outcome, reason, details=details or {})
