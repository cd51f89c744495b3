"""JSON objects as text: their members found and renamed, their values left as they were written."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)


def members(text: str, start: int = 0) -> tuple[list[tuple[str, str]], int]:
    """Key and value of each member of the JSON object at `start`, both as they stand, and where the object ends.

    Raises ValueError if there is no object. Whether a key occurs twice or a number is finite is not asked here.
    """
    position = _expect(text, _skip(text, start), "{")
    found: list[tuple[str, str]] = []
    if text[(after := _skip(text, position)) : after + 1] == "}":
        return found, after + 1
    while True:
        key_start = _skip(text, position)
        if text[key_start : key_start + 1] != '"':
            raise ValueError("a key must be a string")
        key_end = value_end(text, key_start)
        value_start = _skip(text, _expect(text, _skip(text, key_end), ":"))
        position = value_end(text, value_start)
        found.append((text[key_start:key_end], text[value_start:position]))
        position = _skip(text, position)
        if text[position : position + 1] == "}":
            return found, position + 1
        position = _expect(text, position, ",")


def value_end(text: str, start: int) -> int:
    """Where the JSON value at `start` ends. Raises ValueError."""
    try:
        return _DECODER.raw_decode(text, start)[1]
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def rename(found: Sequence[tuple[str, str]], names: dict[str, str], drop: Sequence[str] = ()) -> str:
    """An object of these members with other keys; keys and values are otherwise as they stood."""
    kept = [(names.get(key, key), value) for key, value in found if key not in drop]
    return "{" + ", ".join(f"{key}: {value}" for key, value in kept) + "}"


def objects(text: str, separator: re.Pattern[str]) -> tuple[list[tuple[str, list[tuple[str, str]]]], str]:
    """The objects with which `text` begins, each as what separates it from the one before and its members; the rest."""
    found: list[tuple[str, list[tuple[str, str]]]] = []
    position, gap = 0, ""
    while True:
        try:
            pairs, end = members(text, position)
        except ValueError:
            return found, gap + text[position:]
        found.append((gap, pairs))
        between = separator.match(text, end)
        if between is None:
            return found, text[end:]
        gap, position = between[0], between.end()


def _skip(text: str, position: int) -> int:
    space = _SPACE.match(text, position)
    assert space is not None
    return space.end()


def _expect(text: str, position: int, character: str) -> int:
    if text[position : position + 1] != character:
        raise ValueError(f"expected {character!r} at character {position + 1}")
    return position + 1
