r"""Finds the `\boxed{}` answers in LaTeX text. Pure, linear in the length of the text."""

from __future__ import annotations

import re
from typing import NamedTuple

# a longer answer is refused anyway; the limits keep hostile texts from costing more than linear time
MAX_UNCLOSED_BOXES = 5
MAX_BOX_LENGTH = 4_000

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_BARE = re.compile(r"[^\s${}]+")
_BRACES = re.compile(r"\\[\\{}]|[{}]")


class Box(NamedTuple):
    """A box is `text[start:end]`."""

    start: int
    end: int
    content: str


def boxed_contents(text: str) -> list[str]:
    """The contents of the boxes, in order."""
    return [box.content for box in find_boxes(text)]


def find_boxes(text: str) -> list[Box]:
    r"""The outermost `\boxed` and `\fbox`, in order; one that never closes is no box."""
    boxes: list[Box] = []
    position = unclosed = 0
    while match := _BOX.search(text, position):
        position = match.end()
        if text[position : position + 1] == "{":
            end = _closing_brace(text, position)
            if end is None:
                unclosed += 1
                if unclosed > MAX_UNCLOSED_BOXES:
                    break
                continue
            boxes.append(Box(match.start(), end + 1, text[position + 1 : end]))
            position = end
        elif bare := _BARE.match(text, position):
            boxes.append(Box(match.start(), bare.end(), bare.group().rstrip(".,;")))
            position = bare.end()
    return boxes


def _closing_brace(text: str, start: int) -> int | None:
    end = text.find("}", start)
    if end < 0 or ("{" not in text[start + 1 : end] and text[end - 1] != "\\"):
        return end if end >= 0 else None  # flat, as most are
    depth = 0
    for match in _BRACES.finditer(text, start, start + MAX_BOX_LENGTH):
        found = match.group()
        if found == "{":
            depth += 1
        elif found == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return None
