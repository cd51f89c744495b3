"""The one syntax in which an agent's turn reaches an environment: reasoning, tool calls and the rest.

    <think>I should multiply.</think>
    <tool_call>{"name": "calculator", "arguments": {"expression": "37 * 24"}}</tool_call>

Whoever writes a turn is not trusted: parsing never raises and takes time linear in the text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

MAX_CALLS = 32  # in one turn, malformed ones included
MAX_CALL_LENGTH = 64 * 1024  # characters of one call, white space before its JSON included
MAX_DEPTH = 32  # of nested objects and arrays in one call
# Calls in front of an orphan </think> no longer count as calls, so the work needs a bound of its own.
_MAX_ATTEMPTS = 1000

_TAG = re.compile(r"</?(?:think|tool_call)>")
_THINK = re.compile(r"</?think>")
_MARKUP = re.compile(r"<(?=/?(?:think|tool_call|tool_response)>)")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that is well-formed; whether the tool exists and takes these arguments is not known yet."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of an agent. `errors` has a sentence for each malformed call, for the agent to read."""

    reasoning: str
    content: str
    calls: tuple[ToolCall, ...] = ()
    errors: tuple[str, ...] = ()


def render_call(name: str, arguments: Mapping[str, Any]) -> str:
    """The canonical text of a call. Raises ValueError for NaN or infinity, TypeError for no JSON type."""
    call = {"name": name, "arguments": dict(arguments)}
    return f"<tool_call>{json.dumps(call, ensure_ascii=False, allow_nan=False)}</tool_call>"


def escape(text: str) -> str:
    """`text` with its canonical markup made inert: `<think>` becomes `&lt;think>`. Idempotent."""
    return _MARKUP.sub("&lt;", text)


def parse_turn(text: str) -> Turn:
    """The parts of a turn.

    - Reasoning is what stands in `<think>...</think>`, everything before a `</think>` that closes nothing,
      and everything after a `<think>` that is not closed. A call in it is no call.
    - A call is `<tool_call>`, a JSON object with exactly the keys name (text) and arguments (object), and
      `</tool_call>`, with white space at most between them. Markup inside its JSON strings is text.
    - Anything else after a `<tool_call>` is an error and no call, up to the next `</tool_call>` or think tag.
    - Content is the rest. It and the reasoning, whose parts are put one paragraph apart, have no think tags
      in them and no white space around them.
    """
    scan = _Scan(text)
    while (tag := _TAG.search(text, scan.position)) is not None:
        scan.take(tag)
    return scan.finish()


class _Scan:
    """One pass over a turn. It jumps over well-formed calls, so it does not see the tags in their strings."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0  # all before it is dealt with
        self.attempts = 0
        self.orphan_end = 0  # all before it is reasoning
        self.clear()

    def clear(self) -> None:
        self.malformed = False  # in the text of a <tool_call> that is not run, which is no content either
        self.full = False
        self.reasoning: list[str] = []
        self.content: list[str] = []
        self.calls: list[ToolCall] = []
        self.errors: list[str] = []

    def take(self, tag: re.Match[str]) -> None:
        """Deals with the text up to `tag`, and with `tag`."""
        before, self.position = self.text[self.position : tag.start()], tag.end()
        if tag[0] == "</think>":
            self.clear()
            self.orphan_end = tag.start()
        else:
            if not self.malformed:
                self.content.append(before)
            self.enter(tag[0])

    def enter(self, tag: str) -> None:
        if tag == "<think>":
            self.malformed = False
            self.read_reasoning()
        elif tag == "<tool_call>":
            if not self.malformed and self.has_room():
                self.read_call()
            else:
                self.malformed = True  # one call too many is skipped like a malformed one
        elif self.malformed:
            self.malformed = False
        elif self.has_room():
            self.errors.append("a </tool_call> has no <tool_call> before it")

    def read_reasoning(self) -> None:
        end = self.text.find("</think>", self.position)
        self.reasoning.append(self.text[self.position : end if end >= 0 else None])
        self.position = end + len("</think>") if end >= 0 else len(self.text)

    def has_room(self) -> bool:
        """Whether one more call may be read; the first time not, an error says so."""
        used_up = len(self.calls) + len(self.errors) >= MAX_CALLS or self.attempts >= _MAX_ATTEMPTS
        if used_up and not self.full:
            self.full = True
            self.errors.append(f"a turn can have at most {MAX_CALLS} tool calls; the rest was not run")
        return not self.full

    def read_call(self) -> None:
        self.attempts += 1
        try:
            call, self.position = _read_call(self.text, self.position)
            self.calls.append(call)
        except ValueError as error:
            self.malformed = True
            self.errors.append(f"tool call not run: {error}")

    def finish(self) -> Turn:
        if not self.malformed:
            self.content.append(self.text[self.position :])
        parts = [_THINK.sub("", part).strip() for part in (self.text[: self.orphan_end], *self.reasoning)]
        reasoning = "\n\n".join(part for part in parts if part)
        return Turn(reasoning, "".join(self.content).strip(), tuple(self.calls), tuple(self.errors))


def _read_call(text: str, start: int) -> tuple[ToolCall, int]:
    """The call whose JSON begins at `start`, and where its closing tag ends. Raises ValueError."""
    value, end = _decode(text, start)
    call = _check(value)
    close = _CLOSE.match(text, end)
    if close is None and text.find("</tool_call>", end, end + MAX_CALL_LENGTH) < 0:
        raise ValueError("<tool_call> is not closed by </tool_call>")
    if close is None:
        raise ValueError("there is text between the JSON object and </tool_call>")
    return call, close.end()


def _decode(text: str, start: int) -> tuple[Any, int]:
    """The JSON object at `start`, white space skipped, and its end."""
    piece = text[start : start + MAX_CALL_LENGTH]
    begin = len(piece) - len(piece.lstrip())
    if piece[begin : begin + 1] != "{":
        raise ValueError('<tool_call> must be followed by a JSON object, {"name": ..., "arguments": {...}}')
    try:
        value, end = _DECODER.raw_decode(piece, begin)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except json.JSONDecodeError as error:
        if start + MAX_CALL_LENGTH < len(text) and "</tool_call>" not in piece:
            raise ValueError(f"it is longer than {MAX_CALL_LENGTH} characters") from None
        raise ValueError(
            f"it is not valid JSON: {error.msg.removesuffix(' at')} at character {error.pos - begin + 1}"
        ) from None
    return value, start + end


def _check(value: dict[str, Any]) -> ToolCall:
    """The call that a decoded object is."""
    if set(value) != {"name", "arguments"}:
        found = ", ".join(list(value)[:5])[:80] or "none"
        raise ValueError(f'it must have exactly the keys "name" and "arguments"; found: {found}')
    name, arguments = value["name"], value["arguments"]
    if not isinstance(name, str) or not name:
        raise ValueError('"name" must be the name of a tool, as a string')
    if not isinstance(arguments, dict):
        raise ValueError('"arguments" must be an object, such as {}')
    if _deeper_than(value, MAX_DEPTH):
        raise ValueError(_TOO_DEEP)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("it has half of a surrogate pair in a string, which is not Unicode") from None
    return ToolCall(name, arguments)


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [inner for outer in level for inner in _children(outer)]
        if not level:
            return False
    return any(isinstance(inner, (dict, list)) for inner in level)


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} occurs twice in one object")
    return keys


def _finite(number: str) -> float:
    if not math.isfinite(float(number)):
        raise ValueError("a number is too large")
    return float(number)


def _integer(digits: str) -> int:
    if len(digits) > _MAX_INTEGER:
        raise ValueError(f"a number has more than {_MAX_INTEGER} digits")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_MAX_INTEGER = 1000
_TOO_DEEP = f"its objects and arrays are nested deeper than {MAX_DEPTH}"
_CLOSE = re.compile(r"\s*</tool_call>")
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_float=_finite, parse_int=_integer, parse_constant=_no_constant
)
