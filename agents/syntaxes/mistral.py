"""Mistral: `[TOOL_CALLS]name[ARGS]{...}` or, in older models, `[TOOL_CALLS] [{"name": ..., "arguments": {...}}]`.

The markers are special tokens that decoding drops, so both are read from ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from verigym.agents.syntaxes._json_text import members, objects, rename
from verigym.agents.syntaxes.syntax import PROBE_NAME, Call, Piece, ToolSyntax, call_id, call_markup

_COMMA = re.compile(r"\s*,\s*")


class Mistral(ToolSyntax):
    """A name and arguments, each after its marker."""

    name = "mistral"
    openers = ("[TOOL_CALLS]",)
    inner = ("[CALL_ID]", "[ARGS]")
    has_call_ids = True
    shape = re.compile(rf"\[TOOL_CALLS\]\s*{PROBE_NAME}\s*\[ARGS\]")

    def read(self, region: Sequence[Piece]) -> str:
        if not any(piece.kind == "marker" for piece in region):
            return _read_list("".join(piece.text for piece in region))
        fields = _fields(region)
        name, arguments = fields[""].strip(), fields.get("[ARGS]", "")
        body = arguments.strip()
        try:
            whole = members(body)[1] == len(body)
        except ValueError:
            whole = False
        if not whole or not name:
            return call_markup("".join(piece.text for piece in region))
        call = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {body}}}'
        return call_markup(call) + arguments[len(arguments.rstrip()) :]

    def write(self, calls: Sequence[Call]) -> list[Piece]:
        return [piece for index, call in enumerate(calls) for piece in self._write_one(index, *call)]

    def write_id(self, index: int) -> list[Piece]:
        """What stands between the name and the arguments of a call."""
        return []

    def call_ids(self, pieces: Sequence[Piece]) -> list[str]:
        regions = [region for region in self._regions(pieces) if region[0].text in self.openers]
        return [_fields(region[1:]).get("[CALL_ID]", "").strip() for region in regions]

    def _write_one(self, index: int, space: str, body: str) -> list[Piece]:
        start = [Piece(space), Piece("[TOOL_CALLS]", "marker")] if space else [Piece("[TOOL_CALLS]", "marker")]
        try:
            fields = dict(members(body)[0])
            name = json.loads(fields['"name"'])
            arguments = [Piece("[ARGS]", "marker"), Piece(fields['"arguments"'])]
            return [*start, Piece(str(name)), *self.write_id(index), *arguments]
        except (ValueError, KeyError):
            return [*start, Piece(body)]


class MistralIds(Mistral):
    """A name, an id that the tool's message repeats, and arguments."""

    name = "mistral-ids"
    shape = re.compile(rf"\[TOOL_CALLS\]\s*{PROBE_NAME}\s*\[CALL_ID\]\s*\w*\s*\[ARGS\]")

    def write_id(self, index: int) -> list[Piece]:
        return [Piece("[CALL_ID]", "marker"), Piece(call_id(index))]


class MistralList(Mistral):
    """A list of JSON objects after one marker."""

    name = "mistral-list"
    shape = re.compile(r"\[TOOL_CALLS\]\s*\[\s*\{")

    def write(self, calls: Sequence[Call]) -> list[Piece]:
        texts = [("," if index else "") + space + body for index, (space, body) in enumerate(calls)]
        return [Piece("[TOOL_CALLS]", "marker"), Piece(f" [{''.join(texts)}]")]


def _fields(region: Sequence[Piece]) -> dict[str, str]:
    """The text after each marker of a call; that before the first one under ""."""
    fields: dict[str, str] = {"": ""}
    marker = ""
    for piece in region:
        if piece.kind == "marker":
            marker = piece.text
            fields[marker] = fields.get(marker, "")
        else:
            fields[marker] += piece.text
    return fields


def _read_list(text: str) -> str:
    inside = text.strip()
    after = text[len(text.rstrip()) :]
    found, rest = objects(inside[1:-1].strip(), _COMMA)
    if not (inside.startswith("[") and inside.endswith("]") and found) or rest:
        return call_markup(inside) + after
    calls = [gap.replace(",", "", 1) + call_markup(rename(pairs, {}, drop=('"id"',))) for gap, pairs in found]
    return "".join(calls) + after
