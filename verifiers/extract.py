r"""Finds the answer in a model's text: what follows the reasoning, and the final answer of a math solution.

Pure functions, no heavy imports, linear in the length of the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from verigym.tasks._boxed import Box, find_boxes

MAX_DIFFERENT_BOXES = 3
# an answer longer than these is refused anyway; they keep hostile texts from costing more than linear time
MAX_SENTENCE_LENGTH = 4_000
MAX_TAIL_LENGTH = 6_000
MAX_CUE_LENGTH = 60

_AND_TEXT = re.compile(r"(?:\s|\\quad|\\ |[,$])*(?:\\text\{\s*(?:and|or)\s*\}|(?:and|or)\b)(?:\s|\\quad|\\ |\$)*")
_CUE = re.compile(
    r"(?:the\s+|my\s+)?(?:final\s+answer|answer)(?:\s+(?:to|of|for)\s[^.:\n]{0,80}?)?\s*(?:is\b|:|=)|####",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$)")
_CLAUSE = re.compile(r",?\s+(?:because|since|which|where|so|as|for)\s+.*", re.IGNORECASE)
_SPAN = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$(.+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_RESULT = re.compile(
    r"\b(?:we\s+(?:get|obtain|have|find|conclude)|(?:result|value|total|solution)\s+is|gives|yields|equals|is\s+equal\s+to)"
    r"(?:\s+that)?[\s:*]*\Z",
    re.IGNORECASE,
)
_SUBJECT = re.compile(r"(?!.*\b(?:not?|never|cannot|wrong|unknown|maybe|perhaps|either)\b)[^\d,;()?]*", re.IGNORECASE)
_ADVERB = re.compile(
    r"(?:clearly|simply|just|therefore|thus|then|hence|exactly|obviously|indeed|equal\s+to)\s+", re.IGNORECASE
)
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

    The last `\boxed{...}` or `\fbox{...}`; boxes joined by "and" or `\text{and}` are one list, and a text with more
    than three different boxes is a guess and has no answer. Without a box, what follows the last "answer is",
    "answer:" or "####" in its line and sentence. Without either, the `$...$`, `\(...\)` or `\[...\]` with which the
    text ends, if "we get", "the result is", "equals" or the like, or nothing, stands before it; with `latex`, the
    last one anywhere. A bare number in prose is none. If the text has an `<answer>` block, all this goes for the
    block, and without any of it the whole block is the answer.
    """
    block = answer_block(text)
    if block is None:
        return _answer_in(text, latex)
    found = _answer_in(block, latex)
    return found if found.answer or r"\boxed" in block or not block.strip() else Extraction(block.strip())


def _answer_in(text: str, latex: bool) -> Extraction:
    boxes = _joined(text, find_boxes(text))
    if len({"".join(box.split()) for box in boxes}) > MAX_DIFFERENT_BOXES:
        return Extraction(None, f"more than {MAX_DIFFERENT_BOXES} different boxed answers")
    if boxes:
        last = boxes[-1].strip()
        return Extraction(last) if last else Extraction(None, r"the last \boxed{} is empty")
    after_cue = _after_cue(text)
    if after_cue:
        return Extraction(after_cue)
    if span := _last_span(text, anywhere=latex):
        return Extraction(span)
    return Extraction(None, r"no \boxed{} answer and no 'the answer is'")


def _joined(text: str, boxes: list[Box]) -> list[str]:
    r"""The boxed answers; `\boxed{2} \text{ and } \boxed{3}` is one, the list of the two."""
    answers: list[str] = []
    for before, box in zip([None, *boxes], boxes, strict=False):
        if before and _AND_TEXT.fullmatch(text, before.end, box.start):
            answers[-1] += f", {box.content}"
        else:
            answers.append(box.content)
    return answers


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
    end = _SENTENCE_END.search(rest)
    if end and end.group() == "?":
        return None
    sentence = rest[: end.start()] if end else rest
    sentence = sentence.strip().strip("*").strip()
    subject, _, value = sentence.rpartition(" is ")  # "the answer is that x is 5", but not "is 6 which is 5"
    return _value_in(value if _SUBJECT.fullmatch(subject) else sentence)


def _value_in(sentence: str) -> str | None:
    spans = list(_SPAN.finditer(sentence))
    if not spans:
        sentence = _ADVERB.sub("", sentence, count=1) if _ADVERB.match(sentence) else sentence
        return _CLAUSE.sub("", sentence).strip("*` ").rstrip(".,;") or None
    between = [sentence[a.end() : b.start()] for a, b in pairwise(spans)]
    outside = _SPAN.sub("", sentence)
    if len(spans) > 1 and all(_JOINT.fullmatch(part) for part in between):
        return ", ".join(_inside(span) for span in spans)
    if len(spans) == 1 and re.search(r"\d|\bor\b", outside):  # "$4$ or 5" is more than its span
        return sentence.replace("$", "").strip()
    return _inside(spans[0])


def _last_span(text: str, *, anywhere: bool) -> str | None:
    if len(text) > MAX_TAIL_LENGTH:
        text = text[-MAX_TAIL_LENGTH:].partition("\n")[2]
    spans = [span for span in _SPAN.finditer(text) if _inside(span)]
    if not spans:
        return None
    before, after = text[max(0, spans[-1].start() - MAX_CUE_LENGTH) : spans[-1].start()], text[spans[-1].end() :]
    is_result = (_RESULT.search(before) or not before.strip(" \n*")) and not after.strip(" \n*.,;!")
    return _inside(spans[-1]) if anywhere or is_result else None


def _inside(span: re.Match[str]) -> str:
    return next(group for group in span.groups() if group is not None).strip().rstrip(".,;").strip()
