r"""Refuses answers that would cost too much to read or to evaluate, before anything reads them."""

from __future__ import annotations

import re

MAX_LENGTH = 3000
MAX_DEPTH = 24
MAX_DIGIT_RUN = 300
MAX_POWERS = 60

_BRACKETS = re.compile(r"[{}()\[\]]")
_DIGIT_RUN = re.compile(rf"\d{{{MAX_DIGIT_RUN + 1}}}")
_FACTORIAL = re.compile(r"(?:\d{5,}|\)|\}|!)\s*!")
_HUGE_BINOMIAL = re.compile(r"binom\s*\{?\s*(?:\d{6,}|[^{}]*\^)")
_HUGE_EXPONENT = re.compile(r"(?:\^|\*\*)\s*[{(]*\s*-?\s*\d{5,}")
_TOWER = re.compile(r"(?:\^|\*\*)\s*[{(]*\s*-?\d+\s*[})]*\s*(?:\^|\*\*)|\d!\s*\^|(?:\^|\*\*)\s*[{(]*\s*-?\d+\s*!")


def too_long(text: str) -> str | None:
    """Why `text` is refused for its size or nesting; None if it is not. Linear, for texts of any length."""
    if len(text) > MAX_LENGTH:
        return f"the answer is longer than {MAX_LENGTH} characters"
    if _DIGIT_RUN.search(text):
        return f"the answer holds a number of more than {MAX_DIGIT_RUN} digits"
    depth = 0
    for bracket in _BRACKETS.finditer(text):
        depth += 1 if bracket.group() in "{([" else -1
        if depth > MAX_DEPTH:
            return f"the answer nests more than {MAX_DEPTH} levels deep"
    return None


def too_large(text: str) -> str | None:
    """Why the value of `text` is refused as too large to evaluate; None if it seems not to be.

    A filter for the usual cases (power towers, factorials, binomials of huge numbers), so that they cost
    nothing; what it lets through meets the worker's limit on CPU time.
    """
    if text.count("^") > MAX_POWERS:
        return f"the answer holds more than {MAX_POWERS} powers"
    for pattern in (_TOWER, _HUGE_EXPONENT, _FACTORIAL, _HUGE_BINOMIAL):
        if pattern.search(text):
            return "the answer is too large to evaluate"
    return None
