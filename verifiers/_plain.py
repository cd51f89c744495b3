"""Whether two plain Python values are equal, by a declared policy on numbers, or close to each other."""

from __future__ import annotations

import cmath
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

Numbers = Literal["python", "strict"]
NUMBERS = ("python", "strict")

MAX_COLLIDING = 200
_RELATIVE = 1e-7  # what EvalPlus grants beside its absolute tolerance


def equal(one: Any, other: Any, numbers: Numbers = "python") -> bool:
    """Whether two values made of plain types are equal; NaN equals NaN.

    `python`: as `==` says, so that 1, 1.0 and True are one number, and a list is no tuple. `strict`: values of
    different types differ, at any depth. Neither value may be of a class of its own: those decide `==` themselves.
    """
    if numbers == "python" and one == other:
        return True
    return bool(_frozen(one, numbers) == _frozen(other, numbers))


def close(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two values have the same shape and types of containers, and numbers within `tolerance` at each place."""
    if isinstance(one, list | tuple) and type(one) is type(other):
        return len(one) == len(other) and all(close(*pair, tolerance) for pair in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key], tolerance) for key in one)
    if isinstance(one, int | float | complex) and isinstance(other, int | float | complex):
        return equal(one, other) or _near(one, other, tolerance)
    return equal(one, other)


def is_floats(value: Any) -> bool:
    """Whether `value` is a float, or a list or tuple of nothing but floats."""
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(part, float) for part in value)
    return isinstance(value, float)


def refuse_colliding(parts: Iterable[Any]) -> list[Any]:
    """`parts` as a list. Raises ValueError if very many have one hash: a set of them would take quadratic time."""
    listed = list(parts)
    often = max(Counter(map(hash, listed)).values(), default=0)
    if often > MAX_COLLIDING and len({repr(part) for part in listed}) > MAX_COLLIDING:
        raise ValueError("values whose hashes collide")
    return listed


def short(value: Any, length: int = 300) -> str:
    """`value` as Python writes it, cut to `length` characters."""
    try:
        return cut(repr(value[: length + 1] if isinstance(value, str) else value), length)
    except ValueError:  # Python does not write whole numbers of thousands of digits
        return "a whole number of very many digits"


def cut(text: str, length: int = 300) -> str:
    """`text`, cut to `length` characters."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _near(one: complex, other: complex, tolerance: float) -> bool:
    try:
        return abs(one - other) <= tolerance + _RELATIVE * abs(other) and cmath.isfinite(other)
    except OverflowError:  # a whole number beyond the range of floats
        return False


def _frozen(value: Any, numbers: Numbers) -> Any:
    """A stand-in that is equal for equal values, and hashable where they are."""
    if isinstance(value, list | tuple):
        return (type(value).__name__, *(_frozen(part, numbers) for part in value))
    if isinstance(value, set | frozenset):
        kind = type(value).__name__ if numbers == "strict" else "set"
        return kind, frozenset(_frozen(part, numbers) for part in value)
    if isinstance(value, dict):
        return "dict", {_frozen(key, numbers): _frozen(part, numbers) for key, part in value.items()}
    if isinstance(value, float | complex) and value != value:
        return ("nan",)
    return (type(value).__name__, value) if numbers == "strict" else value
