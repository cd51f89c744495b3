r"""Which side of an equation is the answer: `x = 5` and `f(3) = 5` claim 5, but `x^2 = 5` and `x - 1 = 5` do not."""

from __future__ import annotations

import re

from verigym.verifiers._latex import TEXT
from verigym.verifiers._tokens import prompt_tokens, stands_in, tokens

MAX_NAME_LENGTH = 80

_MARKS = re.compile(r"\\(?:angle|triangle|overline|vec|hat|widehat|bar|mathbf|mathcal|measuredangle|odot)(?![a-zA-Z])")
_FUNCTIONS = r"(?:i{0,3}nt|sum|prod|lim|frac|sqrt|log|ln|sin|cos|tan|cot|sec|csc|[pm][mp])(?![a-zA-Z])"
_SYMBOL = re.compile(rf"\\(?!{_FUNCTIONS})[a-zA-Z]+")
# a letter, the points AB, words; with an index, primes, arguments; several of them with commas
_WORD = r"(?:[a-zA-Z]|m?[A-Z]{1,5}|[A-Za-z]{4,40}(?: [A-Za-z]{1,20}){0,4}|max|min|sum|N[ A-Za-z]{0,40})"
_NAME = re.compile(
    rf"{_WORD}(?:\s?_\s?\(?[\w+-]{{1,20}}\)?)?'{{0,3}}(?:\^-1)?\s?(?:\([^()]{{0,40}}\))?"
    r"|\|\s?[A-Za-z]{1,2}\s?\||\[[A-Z]{1,9}\]|\\fracd[a-z]?d[a-z]"
)


def is_name(text: str) -> bool:
    r"""Whether `text` names a quantity: `x_1`, `f(x)`, `AB`, `\angle ABC`, `\text{area}`, `(p,q)`, `\frac{dy}{dx}`."""
    bare = _SYMBOL.sub("N", _MARKS.sub("", re.sub(rf"{TEXT}\{{[^{{}}]*\}}", "N", text)))
    bare = bare.replace("{", "").replace("}", "").strip()
    if len(bare) > MAX_NAME_LENGTH:
        return False
    if bare.startswith("(") and bare.endswith(")"):
        return all(_NAME.fullmatch(part.strip()) for part in bare[1:-1].split(","))
    return _NAME.fullmatch(bare) is not None


def claims(links: list[str], prompt: str) -> list[str]:
    """The links of a chain that claim to be the answer: all but a name, or what the prompt asks for, at either end."""
    if len(links) == 2 and is_name(links[1]) and not is_name(links[0]):
        return links[:1]
    return links[1:] if len(links) > 1 and (is_name(links[0]) or _is_asked(links[0], prompt)) else links


def _is_asked(text: str, prompt: str) -> bool:
    """Whether the prompt holds the expression, and does not itself say what it is equal to."""
    expression = tokens(text)
    return bool(expression) and stands_in(expression, prompt_tokens(prompt), alone=True)
