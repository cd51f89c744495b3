"""Calls compared with those that a row asks for, exactly: `policy="strict"` of the call match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verigym.tasks._function_docs import (
    JSON_TYPE,
    OMIT,
    AskedCall,
    Doc,
    find_doc,
    may_be_empty,
    properties,
    required,
)
from verigym.tasks.canonical import ToolCall

_NO_SCHEMA: Mapping[str, Any] = {}


def problem(calls: Sequence[ToolCall], asked: Sequence[AskedCall], docs: Sequence[Doc]) -> str:
    """Why the calls are not those that are asked for, in whatever order; "" if they are."""
    if len(calls) != len(asked):
        return f"it makes {len(calls)} calls where {len(asked)} are asked for"
    problems = [[_call_problem(made, call, docs) for made in calls] for call in asked]
    if len(asked) == 1:
        return problems[0][0]
    return "" if _assignable([[not found for found in row] for row in problems]) else _unmatched(calls, problems)


def _unmatched(calls: Sequence[ToolCall], problems: Sequence[Sequence[str]]) -> str:
    for index, made in enumerate(calls):
        if all(row[index] for row in problems):
            return f"its call {index + 1}, of '{made.name[:80]}', is none of those that are asked for"
    return "two of its calls are one and the same of those that are asked for"


def _assignable(fits: Sequence[Sequence[bool]]) -> bool:
    """Whether each row can have a column of its own that fits it (augmenting paths)."""
    owner: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, fit in enumerate(fits[row]):
            if fit and column not in tried:
                tried.add(column)
                if column not in owner or place(owner[column], tried):
                    owner[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(fits)))


def _call_problem(made: ToolCall, asked: AskedCall, docs: Sequence[Doc]) -> str:
    doc = find_doc(docs, asked.name)
    if doc is None or made.name != asked.name:
        return f"it calls '{made.name[:80]}', which is not asked for"
    schemas = properties(doc)
    for name, value in made.arguments.items():
        if name not in schemas or name not in asked.allowed:
            return f"the argument '{name[:80]}' is not expected"
        allowed = asked.allowed[name]
        if not any(_same(value, answer, _inner(schemas, name)) and _is_value(answer, name, doc) for answer in allowed):
            return f"the argument '{name}' has a value that is not allowed"
    for name, allowed in asked.allowed.items():
        if name not in made.arguments and (OMIT not in allowed or name in required(doc)):
            return f"the argument '{name}' is missing"
    return ""


def _is_value(answer: Any, name: str, doc: Doc) -> bool:
    return answer != OMIT or may_be_empty(name, doc)


def _same(value: Any, answer: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value is the allowed one: an object's keys each list what is allowed for them."""
    if isinstance(answer, dict):
        return isinstance(value, dict) and _same_object(value, answer, _inner(schema, "properties"))
    if isinstance(answer, list):
        return _same_list(value, answer, schema, _same)
    return _equal(value, answer, schema)


def _same_object(value: Mapping[str, Any], answer: Mapping[str, Any], schemas: Mapping[str, Any]) -> bool:
    for key, given in value.items():
        options = answer.get(key, ())
        options = options if isinstance(options, list) else [options]
        if not any(option != OMIT and _equal(given, option, _inner(schemas, key)) for option in options):
            return False
    return all(key in value or (isinstance(options, list) and OMIT in options) for key, options in answer.items())


def _same_list(value: Any, answer: Sequence[Any], schema: Mapping[str, Any], same: Any) -> bool:
    if not isinstance(value, list) or len(value) != len(answer):
        return False
    inner = _inner(schema, "items")
    return all(same(given, wanted, inner) for given, wanted in zip(value, answer, strict=True))


def _equal(value: Any, answer: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a value is this plain one: of its type, or of the schema's where both are numbers."""
    if isinstance(answer, list):
        return _same_list(value, answer, schema, _equal)
    if isinstance(answer, dict):
        inner = _inner(schema, "properties")
        return (
            isinstance(value, dict)
            and value.keys() == answer.keys()
            and all(_equal(value[key], wanted, _inner(inner, key)) for key, wanted in answer.items())
        )
    if type(value) is type(answer):
        return bool(value == answer)
    numbers = type(value) in (int, float) and type(answer) in (int, float)
    return numbers and value == answer and _is_number(value, schema)


def _inner(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The schema in a schema; an empty one if there is none."""
    found = schema.get(key)
    return found if isinstance(found, dict) else _NO_SCHEMA


def _is_number(value: float, schema: Mapping[str, Any]) -> bool:
    """Whether the schema takes a number of this type, whatever the type of the one that is listed."""
    kind = JSON_TYPE.get(str(schema.get("type")))
    return kind == "number" or (kind == "integer" and type(value) is int)
