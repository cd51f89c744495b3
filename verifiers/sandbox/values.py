"""Plain Python values as text that crosses the sandbox's border: tagged JSON, exact types only.

Imports nothing of the package, since its text also runs inside the sandbox. A list, a string, a finite float and an
integer of up to 63 bits are themselves in JSON; every other type is an object with one key, its name.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import Any

MAX_DEPTH = 32
MAX_BYTES = 1 << 20
MAX_NODES = 1 << 20
MAX_COLLISIONS = 100

_SMALL = 1 << 63
_CONSTANTS = {bool, type(None)}
_SETS = {"set": set, "frozenset": frozenset}
_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class NotPlain(ValueError):  # noqa: N818 - says what the value is
    """A value, or a text, that is none of the plain types within the limits."""


def to_text(value: Any) -> str:
    """The text of a plain value. Raises NotPlain."""
    text = _ENCODER.encode(encode(value))
    if len(text) > MAX_BYTES:
        raise NotPlain(f"not a plain value: its text is longer than {MAX_BYTES} bytes")
    return text


def from_text(text: str | bytes, *, allow_nonfinite: bool = False) -> Any:
    """The value of a text, which may be anything at all. Raises NotPlain and nothing else."""
    if len(text) > MAX_BYTES:
        raise NotPlain(f"longer than {MAX_BYTES} bytes")
    try:
        if isinstance(text, bytes):
            text = text.decode("ascii")
        _check_nesting(text)
        tree = _DECODER.decode(text)
    except NotPlain:
        raise
    except (ValueError, RecursionError) as error:
        raise NotPlain(f"no value: {str(error)[:200]}") from None
    return decode(tree, allow_nonfinite=allow_nonfinite)


def encode(value: Any) -> Any:
    """The value as JSON's own types. Raises NotPlain for other types, subclasses too, and for what is too deep."""
    return _encode(value, 0, itertools.count())


def _encode(value: Any, depth: int, nodes: itertools.count[int]) -> Any:
    kind = type(value)
    if kind is bool or value is None:
        return value
    if kind is str:
        return _checked_text(value)
    if kind is int:
        return value if -_SMALL <= value < _SMALL else {"int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if kind is bytes:
        return {"bytes": value.hex()}
    if kind is complex:
        return {"complex": [_encode(value.real, 0, nodes), _encode(value.imag, 0, nodes)]}
    if depth >= MAX_DEPTH:
        raise NotPlain(f"not a plain value: nested deeper than {MAX_DEPTH}")
    if kind is list:
        return _encode_all(value, depth, nodes)
    if kind is tuple or kind is set or kind is frozenset:
        return {kind.__name__: _encode_all(value, depth, nodes)}
    if kind is dict:
        return {"dict": [[_encode(k, depth + 1, nodes), _encode(v, depth + 1, nodes)] for k, v in value.items()]}
    raise NotPlain(f"not a plain value: {_name(kind)}")


def _encode_all(values: Any, depth: int, nodes: itertools.count[int]) -> list[Any]:
    if _are_themselves(values):
        return list(values)
    encoded = []
    for value in values:
        if next(nodes) > MAX_NODES:  # a small object may hold itself in many places
            raise NotPlain(f"not a plain value: more than {MAX_NODES} parts")
        encoded.append(_encode(value, depth + 1, nodes))
    return encoded


def _are_themselves(values: Any) -> bool:
    """Whether all of these are, in JSON and out of it, what they are: at the speed of C, for long lists."""
    kinds = set(map(type, values))
    if kinds == {int}:
        return bool(min(values) >= -_SMALL and max(values) < _SMALL)
    if kinds == {float}:
        return all(map(math.isfinite, values))
    if kinds == {str}:
        return "".join(values).isascii()
    return kinds <= _CONSTANTS


def _checked_text(text: str) -> str:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NotPlain("not a plain value: a text with a lone surrogate") from None
    return text


def _name(kind: type) -> str:
    # a class may lie about its name, or have one that is no text
    name = type.__getattribute__(kind, "__name__")
    return str.__str__(name)[:100] if isinstance(name, str) else "?"


class _Tag(tuple):  # type: ignore[type-arg]
    """A JSON object with one key: its name and what it holds."""


def _tag(pairs: list[tuple[str, Any]]) -> _Tag:
    if len(pairs) != 1:
        raise NotPlain(f"no value: an object with {len(pairs)} keys")
    return _Tag(pairs[0])


def _refuse_constant(name: str) -> Any:
    raise NotPlain(f"no value: the constant {name}")


# made once: making them takes longer than most values do
_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))
_DECODER = json.JSONDecoder(object_pairs_hook=_tag, parse_constant=_refuse_constant)


def _check_nesting(text: str) -> None:
    """JSON's parser recurses in C: nesting is counted before, lest a raised recursion limit let it overflow."""
    if text.count("[") + text.count("{") <= 4 * MAX_DEPTH:
        return
    steps = {"[": 1, "{": 1, "]": -1, "}": -1}
    outside = re.sub(r'"[^"\\]*(?:\\.[^"\\]*)*"', "", text) if '"' in text else text
    brackets = re.sub(r"[^\[\]{}]+", "", outside)
    if max(itertools.accumulate(map(steps.__getitem__, brackets)), default=0) > 4 * MAX_DEPTH:
        raise NotPlain(f"no value: nested deeper than {MAX_DEPTH}")


def decode(tree: Any, *, allow_nonfinite: bool = False) -> Any:
    """The value of what `from_text` parsed. Raises NotPlain."""
    return _decode(tree, 0, allow_nonfinite)


def _decode(tree: Any, depth: int, nonfinite: bool) -> Any:
    kind = type(tree)
    if kind is bool or tree is None:
        return tree
    if kind is str:
        return _checked_text(tree)
    if kind is int:
        return tree
    if kind is float:
        if not math.isfinite(tree):
            raise NotPlain("no value: a number beyond the floats")
        return tree
    if depth >= MAX_DEPTH:
        raise NotPlain(f"no value: nested deeper than {MAX_DEPTH}")
    if kind is list:
        return _decode_all(tree, depth, nonfinite)
    if kind is dict:  # encode's own object
        tree = _tag(list(tree.items()))
    if type(tree) is not _Tag:
        raise NotPlain(f"no value: {_name(kind)}")
    return _decode_tag(str(tree[0]), tree[1], depth, nonfinite)


def _decode_all(tree: list[Any], depth: int, nonfinite: bool) -> list[Any]:
    if _are_themselves(tree):
        return list(tree)
    return [_decode(item, depth + 1, nonfinite) for item in tree]


def _decode_tag(name: str, inner: Any, depth: int, nonfinite: bool) -> Any:
    if name in ("int", "bytes", "float"):
        return _decode_scalar(name, inner, nonfinite)
    if type(inner) is not list:
        raise NotPlain(f"no value: a {name[:20]} of no list")
    if name == "dict":
        return _decode_dict(inner, depth, nonfinite)
    items = _decode_all(inner, depth, nonfinite)
    if name == "tuple":
        return tuple(items)
    if name == "complex" and len(items) == 2 and all(type(item) is float for item in items):
        return complex(*items)
    if name in ("set", "frozenset"):
        return _unique(_SETS[name], items)
    raise NotPlain(f"no value: a tag {name[:20]!r}")


def _decode_dict(pairs: list[Any], depth: int, nonfinite: bool) -> Any:
    if not all(type(pair) is list and len(pair) == 2 for pair in pairs):
        raise NotPlain("no value: a dict of no pairs")
    return _unique(dict, [_decode_all(pair, depth, nonfinite) for pair in pairs])


def _decode_scalar(name: str, inner: Any, nonfinite: bool) -> Any:
    if type(inner) is not str:
        raise NotPlain(f"no value: a {name} of no text")
    if name == "float":
        if inner not in _NONFINITE or not nonfinite:
            raise NotPlain(f"not a finite number: {inner[:20]}")
        return _NONFINITE[inner]
    try:
        return int(inner, 16) if name == "int" else bytes.fromhex(inner)
    except ValueError:
        raise NotPlain(f"no value: a {name} of other text") from None


def _unique(kind: type, items: list[Any]) -> Any:
    try:
        keys = [item[0] for item in items] if kind is dict else items
        if len(set(map(hash, keys))) < len(keys) - MAX_COLLISIONS:  # chosen to make our dict quadratic
            raise NotPlain(f"no value: a {kind.__name__} of colliding hashes")
        collection = kind(items)
    except TypeError:
        raise NotPlain(f"no value: a {kind.__name__} of what it cannot hold") from None
    if len(collection) != len(items):
        raise NotPlain("no value: a key or an element twice")
    return collection
