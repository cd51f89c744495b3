"""The calls of BFCL's multi-turn ground truths, which are written as Python."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from verigym.tasks.errors import TaskDataError
from verigym.tasks.worlds.bfcl import Services

MAX_SOURCE = 32_768  # characters of a call

Call = dict[str, Any]


def parse_call(text: Any) -> Call:
    """The call that a text such as `sort('notes.txt')` is; nothing in it is evaluated. Raises TaskDataError.

    Arguments without a name are the function's in the order of its document. A literal that is not of the documented
    type, but spells a value of it, is read as that: 5 as "5" for a text, 5.0 as 5 for a whole number, "5" as 5.0 for a
    number, "a" as ["a"] for a list. An argument that has a default and is None is left out.
    """
    try:
        if not isinstance(text, str) or len(text) > MAX_SOURCE:
            raise ValueError(f"it must be a text of at most {MAX_SOURCE} characters")
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("it is no call of a function by its name")
        name = call.func.id
        if name not in Services.tools():
            raise ValueError(f"there is no function {name[:40]}")
        schemas = Services.tools()[name].parameters["properties"]
        if len(call.args) > len(schemas):
            raise ValueError(f"{name} takes {len(schemas)} arguments")
        if any(word.arg is None for word in call.keywords):
            raise ValueError("its arguments must be written out")
        given = list(zip(schemas, call.args, strict=False)) + [(str(word.arg), word.value) for word in call.keywords]
        if len({argument for argument, _ in given}) < len(given):
            raise ValueError("an argument is given twice")
        values = {argument: ast.literal_eval(node) for argument, node in given}
        arguments = {
            argument: _fitted(value, schemas.get(argument, {}))
            for argument, value in values.items()
            if value is not None or "default" not in schemas.get(argument, {})
        }
        json.dumps(arguments, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise TaskDataError(f"the ground truth {str(text)[:80]!r} is not a call of literals ({error})") from error
    return {"name": name, "arguments": arguments}


def _fitted(value: Any, schema: Mapping[str, Any]) -> Any:
    kind = schema.get("type")
    if kind == "string" and isinstance(value, int | float):
        return str(value)
    if kind == "number" and isinstance(value, str):
        return _number(value)
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind == "integer" and isinstance(value, str) and value.isdecimal():
        return int(value)
    if kind == "array" and isinstance(value, str):
        value = [value]
    if isinstance(value, tuple | list):
        return [_fitted(each, schema.get("items", {})) for each in value]
    return value


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
