"""Runs a submission's code in the sandbox on the inputs of tests, and compares what it gives outside."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from verigym.verifiers import _code_driver
from verigym.verifiers._asserts import Check
from verigym.verifiers._plain import Numbers, close, cut, equal, short
from verigym.verifiers.sandbox import Call, Job, Limits, Return, Sandbox, SandboxResult, Status
from verigym.verifiers.verdict import Outcome

Checker = Callable[[str, str, str], bool]
WALL_PER_CPU = 5.0
"""Wall seconds granted for each CPU second, so that the load of the machine does not decide."""

_NOT_PLAIN = "not a plain value"
OUTCOMES = {
    Status.ERROR: Outcome.ERROR,
    Status.MEMORY: Outcome.ERROR,
    Status.OUTPUT: Outcome.ERROR,
    Status.TIMEOUT: Outcome.TIMEOUT,
    Status.INFRA_ERROR: Outcome.INFRA_ERROR,
}
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


@dataclass(frozen=True, slots=True)
class Findings:
    """How many of the tests passed, and what there is to say of the first that did not."""

    passed: int
    total: int
    outcome: Outcome = Outcome.CORRECT
    reason: str = ""
    first: Mapping[str, str] = field(default_factory=dict)
    """Input, expected and got of the first failing test, as far as they are known."""


@dataclass(frozen=True)
class Runner:
    """Where code runs and by which rules its results are compared.

    `stop_early`: tests that run one by one end with the first that fails.
    """

    sandbox: Sandbox
    cancelled: threading.Event
    limits: Limits
    numbers: Numbers = "python"
    tolerance: float | None = None
    checker: Checker | None = None
    stop_early: bool = True

    def run(self, job: Job, answer: Callable[[Call], Return] | None = None) -> SandboxResult:
        return self.sandbox.run(job, answer=answer, cancelled=self.cancelled)

    def granting(self, cpu_seconds: float) -> Runner:
        """One that grants at least so much CPU time."""
        if cpu_seconds <= self.limits.cpu_seconds:
            return self
        wall_seconds = max(self.limits.wall_seconds, WALL_PER_CPU * cpu_seconds)
        return replace(self, limits=replace(self.limits, cpu_seconds=cpu_seconds, wall_seconds=wall_seconds))

    def equals(self, one: Any, other: Any) -> bool:
        """Whether two values are the same by the declared policy, within the tolerance if there is one."""
        if equal(one, other, self.numbers):
            return True
        return self.tolerance is not None and close(one, other, self.tolerance)


def run_checks(runner: Runner, source: str, checks: Sequence[Check]) -> Findings:
    """Makes all calls in one job, each on inputs of its own, and looks at what they return."""
    functions = [check.function or f"(lambda: {check.expression})" for check in checks]
    calls = [
        _code_driver.call(function, check.args, check.kwargs, check.driver)
        for function, check in zip(functions, checks, strict=True)
    ]
    whole = source + _code_driver.SOURCE
    result = runner.run(Job(whole, tuple(calls), limits=runner.limits, allow_nonfinite=True))
    judged = [_judge(check, returned, runner) for check, returned in zip(checks, result.returns, strict=False)]
    passed = sum(finding is None for finding in judged)
    if result.status is not Status.OK:
        test = _first_of(checks[len(judged)].text) if len(judged) < len(checks) else {}
        return failed(result, passed, len(checks), test)
    failing = [finding for finding in judged if finding is not None]
    if not failing and len(judged) == len(checks):
        return Findings(passed, len(checks))
    outcome, reason, first = failing[0] if failing else (Outcome.ERROR, "the code ended before all tests", {})
    return Findings(passed, len(checks), outcome, reason, first)


def _judge(check: Check, returned: Return, runner: Runner) -> tuple[Outcome, str, dict[str, str]] | None:
    """What is wrong with the result of one call; None if it passes."""
    first = {**_first_of(check.text), **({"expected": cut(check.expected)} if check.expected else {})}
    if not returned.ok:
        first["got"] = cut(returned.error)
        if returned.error.startswith(_NOT_PLAIN):
            return Outcome.WRONG, "a test gets what is no plain value", first
        return Outcome.ERROR, f"the code fails in a test: {one_line(returned.error)}", first
    try:
        if check.holds(returned.value, runner.equals):
            return None
    except Exception:  # the test cannot even be evaluated on this value
        pass
    return Outcome.WRONG, "a test gets another value than it expects", {**first, "got": short(returned.value)}


def run_programs(runner: Runner, source: str, tests: Sequence[tuple[str, str]]) -> Findings:
    """Runs the code as a program for each (input, output), and compares what it prints."""
    passed, worst = 0, Findings(0, len(tests))
    for given, expected in tests:
        finding = _run_program(runner, source, given, expected)
        if finding.outcome is Outcome.INFRA_ERROR:
            return finding
        passed += finding.passed
        if not finding.passed and worst.outcome is Outcome.CORRECT:
            worst = finding
        if not finding.passed and (runner.stop_early or finding.outcome is Outcome.TIMEOUT):
            break  # a program that takes all its time is not run again and again
    return Findings(passed, len(tests), worst.outcome, worst.reason, worst.first)


def _run_program(runner: Runner, source: str, given: str, expected: str) -> Findings:
    first = {"input": short(given), "expected": short(expected)}
    result = runner.run(Job(source, stdin=given.encode("utf-8", "replace"), limits=runner.limits))
    got = result.stdout.decode("utf-8", "replace")
    if result.status is not Status.OK:
        return failed(result, 0, 1, first)
    if runner.checker is not None:
        try:
            right = runner.checker(given, expected, got)
        except Exception as error:  # a checker is the user's code
            if not _works(runner.checker, given, expected):
                return Findings(0, 1, Outcome.INFRA_ERROR, f"the checker failed: {type(error).__name__}: {error}")
            right = False
    else:
        right = same_output(got, expected, runner.tolerance)
    if right:
        return Findings(1, 1)
    return Findings(0, 1, Outcome.WRONG, "a test gets another output than it expects", {**first, "got": short(got)})


def _works(checker: Checker, given: str, expected: str) -> bool:
    """Whether a checker can look at what is expected; if so, what it failed on is the output that it was given."""
    try:
        checker(given, expected, expected)
    except Exception:
        return False
    return True


def same_output(got: str, expected: str, tolerance: float | None = None) -> bool:
    """Whether two outputs are the same but for white space at the end of lines and of the text.

    With a tolerance, words that are numbers may differ by it (absolutely, or relatively where they are above 1), and
    white space between words does not count.
    """
    if _lines(got) == _lines(expected):
        return True
    if tolerance is None:
        return False
    pairs = list(zip(got.split(), expected.split(), strict=False))
    return len(got.split()) == len(expected.split()) and all(map(partial(_near, tolerance), *zip(*pairs, strict=True)))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _near(tolerance: float, got: str, expected: str) -> bool:
    if got == expected:
        return True
    if len(got) > 400 or not _NUMBER.fullmatch(got) or not _NUMBER.fullmatch(expected):
        return False
    return abs(float(got) - float(expected)) <= tolerance * max(1.0, abs(float(expected)))


def failed(result: SandboxResult, passed: int, total: int, first: Mapping[str, str]) -> Findings:
    """What a job's end says that was no good end."""
    lines = result.stderr.decode("utf-8", "replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    told = bool(last) and result.status is Status.ERROR
    reason = f"{result.reason}: {one_line(last)}" if told else result.reason
    return Findings(passed, total, OUTCOMES[result.status], reason, first)


def _first_of(text: str) -> dict[str, str]:
    return {"test": cut(text)}


def one_line(text: str) -> str:
    return cut(" ".join(text.split()), 200)
