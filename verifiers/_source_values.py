"""Values written in Java's or JavaScript's syntax, read as far as BFCL's checker reads them.

    java_value("new int[]{1, 2}", "Array", "integer")      [1, 2]
    java_value("42", "long")                               "42": a long is written 42L, and what is not stays text
    javascript_value("{'limit': 5}", "dict")               {"limit": 5}

Nothing is evaluated. Commas split even inside quotes, and of nested objects the first `}` ends all, as there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

MAX_SOURCE = 2000  # characters; a longer text stays text, so that a search in it takes no time to speak of

_WHOLE = re.compile(r"-?\d+$")
_DECIMAL = re.compile(r"-?\d+(\.\d+)?$")
_SCIENTIFIC = r"-?\d+(\.\d+)?([eE][+-]?\d+)?"
_DOUBLE, _FLOAT = re.compile(f"{_SCIENTIFIC}$"), re.compile(f"{_SCIENTIFIC}[fF]$")
_LONG, _BIGINT = re.compile(r"-?\d+[lL]$"), re.compile(r"-?\d+n$")

_LIST_OF = re.compile(r"new\s+ArrayList<\w*>\(Arrays\.asList\((.+?)\)\)")
_LIST_FILLED = re.compile(r"new\s+ArrayList<\w*>\(\)\s*\{\{\s*(.+?)\s*\}\}", re.DOTALL)
_LIST_EMPTY = re.compile(r"new\s+ArrayList<\w*>\(\)")
_ARRAY = re.compile(r"new\s+\w+\[\]\s*\{(.*?)\}")
_MAP = re.compile(r"new\s+HashMap<.*?>\s*\(\)(?:\s*\{\s*\{?\s*(.*?)\s*\}?\s*\})?", re.DOTALL)

_JS_ARRAY = re.compile(r"\[(.*?)\]|new\s+Array\((.*?)\)")
_JS_ARRAYS = re.compile(r"\[\s*\[.*?\]\s*\]|new\s+Array\(\s*\[.*?\]\s*\)")
_JS_OBJECT = re.compile(r"\{(.*?)\}")
_COMMA = re.compile(r",\s*")


def java_value(text: str, kind: str, inner: str | None = None) -> Any:
    """The value of a Java type that `text` writes, or `text` if it writes none."""
    if kind in ("byte", "short", "integer"):
        return int(text) if _WHOLE.match(text) else text
    if kind == "long":
        return int(text[:-1]) if _LONG.match(text) else text
    if kind in ("float", "double"):
        pattern = _FLOAT if kind == "float" else _DOUBLE
        return float(text.rstrip("fF\n")) if pattern.match(text) else text
    if kind == "boolean":
        return {"true": True, "false": False}.get(text, text)
    if kind in ("Array", "ArrayList", "HashMap"):
        return _java_collection(text, kind, inner) if len(text) <= MAX_SOURCE else text
    if kind in ("char", "String", "any"):
        return text
    raise TypeError(f"the official checker reads no {kind}")


def _java_collection(text: str, kind: str, inner: str | None) -> Any:
    if kind == "HashMap":
        found = _MAP.search(text)
        puts = re.findall(r'put\("(.*?)",\s*(.*?)\)', found[1] or "") if found else []
        return {key: _java_guess(value.strip()) for key, value in puts} if found else text
    if kind == "Array":
        found = _ARRAY.search(text)
        pieces = [piece.strip() for piece in found[1].split(",")] if found else []
        return [_java_inner(piece, inner) for piece in pieces if piece] if found else text
    if found := _LIST_OF.search(text):
        return [_java_item(piece, inner) for piece in found[1].split(",")]
    if found := _LIST_FILLED.search(text):
        return [_java_item(piece, inner) for piece in re.findall(r"add\((.+?)\)", found[1])]
    return [] if _LIST_EMPTY.search(text) else text


def _java_item(piece: str, inner: str | None) -> Any:
    """One element of a list; of a text its first and last character are dropped, whatever they are."""
    return piece.strip()[1:-1] if inner in ("char", "String") else _java_inner(piece.strip(), inner)


def _java_inner(piece: str, inner: str | None) -> Any:
    return java_value(piece, inner) if inner else _java_guess(piece)


def _java_guess(text: str) -> Any:
    """The value of a text whose type nothing tells."""
    if text in ("true", "false"):
        return text == "true"
    if text.startswith('"') and text.endswith('"'):
        return text[1:-1]
    if _LONG.match(text):
        return int(text[:-1])
    return float(text[:-1]) if _FLOAT.match(text) else _number(text)


def javascript_value(text: str, kind: str, inner: str | None = None) -> Any:
    """The value of a JavaScript type that `text` writes, or `text` if it writes none."""
    if kind == "String":
        return text[1:-1] if _quoted(text) else text
    if kind == "integer":
        return int(text) if _WHOLE.match(text) else text
    if kind == "float":
        return float(text) if _DECIMAL.match(text) else text
    if kind == "Bigint":
        return int(text[:-1]) if _BIGINT.match(text) else text
    if kind == "Boolean":
        return {"true": True, "false": False}.get(text, text)
    if kind in ("array", "dict"):
        read = _javascript_array if kind == "array" else _javascript_object
        return read(text.strip(), inner) if len(text) <= MAX_SOURCE else text.strip()
    if kind == "any":
        return text
    raise TypeError(f"the official checker reads no {kind}")


def _javascript_array(text: str, inner: str | None) -> Any:
    if rows := _JS_ARRAYS.match(text):
        first, *others = (piece.strip() for piece in re.findall(r"\[(.*?)\]", rows[0]))
        pieces = [first.removeprefix("["), *others]
        return [[_javascript_guess(item) for item in piece.split(",")] for piece in pieces]
    found = _JS_ARRAY.match(text)
    if not found:
        return text
    content = (found[1] if found[1] is not None else found[2]).strip()
    items = [item.strip() for item in content.split(",")] if content else []
    return [javascript_value(item, inner) if inner else _javascript_guess(item) for item in items]


def _javascript_object(text: str, inner: str | None = None) -> Any:
    found = _JS_OBJECT.match(text)
    return {key.strip().strip("'\""): _member(value.strip()) for key, value in _pairs(found[1])} if found else text


def _member(value: str) -> Any:
    if value.startswith("[") and value.endswith("]"):
        return _javascript_array(value, None)
    if value.startswith("{") and value.endswith("}"):
        return _javascript_object(value)
    return _javascript_guess(value.strip("'\""))


def _pairs(content: str) -> Iterator[tuple[str, str]]:
    """The keys and values of an object: a comma begins a new pair if a colon comes before the next comma."""
    position = 0
    while (colon := content.find(":", position + 1)) >= 0:
        ends = (comma for comma in _COMMA.finditer(content, colon + 1) if _begins_pair(content, comma.end()))
        end = next(ends, None)
        yield content[position:colon].lstrip(":"), content[colon + 1 : end.start() if end else None]
        position = end.end() if end else len(content)


def _begins_pair(content: str, start: int) -> bool:
    return ":" in content[start:].split(",", 1)[0][1:]


def _javascript_guess(text: str) -> Any:
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    return text[1:-1] if _quoted(text) else _number(text)


def _quoted(text: str) -> bool:
    return any(text.startswith(quote) and text.endswith(quote) for quote in "\"'")


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
