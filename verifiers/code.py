"""Verdicts on Python code: a submission is run on the inputs of tests in a sandbox, and judged outside of it."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

from verigym.tasks._rows import is_unicode
from verigym.tasks.errors import ConfigError
from verigym.tasks.task import Task
from verigym.verifiers._code_libraries import refuse_missing
from verigym.verifiers._code_runs import WALL_PER_CPU, Checker, Findings, Runner
from verigym.verifiers._code_suites import Suite, public_suite_of, suite_of
from verigym.verifiers._code_text import code_in, fenced
from verigym.verifiers._plain import NUMBERS
from verigym.verifiers.sandbox import Limits, Sandbox, shared
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier

MAX_LENGTH = 500_000  # characters of code
REWARDS = {"all": "all_passed", "fraction": "fraction_passed"}
_DEFAULT = Limits()


class CodeVerifier(Verifier):
    """1 if the code passes all tests of the task, else 0.

    The code is the last fenced block after the reasoning. It runs in the sandbox and is given the inputs of tests
    only; what it returns or prints is compared outside. The target's forms, and what is equal, are told in
    docs/verifiers.md.

    Args:
        sandbox: a Sandbox, or the name of one: "auto" (the strongest that isolates), "docker", "bubblewrap", "process".
        allow_unsafe: take a sandbox that does not isolate; training refuses such a verifier.
        reward: "all" or nothing, or the "fraction" of tests passed.
        numbers: "python" compares numbers as Python's `==` does (1, 1.0 and True are one), "strict" by type, too.
        tolerance: how far numbers may be from the expected ones; None for not at all.
        checker: `(input, expected, got) -> bool` for programs, or "module:function" of one, instead of comparing.
        cpu_seconds: CPU time of the calls of one submission, or of a program on one input.
        wall_seconds: the time that they may take in all; default: five times the CPU time, and at least 20 s, so that
            the load of the machine does not decide.
        memory_bytes: memory of the submission's processes.

    Raises ConfigError for an option's value, SandboxError if the sandbox does not work here.
    """

    def __init__(
        self,
        *,
        sandbox: Sandbox | str = "auto",
        allow_unsafe: bool = False,
        reward: str = "all",
        numbers: str = "python",
        tolerance: float | None = None,
        checker: Checker | str | None = None,
        cpu_seconds: float = _DEFAULT.cpu_seconds,
        wall_seconds: float | None = None,
        memory_bytes: int = _DEFAULT.memory_bytes,
    ) -> None:
        _expect("reward", reward, list(REWARDS))
        _expect("numbers", numbers, list(NUMBERS))
        if tolerance is not None and not (type(tolerance) in (int, float) and 0 <= tolerance < math.inf):
            raise ConfigError(f"tolerance must be a number from 0 on, not {tolerance!r}")
        self._closed = threading.Event()
        self._reward = reward
        self._sandbox = shared(sandbox, allow_unsafe=allow_unsafe) if isinstance(sandbox, str) else sandbox
        if not self._sandbox.isolated and not allow_unsafe:
            raise ConfigError(f"sandbox '{self._sandbox.name}' does not isolate: it needs allow_unsafe=True")
        self._runner = Runner(
            self._sandbox,
            self._closed,
            _limits(cpu_seconds, wall_seconds, memory_bytes),
            numbers,  # type: ignore[arg-type]
            tolerance,
            _resolve(checker) if isinstance(checker, str) else checker,
            stop_early=reward == "all",
        )

    @property
    def isolated(self) -> bool:
        return self._sandbox.isolated

    def verify(self, submission: Submission, task: Task) -> Verdict:
        suite = suite_of(task)
        code, refusal = _code_of(submission.text)
        if refusal is not None:
            return self._verdict(refusal)
        return self._verdict(self._judge(suite, code))

    def verify_many(self, pairs: Sequence[tuple[Submission, Task]]) -> list[Verdict]:
        """The verdicts in order; the sandbox's workers share the work."""
        threads = min(len(pairs), 2 * (os.cpu_count() or 1))
        if threads < 2:
            return super().verify_many(pairs)
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda pair: self.verify(*pair), pairs))

    def golds(self, task: Task) -> list[str]:
        """The solution that the data set names, in a block; none if it names none."""
        suite = suite_of(task)
        refuse_missing(suite.own_code, self._runner)
        suite.expect_judgeable(self._runner)
        solution = suite.target.get("solution")
        return [fenced(solution)] if solution else []

    def feedback(self, submission: Submission, task: Task) -> str | None:
        """The first public test that fails, with input, expected and got; None if all pass or there are none."""
        suite = public_suite_of(task)
        if suite is None:
            return None
        code, refusal = _code_of(submission.text)
        findings = refusal or self._judge(suite, code)
        if findings.outcome in (Outcome.CORRECT, Outcome.INFRA_ERROR):
            return None
        return _told(findings)

    def close(self) -> None:
        self._closed.set()

    def _judge(self, suite: Suite, code: str) -> Findings:
        refuse_missing(suite.own_code, self._runner)
        return suite.judge(code, self._runner)

    def _verdict(self, findings: Findings) -> Verdict:
        details = {**findings.first, "passed": findings.passed, "tests": findings.total}
        if findings.outcome is Outcome.INFRA_ERROR:
            return Verdict.infra_error(findings.reason, **details)
        correct = findings.outcome is Outcome.CORRECT
        share = findings.passed / findings.total if findings.total else 0.0
        reward = share if self._reward == "fraction" and not correct else float(correct)
        reason = "all tests pass" if correct else findings.reason
        return Verdict(reward, findings.outcome, reason, {REWARDS[self._reward]: reward}, details)


def _limits(cpu_seconds: float, wall_seconds: float | None, memory_bytes: int) -> Limits:
    """The limits of a job. Raises ConfigError for what is no number above 0."""
    given = {"cpu_seconds": cpu_seconds, "wall_seconds": wall_seconds, "memory_bytes": memory_bytes}
    for name, limit in given.items():
        if limit is not None and (type(limit) not in (int, float) or not 0 < limit < math.inf):
            raise ConfigError(f"{name} must be a number above 0, not {limit!r}")
    if wall_seconds is None:
        wall_seconds = max(_DEFAULT.wall_seconds, WALL_PER_CPU * cpu_seconds)
    return Limits(cpu_seconds, wall_seconds, int(memory_bytes))


def _code_of(text: str) -> tuple[str, Findings | None]:
    """The code of a submission, or why there is none to run."""
    found = code_in(text)
    if found.answer is None:
        return "", Findings(0, 0, Outcome.UNPARSEABLE, found.reason)
    if len(found.answer) > MAX_LENGTH:
        return "", Findings(0, 0, Outcome.ERROR, f"the code is longer than {MAX_LENGTH} characters")
    if not is_unicode(found.answer) or "\0" in found.answer:
        return "", Findings(0, 0, Outcome.ERROR, "the code is no text that Python can read: a NUL or half a character")
    return found.answer, None


def _told(findings: Findings) -> str:
    """What the agent is told of a failing public test."""
    lines = [f"{name}: {value}" for name, value in findings.first.items()]
    return "\n".join([f"A public test fails: {findings.reason}.", *lines, "", "Correct the code."])


def _expect(option: str, value: str, known: list[str]) -> None:
    if value not in known:
        raise ConfigError(f"{option} must be one of {', '.join(known)}, not {value!r}")


def _resolve(path: str) -> Callable[..., Any]:
    module, _, attribute = path.partition(":")
    try:
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"the checker '{path}' must name a function as module:function ({error})") from error
    if not callable(function):
        raise ConfigError(f"the checker '{path}' is no function")
    return function  # type: ignore[no-any-return]
