"""EvalPlus's tests: inputs without outputs; what a reference solution returns on them is expected."""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

from verigym.tasks.errors import VerifierInputError
from verigym.verifiers import _code_driver
from verigym.verifiers._asserts import Check, Equals, evalplus_equal
from verigym.verifiers._code_driver import PRESENCE, TIMED, VALUE
from verigym.verifiers._code_runs import Findings, Runner
from verigym.verifiers._plain import equal, refuse_colliding, short
from verigym.verifiers.sandbox import Call, Job, Status, values
from verigym.verifiers.verdict import Outcome

REFERENCE_SECONDS = 60.0
CPU_FACTOR = 3.0
"""A submission may take so many times the reference's CPU time, where that is more than the limit."""
_CAPACITY = 2048
_MOST_JOBS = 20

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


@dataclass(frozen=True, slots=True)
class Reference:
    """What a reference solution returned, as rows, and the CPU time that it took for all of them.

    Left out are inputs on which it takes more than a second, or returns what is no plain value or too long a one.
    """

    rows: tuple[Check, ...]
    cpu_seconds: float


_references: OrderedDict[tuple[str, str, str, float], Reference] = OrderedDict()
_lock = threading.Lock()


@lru_cache(maxsize=_CAPACITY)
def inputs_in(text: str) -> tuple[tuple[Any, ...], ...]:
    """The arguments of each call, from JSON of a list of lists (see `values`). Raises VerifierInputError."""
    try:
        inputs = values.decode(json.loads(text), allow_nonfinite=True)
        return tuple(tuple(args) for args in inputs)
    except (ValueError, TypeError, RecursionError) as error:
        raise VerifierInputError(f"the inputs of the task are no list of arguments: {short(str(error))}") from error


def checks(runner: Runner, reference: str, inputs: str, entry_point: str, tolerance: float) -> Reference | Findings:
    """A row for each input, or our failure to run the reference. Raises VerifierInputError if it fails itself.

    The reference runs in a job of its own, once for all submissions.
    """
    key = (reference, inputs, entry_point, tolerance)
    with _lock:
        if key in _references:
            _references.move_to_end(key)
            return _references[key]
    found = _run_reference(runner, *key)
    if isinstance(found, Reference):
        with _lock:
            _references[key] = found
            while len(_references) > _CAPACITY:
                _references.popitem(last=False)
    return found


def _run_reference(
    runner: Runner, reference: str, inputs: str, entry_point: str, tolerance: float
) -> Reference | Findings:
    """Calls the reference on all inputs; a call that ends its job is left out, and the rest goes into another one."""
    limits = replace(runner.limits, cpu_seconds=REFERENCE_SECONDS, wall_seconds=2 * REFERENCE_SECONDS)
    source = reference + _code_driver.SOURCE + _code_driver.TIMED_SOURCE
    driver = PRESENCE if entry_point in _NOT_NONE else VALUE
    left, rows, failed, seconds = list(inputs_in(inputs)), [], "", 0.0
    for _ in range(_MOST_JOBS):
        calls = tuple(Call(TIMED, (driver, entry_point, *args)) for args in left)
        result = runner.run(Job(source, calls, limits=limits, allow_nonfinite=True))
        if result.status is Status.INFRA_ERROR:
            return Findings(0, len(left), Outcome.INFRA_ERROR, result.reason)
        seconds += result.cpu_seconds
        for args, returned in zip(left, result.returns, strict=False):
            failed = failed or returned.error
            if returned.ok:
                rows.append(_check(entry_point, args, returned.value, tolerance, driver))
        left = left[len(result.returns) + 1 :]
        if result.status is Status.OK:
            break
        failed = failed or result.reason
        if not left:
            break
    if not rows:
        raise VerifierInputError(f"the reference solution fails on its own inputs: {short(failed)}")
    return Reference(tuple(rows), seconds)


def _check(entry_point: str, args: tuple[Any, ...], output: Any, tolerance: float, driver: str) -> Check:
    text = f"{entry_point}({', '.join(short(arg, 80) for arg in args)})"
    holds = partial(_holds, entry_point, args, output, tolerance)
    return Check(text, holds, short(output), entry_point, args, driver=driver)


def _holds(entry_point: str, args: Sequence[Any], expected: Any, tolerance: float, value: Any, equals: Equals) -> bool:
    """Whether a result is right; the exceptions, by the function's name, are those of EvalPlus (0.3).

    Two are left out, as they take a constant for right: any result of `are_equivalent`, and 0 of `sum_div`.
    """
    if entry_point == "find_zero":
        return bool(abs(sum(factor * math.pow(value, power) for power, factor in enumerate(args[0]))) <= tolerance)
    if entry_point in _AS_SETS:
        return equal(set(refuse_colliding(value)), set(expected))
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
