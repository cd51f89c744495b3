"""EvalPlus's tests: inputs without outputs; what a reference solution returns on them is expected."""

from __future__ import annotations

import ast
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from verigym.tasks.errors import VerifierInputError
from verigym.verifiers._asserts import Check, Equals, evalplus_equal
from verigym.verifiers._code_runs import Findings, Runner
from verigym.verifiers._evaluate import Evaluator, Unsupported
from verigym.verifiers._plain import equal, short
from verigym.verifiers.sandbox import Call, Job, Status
from verigym.verifiers.verdict import Outcome

REFERENCE_SECONDS = 60.0
MAX_OUTPUT_BYTES = 16 << 20
_CAPACITY = 2048

# functions of MBPP whose results are compared in their own way, as EvalPlus does
_AS_SETS = {
    "similar_elements",
    "find_char_long",
    "common_in_nested_lists",
    "extract_singly",
    "larg_nnum",
    "intersection_array",
    "find_dissimilar",
    "Diff",
}
_NOT_NONE = {"check_str", "text_match_three", "text_starta_endb"}

_expected: OrderedDict[tuple[str, str, str], tuple[Any, ...]] = OrderedDict()
_lock = threading.Lock()


@lru_cache(maxsize=_CAPACITY)
def inputs_in(text: str) -> tuple[tuple[Any, ...], ...]:
    """The arguments of each call, from a list of lists as Python writes it. Raises VerifierInputError."""
    try:
        inputs = Evaluator({})(ast.parse(text, mode="eval").body)
        return tuple(tuple(args) for args in inputs)
    except (Unsupported, SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise VerifierInputError(f"the inputs of the task are no list of arguments: {short(str(error))}") from error


def checks(runner: Runner, reference: str, inputs: str, entry_point: str, tolerance: float) -> list[Check] | Findings:
    """A row for each input, or our failure to run the reference. Raises VerifierInputError if it fails itself."""
    calls = inputs_in(inputs)
    expected = _outputs(runner, reference, inputs, entry_point)
    if isinstance(expected, Findings):
        return expected
    return [
        Check(
            f"{entry_point}({', '.join(short(arg, 80) for arg in args)})",
            partial(_holds, entry_point, args, output, tolerance),
            short(output),
            entry_point,
            args,
        )
        for args, output in zip(calls, expected, strict=True)
    ]


def _outputs(runner: Runner, reference: str, inputs: str, entry_point: str) -> tuple[Any, ...] | Findings:
    """What the reference returns, in a job of its own; kept, as it is the same for every submission."""
    key = (reference, inputs, entry_point)
    with _lock:
        if key in _expected:
            _expected.move_to_end(key)
            return _expected[key]
    outputs = _run_reference(runner, *key)
    if not isinstance(outputs, Findings):
        with _lock:
            _expected[key] = outputs
            while len(_expected) > _CAPACITY:
                _expected.popitem(last=False)
    return outputs


def _run_reference(runner: Runner, reference: str, inputs: str, entry_point: str) -> tuple[Any, ...] | Findings:
    limits = replace(
        runner.limits,
        cpu_seconds=max(REFERENCE_SECONDS, runner.limits.cpu_seconds),
        wall_seconds=max(2 * REFERENCE_SECONDS, runner.limits.wall_seconds),
        output_bytes=max(MAX_OUTPUT_BYTES, runner.limits.output_bytes),
    )
    calls = tuple(Call(entry_point, args) for args in inputs_in(inputs))
    result = runner.run(Job(reference, calls, limits=limits, allow_nonfinite=True))
    if result.status is Status.INFRA_ERROR:
        return Findings(0, len(calls), Outcome.INFRA_ERROR, result.reason)
    failed = next((returned.error for returned in result.returns if not returned.ok), "")
    if result.status is not Status.OK or failed:
        raise VerifierInputError(f"the reference solution fails on its own inputs: {short(failed or result.reason)}")
    return tuple(_expected_of(entry_point, returned.value) for returned in result.returns)


def _expected_of(entry_point: str, value: Any) -> Any:
    return value is not None if entry_point in _NOT_NONE and not isinstance(value, bool) else value


def _holds(entry_point: str, args: Sequence[Any], expected: Any, tolerance: float, value: Any, equals: Equals) -> bool:
    """Whether a result is right; the exceptions, by the function's name, are those of EvalPlus (0.3).

    Two are left out, as they take a constant for right: any result of `are_equivalent`, and 0 of `sum_div`.
    """
    if entry_point == "find_zero":
        return abs(sum(factor * math.pow(value, power) for power, factor in enumerate(args[0]))) <= tolerance
    if entry_point in _AS_SETS:
        return equal(set(value), set(expected))
    if entry_point in _NOT_NONE:
        return equal(value if isinstance(value, bool) else value is not None, expected)
    if entry_point == "surface_Area" and abs(value - _surface(*args)) <= tolerance:
        return True
    if entry_point == "digit_distance_nums" and equal(value, _digit_distance(*args)):
        return True
    return evalplus_equal(value, expected, tolerance, equals)


def _surface(base: float, height: float) -> int:
    """The surface of a pyramid with a square base, with `height` from the base to the apex."""
    return round(base**2 + 2 * base * math.hypot(base / 2, height))


def _digit_distance(one: int, other: int) -> int:
    """The sum of the differences of digits, the numbers being written with equally many."""
    digits = [str(one), str(other)]
    width = max(map(len, digits))
    return sum(abs(int(a) - int(b)) for a, b in zip(*(text.zfill(width) for text in digits), strict=True))
