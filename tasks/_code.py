"""What the loaders of coding tasks share: names in Python source, doctests, and values as JSON."""

from __future__ import annotations

import ast
import doctest
import math
import re
from collections.abc import Sequence
from typing import Any


def entry_point(solution: str, test: str) -> str:
    """The function of `solution` that `test` calls, the first of them; "" if it calls none."""
    defined = set(re.findall(r"^(?:def|class)[ \t]+(\w+)", solution, re.MULTILINE))
    return next((name for name in re.findall(r"(\w+)\s*\(", test) if name in defined), "")


def before(source: str, function: str) -> str:
    """What stands before the definition of `function`: imports and helpers."""
    found = list(re.finditer(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(function)}\b", source, re.MULTILINE))
    return source[: found[-1].start()] if found else ""


def doctests(source: str, function: str) -> str:
    """The examples of a prompt that call `function` (`>>> f(1)`, and the value below) as asserts, a line each."""
    asserts = []
    try:
        examples = doctest.DocTestParser().get_examples(source)
    except ValueError:  # examples that are written in another way
        return ""
    for example in examples:
        call, value = example.source.strip(), example.want.strip()
        if f"{function}(" in call and _is_expression(call) and _is_literal(value):
            asserts.append(f"assert {call} == {value}")
    return "\n".join(asserts)


def asserts_in(text: str) -> str:
    """The lines of a prompt that are asserts."""
    lines = [line.strip() for line in text.splitlines()]
    return "\n".join(line for line in lines if line.startswith("assert "))


def tagged(value: Any) -> Any:
    """`value` as JSON that tells a tuple, a set, a dictionary, complex and infinite numbers from what JSON has.

    Each of them is an object with one key, its type's name; the sandbox's `values` read the same form.
    """
    if isinstance(value, list):
        return [tagged(part) for part in value]
    if isinstance(value, tuple | set):
        parts = sorted(value, key=repr) if isinstance(value, set) else value
        return {type(value).__name__: [tagged(part) for part in parts]}
    if isinstance(value, dict):
        return {"dict": [[tagged(key), tagged(part)] for key, part in value.items()]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def public_of(inputs: Sequence[str], outputs: Sequence[str], problem: str) -> dict[str, list[str]]:
    """The tests that stand in the problem's own text, input and output; {} if none does."""
    text = _squeezed(problem)
    shown = [
        (given, output)
        for given, output in zip(inputs, outputs, strict=True)
        if _squeezed(given) in text and _squeezed(output) in text and given.strip()
    ]
    return {"inputs": [given for given, _ in shown], "outputs": [output for _, output in shown]} if shown else {}


ALL_SHOWN = "every test stands in the problem's text, so that printing what is shown would pass"


def all_shown(inputs: Sequence[str], outputs: Sequence[str], problem: str) -> bool:
    """Whether no test is hidden from who reads the problem."""
    return len(public_of(inputs, outputs, problem).get("inputs", ())) == len(inputs)


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _is_expression(source: str) -> bool:
    try:
        ast.parse(source, mode="eval")
    except SyntaxError:
        return False
    return True


def _is_literal(source: str) -> bool:
    try:
        ast.literal_eval(source)
    except (ValueError, SyntaxError, TypeError):
        return False
    return True
