"""Derives the JSON schema of a function's parameters from its type hints and docstring."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

Schema = dict[str, Any]

_SIMPLE: dict[Any, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    list: {"type": "array"},
    dict: {"type": "object"},
    Any: {},
}
_SECTION = re.compile(r"^(Args|Arguments|Returns?|Yields?|Raises|Examples?|Notes?):\s*$", re.MULTILINE)
_ARGUMENT = re.compile(r"^(\w+)(?:\s*\([^)]*\))?:\s*(.*)$")


def parameters_schema(function: Callable[..., Any]) -> Schema:
    """The JSON schema of an object that holds `function`'s arguments by name.

    A parameter with a default is not required. Raises TypeError, which names the parameter, for one without
    an annotation, of a type that JSON has not, or that cannot be given by name.
    """
    try:
        hints = get_type_hints(function)
    except NameError as error:
        raise TypeError(f"{function.__name__}: a type hint cannot be resolved ({error})") from error
    descriptions = argument_descriptions(inspect.getdoc(function) or "")
    properties: dict[str, Schema] = {}
    required = []
    for name, parameter in inspect.signature(function).parameters.items():
        properties[name] = _property(function.__name__, parameter, hints.get(name, inspect.Parameter.empty))
        if name in descriptions:
            properties[name]["description"] = descriptions[name]
        if parameter.default is inspect.Parameter.empty:
            required.append(name)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _property(function: str, parameter: inspect.Parameter, hint: Any) -> Schema:
    where = f"{function}: parameter '{parameter.name}'"
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        raise TypeError(f"{where} cannot be given by name ({parameter.kind.description})")
    if hint is inspect.Parameter.empty:
        raise TypeError(f"{where} has no type annotation")
    schema = type_schema(hint, where)
    if isinstance(parameter.default, (str, int, float, list)):
        schema["default"] = parameter.default
    return schema


def type_schema(hint: Any, where: str) -> Schema:
    """A fresh JSON schema of the values of a type hint. Raises TypeError that begins with `where`."""
    origin, arguments = get_origin(hint), get_args(hint)
    bare = hint if arguments else origin or hint  # typing.List alone is list
    if bare in _SIMPLE:
        return dict(_SIMPLE[bare])
    if origin is Annotated:
        return type_schema(arguments[0], where)
    if origin is list:
        return {"type": "array", "items": type_schema(arguments[0], where)}
    if origin is dict and arguments[0] is str:
        return {"type": "object", "additionalProperties": type_schema(arguments[1], where)}
    if is_typeddict(hint):
        return _object_schema(hint, where)
    if origin is Literal:
        return _literal_schema(arguments, where)
    if origin in (Union, types.UnionType):
        return {"anyOf": [type_schema(argument, where) for argument in arguments]}
    raise TypeError(
        f"{where} has the type {hint!r}; "
        "use str, int, float, bool, None, list[...], dict[str, ...], TypedDict, Literal or unions of them"
    )


def _object_schema(hint: Any, where: str) -> Schema:
    """An object with the keys of a TypedDict, and any others."""
    kinds, written = get_type_hints(hint), get_type_hints(hint, include_extras=True)
    # which keys are required is not known where the annotations are texts
    required = [key for key in kinds if key in hint.__required_keys__ and get_origin(written[key]) is not NotRequired]
    properties = {key: type_schema(kind, f"{where}[{key!r}]") for key, kind in kinds.items()}
    return {"type": "object", "properties": properties, "required": required}


def _literal_schema(values: tuple[Any, ...], where: str) -> Schema:
    kinds = {type(value) for value in values}
    if not kinds <= {str, int, bool, type(None)}:
        raise TypeError(f"{where} has a Literal with a value that JSON has not")
    if len(kinds) == 1:
        return {**_SIMPLE[kinds.pop()], "enum": list(values)}
    return {"anyOf": [{**_SIMPLE[type(value)], "enum": [value]} for value in values]}


def description(docstring: str) -> str:
    """What a docstring says before its first section."""
    section = _SECTION.search(docstring)
    return docstring[: section.start() if section else None].strip()


def argument_descriptions(docstring: str) -> dict[str, str]:
    """The description of each parameter in the `Args:` section of a Google-style docstring."""
    found: dict[str, str] = {}
    lines = _section(docstring, "Args", "Arguments")
    margin = min((_indent(line) for line in lines), default=0)
    name = ""
    for line in lines:
        match = _ARGUMENT.match(line.strip()) if _indent(line) == margin else None
        if match:
            name = match[1]
            found[name] = match[2]
        elif name:
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def _section(docstring: str, *titles: str) -> list[str]:
    """The indented lines under the section with one of these titles."""
    parts = _SECTION.split(docstring)  # text, title, text, title, text, ...
    bodies = [body for title, body in zip(parts[1::2], parts[2::2], strict=True) if title in titles]
    lines = bodies[0].splitlines() if bodies else []
    return [line for line in lines if _indent(line)]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
