"""Pythonic: a turn that is `[name(key="value"), other()]`, as Llama 3.2 and 4 and, between markers, LFM2 write it."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from verigym.agents.syntaxes._json_text import members
from verigym.agents.syntaxes.syntax import PROBE_NAME, Call, Piece, ToolSyntax, call_markup
from verigym.tasks.canonical import MAX_CALL_LENGTH, MAX_DEPTH

_BEGIN = re.compile(r"\[\s*[A-Za-z_][\w.-]*\s*\(")
_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_KEYWORD = re.compile(r"([A-Za-z_]\w*)\s*=(?!=)")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""|' r"'''(?:[^\\]|\\.)*?'''|" r'"(?:[^"\\\n]|\\.)*"|' r"'(?:[^'\\\n]|\\.)*'", re.DOTALL
)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_CONSTANT = re.compile(r"(True|False|None)\b")
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}


class Pythonic(ToolSyntax):
    """Calls with keyword arguments that are Python literals. They are read, never evaluated."""

    name = "pythonic"
    shape = re.compile(rf"^\s*\[{PROBE_NAME}\(")

    def read(self, region: Sequence[Piece]) -> str:
        return _read("".join(piece.text for piece in region))

    def read_bare(self, text: str) -> str | None:
        inside = text.strip()
        return _read(text) if _BEGIN.match(inside) and inside.endswith("]") else None

    def write(self, calls: Sequence[Call]) -> list[Piece]:
        texts = [("," if index else "") + space + _native(body) for index, (space, body) in enumerate(calls)]
        inside = Piece(f"[{''.join(texts)}]")
        around = [Piece(marker, "marker") for marker in (*self.openers, *self.closers)]
        return [around[0], inside, around[1]] if around else [inside]


class PythonicLlama4(Pythonic):
    """Calls between markers, or bare."""

    name = "pythonic-llama4"
    openers, closers = ("<|python_start|>",), ("<|python_end|>",)
    stops = ("<|eom|>",)
    shape = re.compile(rf"<\|python_start\|>\s*\[{PROBE_NAME}\(")


class PythonicLFM2(Pythonic):
    """Calls between markers; text may stand beside them."""

    name = "pythonic-lfm2"
    openers, closers = ("<|tool_call_start|>",), ("<|tool_call_end|>",)
    shape = re.compile(rf"<\|tool_call_start\|>\s*\[{PROBE_NAME}\(")

    def read_bare(self, text: str) -> str | None:
        return None


def _read(text: str) -> str:
    inside = text.strip()
    start = text.find(inside)
    try:
        if len(inside) > MAX_CALL_LENGTH:
            raise ValueError("it is too long")
        calls = _Reader(inside).read()
    except ValueError:
        calls = [("", inside)]
    return text[:start] + "".join(gap + call_markup(body) for gap, body in calls) + text[start + len(inside) :]


class _Reader:
    """Recursive descent over a list of calls, to the JSON text of each. Raises ValueError."""

    def __init__(self, text: str) -> None:
        self.text, self.position, self.depth = text, 0, 0

    def read(self) -> list[Call]:
        self.expect("[")
        calls: list[Call] = []
        gap = ""
        while True:
            self.skip()
            calls.append((gap, self.call()))
            self.skip()
            if not self.accept(","):
                break
            gap = self.text[self.position : self.skip()]
        self.expect("]")
        if self.position < len(self.text):
            raise self.unexpected()
        return calls

    def call(self) -> str:
        name = self.match(_NAME)
        self.skip()
        self.expect("(")
        arguments = self.items(")", self.argument)
        return f'{{"name": {_dump(name)}, "arguments": {{{arguments}}}}}'

    def argument(self) -> str:
        keyword = _KEYWORD.match(self.text, self.position)
        if keyword is None:
            raise self.unexpected()
        self.position = keyword.end()
        return f"{_dump(keyword[1])}: {self.value()}"

    def value(self) -> str:
        self.skip()
        character = self.text[self.position : self.position + 1]
        if character in ("[", "{") and character:
            return self.container(character)
        if character in ('"', "'") and character:
            return _string(self.match(_STRING))
        constant = _CONSTANT.match(self.text, self.position)
        if constant is not None:
            self.position = constant.end()
            return _CONSTANTS[constant[1]]
        return _number(self.match(_NUMBER))

    def container(self, opener: str) -> str:
        self.position, self.depth = self.position + 1, self.depth + 1
        if self.depth > 2 * MAX_DEPTH:
            raise ValueError("it is nested too deep")
        inside = self.items("]", self.value) if opener == "[" else self.items("}", self.member)
        self.depth -= 1
        return f"[{inside}]" if opener == "[" else f"{{{inside}}}"

    def member(self) -> str:
        key = _string(self.match(_STRING))
        self.skip()
        self.expect(":")
        return f"{key}: {self.value()}"

    def items(self, closer: str, item: Callable[[], str]) -> str:
        """Items up to `closer`, with commas between them and perhaps after the last."""
        found: list[str] = []
        self.skip()
        while not self.accept(closer):
            found.append(item())
            self.skip()
            if not self.accept(","):
                self.expect(closer)
                break
            self.skip()
        return ", ".join(found)

    def match(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.position)
        if match is None:
            raise self.unexpected()
        self.position = match.end()
        return match[0]

    def skip(self) -> int:
        space = _SPACE.match(self.text, self.position)
        assert space is not None
        self.position = space.end()
        return self.position

    def accept(self, character: str) -> bool:
        found = self.text.startswith(character, self.position)
        self.position += found
        return found

    def expect(self, character: str) -> None:
        if not self.accept(character):
            raise self.unexpected()

    def unexpected(self) -> ValueError:
        return ValueError(f"unexpected {self.text[self.position : self.position + 20]!r}")


def _string(literal: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an unknown escape, such as "\d", is kept as it is
            value = ast.literal_eval(literal)
        value.encode()
    except (SyntaxError, ValueError) as error:  # UnicodeEncodeError is a ValueError
        raise ValueError("a string is no Python literal") from error
    return _dump(value)


def _number(literal: str) -> str:
    if _JSON_NUMBER.fullmatch(literal):
        return literal
    try:
        return json.dumps(ast.literal_eval(literal), allow_nan=False)
    except SyntaxError as error:
        raise ValueError("a number is no Python literal") from error


def _native(body: str) -> str:
    """A canonical call in Python; one that Python cannot write stands as it is."""
    try:
        fields = dict(members(body)[0])
        arguments = json.loads(fields['"arguments"'], parse_int=_Raw, parse_float=_Raw)
        written = ", ".join(f"{key}={_literal(arguments[key])}" for key in arguments)
        return str(json.loads(fields['"name"'])) + f"({written})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return body


class _Raw(str):
    """A number as it was written."""


def _literal(value: Any) -> str:
    if isinstance(value, _Raw):
        return str(value)
    if isinstance(value, str):
        return _dump(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_dump(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    return str(value)


def _dump(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
