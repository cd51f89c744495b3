"""The extension point for tool syntaxes: a turn in a model's own markup, and the same turn in canonical syntax."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

from verigym.agents.syntaxes._json_text import members
from verigym.tasks.canonical import escape, parse_turn

Call = tuple[str, str]
"""White space before a call, and the JSON text of its canonical form."""
PROBE_NAME, PROBE_ARGUMENTS = "verigym_probe", {"text": "x"}
"""The call that is put through a chat template to see what it writes."""


class Piece(NamedTuple):
    """A part of a turn: text, a marker that the model wrote as such, or reasoning in canonical form."""

    text: str
    kind: Literal["text", "marker", "reasoning"] = "text"


class ToolSyntax(ABC):
    """One way of writing tool calls.

    Reasoning reaches it as the markers `<think>` and `</think>`, whatever the model's own delimiters are. Text
    that is no call is escaped, so a call happens only by the model's own markup. A call passes as it is written,
    for the environment to judge: what is malformed becomes canonical markup that the environment refuses.

    A subclass says what its regions of calls hold (`read`) and how calls are written (`write`).
    """

    name: str
    openers: tuple[str, ...] = ()
    """Markers that begin a region of calls."""
    closers: tuple[str, ...] = ()
    """Markers that end one; the next opener and the end of the turn do so too."""
    inner: tuple[str, ...] = ()
    """Markers inside a region."""
    stops: tuple[str, ...] = ()
    """Tokens that end a turn, besides the model's own."""
    has_call_ids: bool = False
    """Whether a call may carry an id that the tool's message repeats."""
    shape: re.Pattern[str]
    """What a chat template of this syntax writes for the probe call."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Every text that means something in this syntax."""
        return (*self.openers, *self.closers, *self.inner)

    @abstractmethod
    def read(self, region: Sequence[Piece]) -> str:
        """The calls in what stands after an opener, as canonical markup."""

    def read_bare(self, text: str) -> str | None:
        """The calls that `text`, all that a turn says, consists of; None if it is no calls."""
        return None

    @abstractmethod
    def write(self, calls: Sequence[Call]) -> list[Piece]:
        """Consecutive calls as the model writes them."""

    def call_ids(self, pieces: Sequence[Piece]) -> list[str]:
        """The id that the model gave to each of its calls, "" for none."""
        return []

    def to_canonical(self, pieces: Sequence[Piece]) -> str:
        """A turn of the model in canonical syntax. No two texts stand side by side in `pieces`."""
        regions = self._regions(set_reasoning_apart(pieces))
        said = [region for region in regions if region[0].kind == "text" and _text(region).strip()]
        alone = said[0] if len(said) == 1 and not any(region[0].kind == "marker" for region in regions) else None
        return "".join(self._translate(region, region is alone) for region in regions)

    def from_canonical(self, text: str) -> list[Piece]:
        """A canonical turn as the model writes it. A malformed call is written as its text."""
        pieces: list[Piece] = []
        calls: list[Call] = []
        space = ""  # after the last call
        for part, is_call in [*canonical_parts(text), ("", False)]:
            if is_call:
                calls.append((space, part))
                space = ""
            elif calls and part and not part.strip():
                space = part
            else:
                written = self.write(calls) if calls else []
                pieces += [*written, Piece(space), Piece(part, "marker" if part in ("<think>", "</think>") else "text")]
                calls, space = [], ""
        return [piece for piece in pieces if piece.text]

    def _translate(self, region: Sequence[Piece], alone: bool) -> str:
        if region[0].kind == "reasoning":
            return region[0].text
        if region[0].kind == "marker":
            return self.read(region[1:]) if region[0].text in self.openers else ""
        calls = self.read_bare(_text(region)) if alone else None
        return escape(_text(region)) if calls is None else calls

    def _regions(self, pieces: Sequence[Piece]) -> list[list[Piece]]:
        """Runs of text, reasoning, and regions of calls that begin with their opener."""
        regions: list[list[Piece]] = []
        first = Piece("", "reasoning")  # of the region that is open
        for piece in pieces:
            inside = first.kind == "marker" and first.text in self.openers
            begins = piece.kind == "reasoning" or (piece.kind == "marker" and piece.text not in self.inner)
            if not begins and (inside or piece.kind == first.kind == "text"):
                regions[-1].append(piece)
            elif begins or piece.kind == "text":  # an inner marker out of place says nothing
                first = piece
                regions.append([piece])
        return regions


def call_id(index: int) -> str:
    """The id of a turn's call that has none of its own: nine letters and digits, as Mistral's templates demand."""
    return f"call{index:05d}"


def call_markup(body: str) -> str:
    """`body` as a canonical call. Tags that stand in it are text, whatever the body is."""
    markup = f"<tool_call>{body}</tool_call>"
    if escape(body) != body:
        turn = parse_turn(markup)
        if len(turn.calls) != 1 or turn.errors or turn.content or turn.reasoning:
            markup = f"<tool_call>{escape(body)}</tool_call>"
    return markup


def set_reasoning_apart(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces of which each block of reasoning is one, as `parse_turn` sees them."""
    apart: list[Piece] = []
    opened: list[Piece] | None = None
    for piece in pieces:
        tag = piece.text if piece.kind == "marker" else ""
        if tag == "</think>":  # one that closes nothing makes all before it reasoning
            before = apart if opened is None else opened
            block = Piece("".join(map(_escaped, before)) + tag, "reasoning")
            apart = [block] if opened is None else [*apart, block]
            opened = None
        elif opened is not None:
            opened.append(piece)
        elif tag == "<think>":
            opened = [piece]
        else:
            apart.append(piece)
    return apart if opened is None else [*apart, Piece("".join(map(_escaped, opened)), "reasoning")]


def join_text(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces with no two of text side by side, and none of them empty."""
    joined: list[Piece] = []
    for piece in pieces:
        if piece.kind == "text" and joined and joined[-1].kind == "text":
            joined[-1] = Piece(joined[-1].text + piece.text)
        elif piece.text:
            joined.append(piece)
    return joined


def canonical_parts(text: str) -> list[tuple[str, bool]]:
    """A canonical turn as texts, think tags and the bodies of its calls (True), in order."""
    parts: list[tuple[str, bool]] = []
    position = 0
    while (tag := _TAG.search(text, position)) is not None:
        parts.append((text[position : tag.start()], False))
        if tag[0] == "<tool_call>":
            body, position = _call_body(text, tag.end())
            parts.append((body, True))
            continue
        parts.append((tag[0], False))
        position = tag.end()
        if tag[0] == "<think>":  # a call in reasoning is no call
            end = text.find("</think>", position)
            end = len(text) if end < 0 else end
            parts.append((text[position:end], False))
            position = end
    return [part for part in [*parts, (text[position:], False)] if part[0]]


def _call_body(text: str, start: int) -> tuple[str, int]:
    """What stands between a `<tool_call>` and the tag that closes it, and where that tag ends."""
    try:
        close = _CLOSE.match(text, members(text, start)[1])
    except ValueError:
        close = None
    if close is None:  # malformed: up to the next closing tag
        end = text.find("</tool_call>", start)
        return (text[start:], len(text)) if end < 0 else (text[start:end], end + len("</tool_call>"))
    return text[start : close.start()], close.end()


def _text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces if piece.kind == "text")


def _escaped(piece: Piece) -> str:
    """A piece inside reasoning: of its markers only the think tags stay."""
    if piece.kind == "reasoning" or piece.text in ("<think>", "</think>"):
        return piece.text
    return escape(piece.text)


_TAG = re.compile(r"<think>|</think>|<tool_call>")
_CLOSE = re.compile(r"\s*</tool_call>")
