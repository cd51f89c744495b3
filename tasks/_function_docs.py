"""Function documents as BFCL writes them: read as tool schemas, and beside the calls that a row asks for."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verigym.tasks.errors import TaskDataError

Doc = Mapping[str, Any]
OMIT = ""  # among the allowed values of an argument: it may be left out
ANY_CALL = "any call"  # the target of a task that is right with whatever call its functions take
MAX_SOURCE = 4096  # characters of a call that is written as Python

_JSON_TYPES = {
    "string": ("string", "String", "char"),
    "integer": ("integer", "byte", "short", "long", "Bigint"),
    "number": ("number", "float", "double"),
    "boolean": ("boolean", "bool", "Boolean"),
    "array": ("array", "list", "tuple", "Array", "ArrayList", "Set", "Queue", "Stack"),
    "object": ("object", "dict", "HashMap", "Hashtable"),
    "null": ("null",),
    "": ("any", "Any"),
}
JSON_TYPE = {name: kind for kind, names in _JSON_TYPES.items() for name in names}
_LANGUAGE_TYPES = {  # those that tell the language; Java's and JavaScript's other types are Python's too
    "javascript": {"Bigint", "Boolean"},
    "java": {"byte", "short", "long", "double", "char", "Array", "ArrayList", "Set", "HashMap", "Hashtable", "Queue"},
}


@dataclass(frozen=True, slots=True)
class AskedCall:
    """One call that a row asks for: the function, and the allowed values of each argument."""

    name: str
    allowed: Mapping[str, Sequence[Any]]


def read_docs(given: Any) -> list[Doc]:
    """The function documents in `given`. Raises TaskDataError, which says what is wrong with which."""
    if isinstance(given, dict):
        given = [given]
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise TaskDataError(f"the functions must be a list of documents, not {type(given).__name__}")
    for doc in given:
        parameters = doc.get("parameters") if isinstance(doc, dict) else None
        if parameters is None or not isinstance(doc.get("name"), str):
            raise TaskDataError("a function document must be an object with 'name' and 'parameters'")
        if not isinstance(parameters, dict) or not isinstance(parameters.get("properties", {}), dict):
            raise TaskDataError(f"the parameters of the function '{doc['name'][:80]}' have no object 'properties'")
        if not isinstance(required(doc), Sequence) or not all(isinstance(name, str) for name in required(doc)):
            raise TaskDataError(f"the parameters of the function '{doc['name'][:80]}' have no list of names 'required'")
    return list(given)


def find_doc(docs: Sequence[Doc], name: str) -> Doc | None:
    """The document of the function `name`."""
    return next((doc for doc in docs if doc["name"] == name), None)


def properties(doc: Doc) -> Mapping[str, Any]:
    """The schemas of a function's parameters, by name."""
    found: Mapping[str, Any] = doc["parameters"].get("properties") or {}
    return found


def required(doc: Doc) -> Sequence[str]:
    """The parameters that each call of a function must give."""
    return doc["parameters"].get("required") or ()


# As a chat template takes them.


def safe_name(name: str) -> str:
    """A function's name with what no API takes in one written as `_`: `math.hypot` is `math_hypot`."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:64]


def tool_schema(doc: Doc) -> dict[str, Any]:
    """The document in the OpenAI function format. Raises TaskDataError for a type that no language has."""
    parameters = {"type": "object", "required": list(required(doc)), **_schema({"properties": properties(doc)})}
    function = {"name": safe_name(doc["name"]), "description": str(doc.get("description", ""))}
    return {"type": "function", "function": {**function, "parameters": parameters}}


def _schema(given: Any) -> dict[str, Any]:
    """A schema with JSON's types for BFCL's; what says nothing to JSON schema is left as it is."""
    if not isinstance(given, dict):
        raise TaskDataError(f"a function document has {str(given)[:40]!r} where a schema must be")
    schema = {key: value for key, value in given.items() if key not in ("type", "optional")}
    if "type" in given:
        if not isinstance(given["type"], str) or given["type"] not in JSON_TYPE:
            raise TaskDataError(f"a function document has the type {str(given['type'])[:40]!r}, which is unknown")
        schema |= {"type": JSON_TYPE[given["type"]]} if JSON_TYPE[given["type"]] else {}
    if isinstance(given.get("properties"), dict):
        schema["properties"] = {name: _schema(inner) for name, inner in given["properties"].items()}
    for inner in ("items", "additionalProperties"):
        if isinstance(given.get(inner), dict):
            schema[inner] = _schema(given[inner])
    return schema


def language(docs: Sequence[Doc]) -> str:
    """The language whose types the documents use: python, java or javascript."""
    types = {kind for doc in docs for inner in properties(doc).values() for kind in _types(inner)}
    for name, own in _LANGUAGE_TYPES.items():
        if types & own:
            return name
    if "String" in types:
        return "javascript" if types & {"dict", "array", "float"} else "java"
    return "python"


def _types(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield str(schema.get("type"))
        yield from _types(schema.get("items"))


# The calls that a row asks for.


def asked_calls(target: Any, docs: Sequence[Doc]) -> list[AskedCall]:
    """The calls in a ground truth: `[{function: {argument: [allowed values]}}]`, or calls written as Python.

    Raises TaskDataError for anything else.
    """
    if target is None:
        return []
    if not isinstance(target, Sequence) or isinstance(target, str):
        raise TaskDataError(f"a ground truth must be a list of calls, not {type(target).__name__}")
    return [_written(call, docs) if isinstance(call, str) else _listed(call) for call in target]


def _listed(call: Any) -> AskedCall:
    if not isinstance(call, dict) or len(call) != 1:
        raise TaskDataError("a call of a ground truth must be an object of one function, or a text")
    [(name, allowed)] = call.items()
    if not isinstance(allowed, dict) or not all(isinstance(values, list | tuple) for values in allowed.values()):
        raise TaskDataError(f"the call of '{name[:80]}' in the ground truth must list the values of each argument")
    return AskedCall(name, allowed)


def _written(text: str, docs: Sequence[Doc]) -> AskedCall:
    """The call that a text such as `area(base=10, sides=(1, -2))` is; nothing in it is evaluated."""
    try:
        if len(text) > MAX_SOURCE:
            raise ValueError(f"more than {MAX_SOURCE} characters")
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call):
            raise ValueError("it is no call")
        name, doc = ast.unparse(call.func), find_doc(docs, ast.unparse(call.func))
        names = list(properties(doc)) if doc is not None else []
        given = dict(zip(names, call.args, strict=False)) | {str(word.arg): word.value for word in call.keywords}
        allowed = {name: [_as_allowed(_literal(value))] for name, value in given.items()}
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise TaskDataError(f"the ground truth {text[:80]!r} is not a call of literals ({error})") from error
    return AskedCall(name, allowed)


def _as_allowed(value: Any) -> Any:
    """A value as a ground truth lists it: the objects in it have a list of values for each key."""
    if isinstance(value, dict):
        return {key: [inner] for key, inner in value.items()}
    if isinstance(value, list):
        return [_as_allowed(inner) if isinstance(inner, dict) else inner for inner in value]
    return value


def _literal(node: ast.expr) -> Any:
    """The JSON value that an expression writes: literals, and sums, products and quotients of numbers."""
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(inner) for inner in node.elts]
    if isinstance(node, ast.Dict):
        return {_literal(key): _literal(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](*map(_number, (node.left, node.right)))
    value = ast.literal_eval(node)
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"{type(value).__name__} is no type that JSON has")
    return value


def _number(node: ast.expr) -> Any:
    value = _literal(node)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{type(value).__name__} is no number")
    return value


_OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def fault(asked: Sequence[AskedCall], docs: Sequence[Doc]) -> str:
    """Why no call can be what a row asks for; "" for a good row."""
    for call in asked:
        doc = find_doc(docs, call.name)
        if doc is None:
            return f"it asks for the function '{call.name}', which is not among the functions given"
        for name, values in call.allowed.items():
            if name not in properties(doc) and OMIT not in values:
                return f"it asks for the argument '{name}', which '{call.name}' has not"
            if not _values(call, name, doc) and (OMIT not in values or name in required(doc)):
                return f"it allows no value for the argument '{name}' of '{call.name}'"
        for name in required(doc):
            if name not in call.allowed:
                return f"it leaves out the argument '{name}', which '{call.name}' requires"
    return ""


def may_be_empty(name: str, doc: Doc) -> bool:
    """Whether "" among an argument's allowed values is a value: of a text that must be given, or defaults to it."""
    schema = properties(doc).get(name)
    if not isinstance(schema, dict):
        return False
    is_text = JSON_TYPE.get(str(schema.get("type", "any")), "") in ("string", "")
    return is_text and (name in required(doc) or schema.get("default") == "")


def gold_arguments(call: AskedCall, doc: Doc, *, minimal: bool = False) -> dict[str, Any]:
    """Arguments that are right: of each the first allowed value. `minimal` leaves out what may be."""
    found = {}
    for name, values in call.allowed.items():
        real = _values(call, name, doc)
        optional = OMIT in values and name not in required(doc)
        if real and name in properties(doc) and not (minimal and optional):
            found[name] = _gold_value(real[0])
    return found


def _values(call: AskedCall, name: str, doc: Doc) -> list[Any]:
    """The allowed values of an argument without the mark that it may be left out."""
    return [value for value in call.allowed[name] if value != OMIT or may_be_empty(name, doc)]


def _gold_value(value: Any) -> Any:
    """An allowed value as a call gives it: the objects in it list what is allowed for each key."""
    if isinstance(value, dict):
        chosen = {key: _chosen(options) for key, options in value.items()}
        return {key: option for key, option in chosen.items() if option != OMIT}
    if isinstance(value, list | tuple):
        return [_gold_value(inner) if isinstance(inner, dict) else inner for inner in value]
    return value


def _chosen(options: Any) -> Any:
    if not isinstance(options, list | tuple):
        return options
    return next((option for option in options if option != OMIT), OMIT)
