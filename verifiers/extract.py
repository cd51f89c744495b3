r"""Finds the answer in a model's text: what follows the reasoning, and the final answer of a math solution.

Pure functions, no heavy imports, linear in the length of the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

MAX_DIFFERENT_BOXES = 3
# an answer longer than these is refused anyway; they keep hostile texts from costing more than linear time
MAX_UNCLOSED_BOXES = 5
MAX_BOX_LENGTH = 4_000
MAX_SENTENCE_LENGTH = 4_000
MAX_TAIL_LENGTH = 6_000

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_AND_TEXT = re.compile(r"(?:\s|\\quad|\\ |,)*\\text\{\s*(?:and|or)\s*\}(?:\s|\\quad|\\ )*")
_BARE = re.compile(r"[^\s${}]+")
_BRACES = re.compile(r"\\[\\{}]|[{}]")
_CUE = re.compile(
    r"(?:the\s+|my\s+)?(?:final\s+answer|answer)(?:\s+(?:to|of|for)\s[^.:\n]{0,80}?)?\s*(?:is\b|:|=)|####",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$)")
_CLAUSE = re.compile(r",?\s+(?:because|since|which|where|so|as|for)\s+.*", re.IGNORECASE)
_SPAN = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$(.+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_JOINT = re.compile(r"[\s,]*(?:and|or|,)?\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Extraction:
    """The answer found in a text (None if there is none) and, if there is none, why."""

    answer: str | None
    reason: str = ""


def answer_text(text: str) -> str | None:
    """The text after the reasoning: after the last `</think>`; None if a `<think>` stays open.

    An orphan `</think>` counts: chat templates open the block in the prompt.
    """
    _, closed, rest = text.rpartition("</think>")
    after = rest if closed else text
    return None if "<think>" in after else after


def answer_block(text: str) -> str | None:
    """What stands in `<answer>...</answer>`; None unless the text has exactly one such block."""
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return None
    inside, closed, _ = text.partition("<answer>")[2].partition("</answer>")
    return inside if closed else None


def math_answer(text: str, *, latex: bool = False) -> Extraction:
    r"""The final answer of a solution (reasoning already cut off by `answer_text`).

    The last `\boxed{...}` or `\fbox{...}`; boxes joined by `\text{and}` are one list, and a text with more than
    three different boxes is a guess and has no answer. Without a box, what follows the last "answer is", "answer:"
    or "####" in its line and sentence. With `latex`, without either, the last `$...$`, `\(...\)` or `\[...\]`.
    A bare number in prose is none. If the text has an `<answer>` block, all this goes for the block, and without
    any of it the whole block is the answer.
    """
    block = answer_block(text)
    if block is None:
        return _answer_in(text, latex)
    found = _answer_in(block, latex)
    return found if found.answer or r"\boxed" in block or not block.strip() else Extraction(block.strip())


def _answer_in(text: str, latex: bool) -> Extraction:
    boxes = _joined(text, _boxes(text))
    if len({"".join(box.split()) for box in boxes}) > MAX_DIFFERENT_BOXES:
        return Extraction(None, f"more than {MAX_DIFFERENT_BOXES} different boxed answers")
    if boxes:
        last = boxes[-1].strip()
        return Extraction(last) if last else Extraction(None, r"the last \boxed{} is empty")
    after_cue = _after_cue(text)
    if after_cue:
        return Extraction(after_cue)
    if latex and (span := _last_span(text)):
        return Extraction(span)
    return Extraction(None, r"no \boxed{} answer and no 'the answer is'")


def boxed_contents(text: str) -> list[str]:
    r"""The contents of the outermost `\boxed` and `\fbox`, in order; one that never closes is no box."""
    return [box.content for box in _boxes(text)]


class _Box(NamedTuple):
    start: int
    end: int
    content: str


def _boxes(text: str) -> list[_Box]:
    boxes: list[_Box] = []
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
            boxes.append(_Box(match.start(), end + 1, text[position + 1 : end]))
            position = end
        elif bare := _BARE.match(text, position):
            boxes.append(_Box(match.start(), bare.end(), bare.group().rstrip(".,;")))
            position = bare.end()
    return boxes


def _joined(text: str, boxes: list[_Box]) -> list[str]:
    r"""The boxed answers; `\boxed{2} \text{ and } \boxed{3}` is one, the list of the two."""
    answers: list[str] = []
    for before, box in zip([None, *boxes], boxes, strict=False):
        if before and _AND_TEXT.fullmatch(text, before.end, box.start):
            answers[-1] += f", {box.content}"
        else:
            answers.append(box.content)
    return answers


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


def _after_cue(text: str) -> str | None:
    """What follows the last cue, to the end of its line and sentence, without the words around the value."""
    if "####" not in text and "answer" not in text.lower():  # far cheaper than the search
        return None
    ends = [match.end() for match in _CUE.finditer(text)]
    if not ends:
        return None
    rest = text[ends[-1] : ends[-1] + MAX_SENTENCE_LENGTH].lstrip(" \t*:")
    if rest[:1] == "\n":  # "Answer:" alone on its line
        rest = rest.lstrip()
    if (span := _SPAN.match(rest)) and "\n" in span.group():
        return _inside(span)
    sentence = _SENTENCE_END.split(rest, maxsplit=1)[0].strip().strip("*").strip()
    if " is " in sentence:
        sentence = sentence.rpartition(" is ")[2]
    return _value_in(sentence)


def _value_in(sentence: str) -> str | None:
    spans = list(_SPAN.finditer(sentence))
    if not spans:
        return _CLAUSE.sub("", sentence).strip("*` ").rstrip(".,;") or None
    between = [sentence[a.end() : b.start()] for a, b in pairwise(spans)]
    outside = _SPAN.sub("", sentence)
    if len(spans) > 1 and all(_JOINT.fullmatch(part) for part in between):
        return ", ".join(_inside(span) for span in spans)
    if len(spans) == 1 and re.search(r"\d|\bor\b", outside):  # "$4$ or 5" is more than its span
        return sentence.replace("$", "").strip()
    return _inside(spans[0])


def _last_span(text: str) -> str | None:
    if len(text) > MAX_TAIL_LENGTH:
        text = text[-MAX_TAIL_LENGTH:].partition("\n")[2]
    spans = [span for span in _SPAN.finditer(text) if _inside(span)]
    return _inside(spans[-1]) if spans else None


def _inside(span: re.Match[str]) -> str:
    return next(group for group in span.groups() if group is not None).strip().rstrip(".,;").strip()
