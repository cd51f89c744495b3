r"""Finds the letter, the value or both in a text that answers a multiple-choice question.

The answer is the last `\boxed{}`, else what follows the last "answer is", "option is", "choice is" (or ":"), else
the whole reply, where that is a letter, an option's text, or both. A small letter counts as one unless it is an
option's own text. In a box all that follows the letter is its value, but for words that are no option's text;
elsewhere only a number or an option's text is, the rest is prose.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from verigym.tasks._boxed import boxed_contents
from verigym.verifiers import _guard, _latex, _numbers
from verigym.verifiers._latex import canonical, tidy
from verigym.verifiers._units import split_unit
from verigym.verifiers.extract import MAX_DIFFERENT_BOXES, answer_block, math_answer

MAX_REPLY_LENGTH = 300

_CUE = re.compile(r"\b(?:answer|option|choice)\s*(?:is\b|would\s+be\b|must\s+be\b|:|=)|####", re.IGNORECASE)
_WRAPPER = re.compile(rf"(?:{_latex.TEXT}|\\textup\s*)\{{([^{{}}]*)\}}")
_SPACING = re.compile(r"\\[,;:! ]|\\q?quad(?![a-zA-Z])|\\[()\[\]]|[~$*`]")
_PREFIX = r"(?:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)s?\s*(?:is\b|:)?\s*)?"
_CORRECT = r"(?:\s+is\s+(?:the\s+)?(?:correct|right)(?:\s+(?:one|answer|option|choice))?)?"
_LETTER = re.compile(rf"{_PREFIX}[(\[]?\s*([a-z])\s*[)\]]?{_CORRECT}\s*[.:,;!]?", re.IGNORECASE)
_TRAILED = re.compile(r"(\S.{0,200}?)\s*[(\[]([A-Z])[)\]]", re.DOTALL)
_LABELLED = re.compile(
    rf"{_PREFIX}(?:[(\[]\s*([a-z])\s*[)\]]|([a-z])\s*[).:])\s*[.:,]?\s*(\S.*)", re.IGNORECASE | re.DOTALL
)
_SPACED = re.compile(rf"(?i:{_PREFIX})([A-Z])(?:\s*,\s*|\s+)(\S.*)", re.DOTALL)
_ONE = r"[(\[]?\s*[A-Z]\s*[)\]]?(?![\w+^*/=-])"
_SEVERAL = re.compile(rf"(?i:{_PREFIX})(?:both\s+)?{_ONE}(?:(?:\s*[,;&/]\s*|\s+|\s*,?\s*\b(?:and|or)\s+){_ONE})+")
_WORDS = re.compile(r"[A-Za-z][A-Za-z ',.;-]+")
_CURRENCY = re.compile(r"^\s*\$?\s*(?:Rs\.?|INR|USD|US)?\s*(?:\\?\$)?\s*(?=\d)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$)")
_LABEL = re.compile(r"[(\[]?\s*([A-Za-z])\s*[).\]:]\s*")

Place = Literal["box", "sentence", "reply"]


@dataclass(frozen=True, slots=True)
class Answer:
    """The letters named and the value given; or, if there is neither, why not."""

    letters: tuple[str, ...] = ()
    value: str = ""
    reason: str = ""


def read(text: str, options: Mapping[str, str]) -> Answer:
    """The answer in a text whose reasoning is cut off."""
    block = answer_block(text)
    text = text if block is None else block
    boxes = boxed_contents(text)
    if len({"".join(box.split()) for box in boxes}) > MAX_DIFFERENT_BOXES:
        return Answer(reason=f"more than {MAX_DIFFERENT_BOXES} different boxed answers")
    if boxes:
        if why := "the last \\boxed{} is empty" if not boxes[-1].strip() else _guard.too_long(boxes[-1]):
            return Answer(reason=why)
        return _in_box(boxes[-1].strip(), options)
    ends = [match.end() for match in _CUE.finditer(text)]
    if ends:
        return _in_prose(text[ends[-1] : ends[-1] + 4 * MAX_REPLY_LENGTH].strip(" \t\n*:"), options)
    if block is not None and block.strip() and not _guard.too_long(block):
        return _in_box(block.strip(), options)
    if len(reply := text.strip()) <= MAX_REPLY_LENGTH and (found := _lettered(reply, options, "reply")):
        return found
    return Answer(reason=r"no \boxed{} answer, no 'the answer is', and the reply is no letter")


def without_labels(options: dict[str, str]) -> dict[str, str]:
    """The options without the label in front of each, if each has its own."""
    labels = {letter: _LABEL.match(text) for letter, text in options.items()}
    if not all(match and match[1].upper() == letter for letter, match in labels.items()):
        return options
    return {letter: options[letter][match.end() :].strip() for letter, match in labels.items() if match}


def _in_box(content: str, options: Mapping[str, str]) -> Answer:
    return _lettered(content, options, "box") or Answer(value=content)


def _in_prose(rest: str, options: Mapping[str, str]) -> Answer:
    line = rest.partition("\n")[0]
    if found := _lettered(line, options, "sentence"):
        return found
    value = math_answer(f"answer: {rest}")
    if value.answer is None or (why := _guard.too_long(value.answer)):
        return Answer(reason=value.reason or why or "")
    return Answer(value=value.answer)


def _lettered(text: str, options: Mapping[str, str], place: Place) -> Answer | None:
    """The letters in front of `text`, and the value that follows one; None if no letter does."""
    text = unicodedata.normalize("NFKC", text) if re.search("[Ａ-Ｚａ-ｚ]", text) else text
    plain = " ".join(_SPACING.sub(" ", _WRAPPER.sub(r" \1 ", text)).split())
    sentence = _SENTENCE_END.split(plain, maxsplit=1)[0].strip()
    for whole in (plain, sentence):
        if _is_option(whole, options) and not re.fullmatch("[A-Z]", whole):
            return Answer(value=whole)
    if match := _LETTER.fullmatch(plain):
        return Answer((match[1].upper(),))
    if several := (_SEVERAL.match if place == "sentence" else _SEVERAL.fullmatch)(plain):
        return Answer(tuple(dict.fromkeys(re.findall(r"(?<![A-Za-z])[A-Z](?![A-Za-z])", several.group()))))
    if match := _LABELLED.fullmatch(plain):
        return Answer(((match[1] or match[2]).upper(),), _claim(match[3], options, place))
    if place == "box" and (match := _TRAILED.fullmatch(plain)) and _is_value(match[1], options):
        return Answer((match[2],), match[1])
    if match := _SPACED.fullmatch(plain):
        claim = _claim(match[2], options, place)
        if place == "sentence" or _is_value(claim, options):  # else `A x` is an expression and "I think" a sentence
            return Answer((match[1],), claim)
    match = _LETTER.fullmatch(sentence) if place == "sentence" else None
    return Answer((match[1].upper(),)) if match else None


def _claim(text: str, options: Mapping[str, str], place: Place) -> str:
    """What follows a letter, if it is meant as the option's value; words that are no option's text are prose."""
    if place != "box":
        text = _SENTENCE_END.split(text, maxsplit=1)[0].strip(" .")
        return text if _is_value(text, options) else ""
    return "" if _WORDS.fullmatch(text) and not _is_option(text, options) else text


def _is_value(text: str, options: Mapping[str, str]) -> bool:
    """Whether `text` can only be meant as an option's value: a number, or an option's text."""
    number = split_unit(tidy(without_currency(text[:MAX_REPLY_LENGTH])))[0]
    return _numbers.exact_number(number) is not None or _is_option(text, options)


def _is_option(text: str, options: Mapping[str, str]) -> bool:
    return any(canonical(text).casefold() == canonical(option).casefold() for option in options.values())


def without_currency(text: str) -> str:
    """`Rs. 400` and `\\$400` as 400."""
    return _CURRENCY.sub("", text)
