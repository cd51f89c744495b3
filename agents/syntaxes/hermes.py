"""Hermes and Qwen: the canonical syntax itself, `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from verigym.agents.syntaxes.syntax import PROBE_NAME, Call, Piece, ToolSyntax, set_reasoning_apart
from verigym.tasks.canonical import escape

_TAG = re.compile(r"(</?(?:think|tool_call)>)")


class Hermes(ToolSyntax):
    """Tags around JSON. A turn is already canonical, save for tags that the model did not write as markers."""

    name = "hermes"
    openers, closers = ("<tool_call>",), ("</tool_call>",)
    shape = re.compile(rf'<tool_call>\s*\{{\s*"name":\s*"{PROBE_NAME}",\s*"arguments":\s*\{{')

    def to_canonical(self, pieces: Sequence[Piece]) -> str:
        return "".join([text if kind == "marker" else escape(text) for text, kind in pieces])

    def from_canonical(self, text: str) -> list[Piece]:
        return [Piece(part, "marker" if _TAG.fullmatch(part) else "text") for part in _TAG.split(text) if part]

    def read(self, region: Sequence[Piece]) -> str:
        raise NotImplementedError("a turn is translated as a whole")

    def write(self, calls: Sequence[Call]) -> list[Piece]:
        raise NotImplementedError("a turn is translated as a whole")


class PlainText(ToolSyntax):
    """No tool calls at all: for a model whose template writes them in no known way."""

    name = "none"
    shape = re.compile(r"(?!)")

    def to_canonical(self, pieces: Sequence[Piece]) -> str:
        apart = set_reasoning_apart(pieces)
        return "".join(piece.text if piece.kind == "reasoning" else escape(piece.text) for piece in apart)

    def from_canonical(self, text: str) -> list[Piece]:
        return Hermes().from_canonical(text)

    def read(self, region: Sequence[Piece]) -> str:
        raise NotImplementedError("there are no calls")

    def write(self, calls: Sequence[Call]) -> list[Piece]:
        raise NotImplementedError("there are no calls")
