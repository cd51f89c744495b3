"""What a code task asks for: its tests, read from a target, and the module that a submission becomes."""

from __future__ import annotations

import json
import keyword
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from verigym.tasks.errors import UnknownNameError, VerifierInputError
from verigym.tasks.task import Task
from verigym.verifiers import _code_text, _evalplus
from verigym.verifiers._asserts import Check, Equals, compile_tests, entry_point_in
from verigym.verifiers._code_proxied import TRIAL_SECONDS, ProxiedTests, refuse_untried
from verigym.verifiers._code_runs import Findings, Runner, run_checks, run_programs
from verigym.verifiers._evaluate import Unsupported
from verigym.verifiers._plain import short
from verigym.verifiers.verdict import Outcome

_SHAPES = (
    'a code target must be a text of asserts, {"asserts": ...}, {"inputs": [...], "outputs": [...]}, or '
    '{"reference": ..., "inputs": ..., "entry_point": ...}'
)
_TOO_MANY_DIGITS = (
    "a test of a function holds a whole number of more digits than Python reads: "
    "leave that test out, or raise the limit (sys.set_int_max_str_digits)"
)
_TEXTS = ("asserts", "entry_point", "fn_name", "prelude", "reference", "setup", "solution", "stub")
_FIELDS = {*_TEXTS, "inputs", "outputs", "tolerance", "wrapped"}

_passing: dict[tuple[str, str], bool] = {}  # by solution and asserts


@dataclass(frozen=True)
class Suite(ABC):
    """The tests of a task. `target` is what the task says of them and of the module around a submission."""

    target: Mapping[str, Any]

    @abstractmethod
    def judge(self, code: str, runner: Runner) -> Findings:
        """What the tests find. Raises VerifierInputError if they cannot be run on anything."""

    def expect_judgeable(self, runner: Runner) -> None:
        """Raises VerifierInputError for tests that the task's own solution must try, and on which it fails."""
        return

    @property
    def own_code(self) -> str:
        """The code of the task itself, beside its tests."""
        return self.module(str(self.target.get("solution") or self.target.get("reference") or ""))

    @property
    def entry_point(self) -> str:
        return str(self.target.get("entry_point", ""))

    def module(self, code: str) -> str:
        """The submission's module: the task's prelude, the code, the task's setup."""
        prelude, stub = (str(self.target.get(name, "")) for name in ("prelude", "stub"))
        whole = _code_text.module(code, prelude=prelude, stub=stub, entry_point=self.entry_point)
        return f"{whole}\n{self.target['setup']}\n" if self.target.get("setup") else whole


class AssertSuite(Suite):
    """Tests written as asserts: rows where they compile, else a process of their own."""

    def judge(self, code: str, runner: Runner) -> Findings:
        try:
            checks = self.checks()
        except Unsupported:
            return self._tests().run(runner, self.module(code))
        if any(check.reuses for check in checks) and not self._passes_afresh(runner, checks):
            return self._tests().run(runner, self.module(code))
        return run_checks(runner, self.module(code), checks)

    def _passes_afresh(self, runner: Runner, checks: tuple[Check, ...]) -> bool:
        """Whether the task's own solution passes where each call has fresh arguments; tried once."""
        solution = self.module(str(self.target.get("solution", "")))
        key = (solution, str(self.target["asserts"]))
        if not self.target.get("solution") or _passing.get(key):
            return True
        if key not in _passing:
            found = run_checks(runner.granting(TRIAL_SECONDS), solution, checks)
            if found.outcome is Outcome.INFRA_ERROR:
                return True  # whoever runs the code next will say so
            _passing[key] = found.outcome is Outcome.CORRECT
        return _passing[key]

    def expect_judgeable(self, runner: Runner) -> None:
        try:
            checks = self.checks()
            in_rows = not any(check.reuses for check in checks) or self._passes_afresh(runner, checks)
        except Unsupported:
            in_rows = False
        if not in_rows:
            self._tests().sharing(runner)

    def checks(self) -> tuple[Check, ...]:
        """The rows. Raises Unsupported if the tests are more than rows, VerifierInputError if there are none."""
        asserts, names = str(self.target["asserts"]), [self.entry_point] if self.entry_point else []
        checks = compile_tests(asserts, frozenset(names))
        if not checks and (names or "assert" not in asserts):
            raise VerifierInputError("the target has no tests: no assert calls the code")
        # a module without a call would be a program, whose end says nothing of the tests
        return checks or (Check("the code runs", lambda value, equals: value is None, expression="None"),)

    def _tests(self) -> ProxiedTests:
        solution = str(self.target.get("solution", ""))
        context = self.module(solution)
        return ProxiedTests(str(self.target["asserts"]), self.entry_point, context, context if solution else "")


class ReferenceSuite(Suite):
    """Inputs whose expected outputs a reference solution gives (EvalPlus)."""

    def judge(self, code: str, runner: Runner) -> Findings:
        tolerance = float(self.target.get("tolerance", 0))
        reference, inputs = str(self.target["reference"]), str(self.target["inputs"])
        expected = _evalplus.checks(runner, reference, inputs, self.entry_point, tolerance)
        if isinstance(expected, Findings):
            return expected
        return run_checks(
            runner.granting(_evalplus.CPU_FACTOR * expected.cpu_seconds), self.module(code), expected.rows
        )


class ProgramSuite(Suite):
    """Programs that read standard input and write standard output."""

    def judge(self, code: str, runner: Runner) -> Findings:
        pairs = list(zip(self.target["inputs"], self.target["outputs"], strict=True))
        return run_programs(runner, self.module(code), pairs)


class JsonSuite(Suite):
    """Calls whose arguments, a line each, and results are JSON (LiveCodeBench, APPS); tuples count as lists."""

    def judge(self, code: str, runner: Runner) -> Findings:
        name = str(self.target["fn_name"])
        method = re.search(r"^class[ \t]+Solution\b", code, re.MULTILINE)
        function = f"Solution().{name}" if method else name
        checks = [
            _json_check(function, given, output, wrapped=bool(self.target.get("wrapped")))
            for given, output in zip(self.target["inputs"], self.target["outputs"], strict=True)
        ]
        return run_checks(runner, self.module(code), checks)


def suite_of(task: Task) -> Suite:
    """The tests of a task. Raises VerifierInputError if its target is no such thing."""
    return _suite(task.target)


def public_suite_of(task: Task) -> Suite | None:
    """The tests that the agent may see: `metadata["public"]`, in the form of a target; None without any."""
    public = task.metadata.get("public")
    if not public:
        return None
    hidden = task.target if isinstance(task.target, Mapping) else {}
    shared = {
        name: hidden[name]
        for name in ("entry_point", "prelude", "setup", "solution", "stub", "wrapped")
        if name in hidden
    }
    return _suite({**shared, **({"asserts": public} if isinstance(public, str) else public)})


def _suite(target: Any) -> Suite:
    if isinstance(target, str):
        target = {"asserts": target}
    if not isinstance(target, Mapping):
        raise VerifierInputError(f"{_SHAPES}, not {short(target, 60)}")
    for name in target.keys() - _FIELDS:
        raise VerifierInputError(f"{UnknownNameError.of('field of a code target', str(name), _FIELDS)}")
    for name in _TEXTS:
        if not isinstance(target.get(name, ""), str):
            raise VerifierInputError(f"the target's {name} must be text, not {short(target[name], 60)}")
    if "asserts" in target:
        return _assert_suite(target)
    if "reference" in target and "inputs" in target and target.get("entry_point"):
        return _reference_suite(target)
    if "inputs" in target and "outputs" in target:
        return _pairs_suite(target)
    raise VerifierInputError(f"{_SHAPES}, not {short(dict(target), 60)}")


def _assert_suite(target: Mapping[str, Any]) -> Suite:
    if not target.get("entry_point"):
        target = {**target, "entry_point": entry_point_in(target["asserts"])}
    if keyword.iskeyword(target["entry_point"]):
        raise VerifierInputError(f"the target's entry_point must be a name, not '{target['entry_point']}'")
    suite = AssertSuite(target)
    try:
        suite.checks()
    except Unsupported as unsupported:
        if not suite.entry_point.isidentifier():
            raise VerifierInputError(f"{unsupported}: such tests need the function's name, entry_point") from None
        if not target.get("solution"):
            refuse_untried(target["asserts"], suite.entry_point)
    return suite


def _reference_suite(target: Mapping[str, Any]) -> Suite:
    _evalplus.inputs_in(str(target["inputs"]))
    try:
        float(target.get("tolerance", 0))
    except (TypeError, ValueError):
        raise VerifierInputError(
            f"the target's tolerance must be a number, not {short(target['tolerance'], 60)}"
        ) from None
    return ReferenceSuite(target)


def _pairs_suite(target: Mapping[str, Any]) -> Suite:
    inputs, outputs = target["inputs"], target["outputs"]
    for name, texts in (("inputs", inputs), ("outputs", outputs)):
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
            raise VerifierInputError(f"the target's {name} must be a list of texts, not {short(texts, 60)}")
    if len(inputs) != len(outputs):
        raise VerifierInputError(f"the target has {len(inputs)} inputs and {len(outputs)} outputs")
    if not target.get("fn_name"):
        return ProgramSuite(target)
    for given, output in zip(inputs, outputs, strict=True):
        _json_check("f", given, output, wrapped=False)
    return JsonSuite(target)


def _json_check(function: str, given: str, output: str, *, wrapped: bool) -> Check:
    try:
        args = tuple(json.loads(line) for line in given.split("\n") if line.strip())
        expected = json.loads(output)
    except (ValueError, RecursionError) as error:
        if "integer string conversion" in str(error):
            raise VerifierInputError(_TOO_MANY_DIGITS) from None
        raise VerifierInputError(f"a test of a function must be JSON, a line for each argument ({error})") from None
    text = f"{function}({', '.join(short(arg, 120) for arg in args)})"
    return Check(text, partial(_json_holds, expected, wrapped), short(expected), function, args)


def _json_holds(expected: Any, wrapped: bool, value: Any, equals: Equals) -> bool:
    """Whether a result is the expected value, or is it in a list of its own where the data set wraps them so."""
    value = _as_json(value)
    if equals(value, expected):
        return True
    return wrapped and isinstance(expected, list) and len(expected) > 0 and equals(value, expected[0])


def _as_json(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_json(part) for part in value]
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): _as_json(part) for key, part in value.items()}
    return value
