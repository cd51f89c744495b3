"""The rules of BFCL's own checker, lax as they are: `policy="bfcl"` of the call match.

Its verdicts are those of the checker's version 4 (`ast_checker`), which are wider than they look:

- texts are compared in lower case and without spaces and `,./-_*^`: "1.5" is "15", "/a/b" is "ab";
- a value of the type of the first allowed value passes whatever the schema says ("a variable");
- inside objects and lists of objects nothing has a type: true is 1, 1.0 is 1;
- calls are assigned greedily, in the order of the ground truth;
- where a document or a ground truth makes the checker itself fail, nothing is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from verigym.tasks._function_docs import OMIT, AskedCall, Doc, find_doc, language, properties, required
from verigym.tasks.canonical import ToolCall
from verigym.verifiers._source_values import java_value, javascript_value

_PYTHON: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
_JAVA: dict[str, type] = {
    **dict.fromkeys(("byte", "short", "integer", "long"), int),
    **dict.fromkeys(("float", "double"), float),
    **dict.fromkeys(("char", "String", "any"), str),
    **dict.fromkeys(("Array", "ArrayList", "Queue", "Stack"), list),
    **dict.fromkeys(("HashMap", "Hashtable"), dict),
    "boolean": bool,
    "Set": set,
}
_JAVASCRIPT: dict[str, type] = {
    **dict.fromkeys(("integer", "Bigint"), int),
    **dict.fromkeys(("String", "any"), str),
    "float": float,
    "Boolean": bool,
    "dict": dict,
    "array": list,
}
_TYPES = {"python": _PYTHON, "java": _JAVA, "javascript": _JAVASCRIPT}
_NESTED = {"python": ("array", "tuple"), "java": ("Array", "ArrayList", "array"), "javascript": ("array",)}
_SOURCES: dict[str, Callable[..., Any]] = {"java": java_value, "javascript": javascript_value}
_IGNORED = str.maketrans("'", '"', " ,./-_*^")
_FAILURES = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)


def problem(calls: Sequence[ToolCall], asked: Sequence[AskedCall], docs: Sequence[Doc], spoken: str | None) -> str:
    """Why BFCL's checker would not accept the calls; "" if it would.

    `spoken` is the language of the functions; None tells it from the types in their documents.
    """
    if len(calls) != len(asked):
        return f"it makes {len(calls)} calls where {len(asked)} are asked for"
    spoken = spoken or language(docs)
    try:
        if len(asked) == 1:
            doc = docs[0] if len(docs) == 1 else find_doc(docs, asked[0].name)
            return _call_problem(calls[0], asked[0], doc, spoken)
        return _unordered_problem(calls, asked, docs, spoken)
    except _FAILURES:
        return "the official checker itself fails on it"


def _unordered_problem(calls: Sequence[ToolCall], asked: Sequence[AskedCall], docs: Sequence[Doc], spoken: str) -> str:
    left = list(calls)
    for call in asked:
        doc = find_doc(docs, call.name)
        fits = (index for index, made in enumerate(left) if not _call_problem(made, call, doc, spoken))
        index = next(fits, None)  # those behind the first that fits are not looked at
        if index is None:
            return "no call made is one of those that are asked for"
        del left[index]
    return ""


def _call_problem(made: ToolCall, asked: AskedCall, doc: Doc | None, spoken: str) -> str:
    if doc is None or made.name != doc["name"]:
        return f"it calls '{made.name[:80]}', which is not asked for"
    return _arguments_problem(made.arguments, asked.allowed, doc, spoken)


def _arguments_problem(given: Mapping[str, Any], allowed: Mapping[str, Any], doc: Doc, spoken: str) -> str:
    for name in required(doc):
        if name not in given:
            return f"the argument '{name}' is missing"
    for name, value in given.items():
        if name not in properties(doc) or name not in allowed:
            return f"the argument '{name[:80]}' is not expected"
        if not _fits(value, allowed[name], properties(doc)[name], spoken):
            return f"the argument '{name}' has a value that is not allowed"
    for name, values in allowed.items():
        if name not in given and OMIT not in values:
            return f"the argument '{name}' is missing"
    return ""


def _fits(value: Any, allowed: Sequence[Any], schema: Mapping[str, Any], spoken: str) -> bool:
    """Whether a value passes the check of its type, and then the check of its value."""
    types, declared = _TYPES[spoken], schema["type"]
    kind, inner = types[declared], None
    if declared in _NESTED[spoken]:
        inner = types[schema["items"]["type"]]
    if spoken == "python" and declared == "float" and type(value) is int:
        value = float(value)
    elif spoken in _SOURCES and isinstance(value, str):  # a value that is no text stands for what its text would be
        value = _SOURCES[spoken](value, declared, schema["items"]["type"] if inner is not None else None)
    typed, variable = _typed(value, allowed, kind, inner)
    return typed and (value in allowed if variable else _equal(value, allowed, kind, inner))


def _typed(value: Any, allowed: Sequence[Any], kind: type, inner: type | None) -> tuple[bool, bool]:
    """Whether the value has the type asked for, and whether it counts as a variable."""
    first: type | None = next((type(answer) for answer in allowed if answer != OMIT), None)
    variable = first is not None and first is not kind
    if type(value) is kind:
        return inner is None or any(_typed_inside(value, answer, inner) for answer in allowed), variable
    return type(value) is first, True


def _typed_inside(values: Any, answer: Any, inner: type) -> bool:
    return type(answer) is not list or all(_typed(value, answer, inner, None)[0] for value in values)


def _equal(value: Any, allowed: Sequence[Any], kind: type, inner: type | None) -> bool:
    if kind is dict:
        return any(_same_object(value, answer) for answer in allowed if answer != OMIT)
    if kind is list and inner is dict:
        return any(_same_objects(value, answers) for answers in allowed)
    if kind is str:
        return _plain(value) in [_plain(answer) for answer in allowed if isinstance(answer, str)]
    if kind is list:
        return _plain_all(value) in [_plain_all(answer) for answer in allowed]
    return value in allowed


def _same_objects(values: Sequence[Any], answers: Sequence[Any]) -> bool:
    pairs = zip(values, answers, strict=False)
    return len(values) == len(answers) and all(
        answer != OMIT and _same_object(value, answer) for value, answer in pairs
    )


def _same_object(value: Mapping[str, Any], answer: Mapping[str, Any]) -> bool:
    for key, given in value.items():
        if key not in answer or _plain(given) not in _plain_all(answer[key]):
            return False
    return all(key in value or OMIT in options for key, options in answer.items())


def _plain_all(values: Sequence[Any]) -> list[Any]:
    return [_plain(values[index]) for index in range(len(values))]  # by index: an object in their place fails


def _plain(value: Any) -> Any:
    """A text in the form in which texts are compared; anything else as it is."""
    return value.translate(_IGNORED).lower() if isinstance(value, str) else value
