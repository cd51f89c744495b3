r"""Refuses answers that leave the work undone: the question restated, or an expression nobody evaluated.

The policy, for a gold answer that is not written that way itself:

- an integral, sum, product, limit or derivative sign is never part of an answer;
- a product of whole numbers with a multiplication sign (`19 \cdot 21`) is not evaluated; powers of ten are
  scientific notation and are;
- an expression with an operation in it that stands in the task's prompt, in either order of its two operands,
  restates the prompt; spelling (`\times`, `\cdot`, `*`, "times", `\frac` and `/`, spaces) is ignored.

Finished numbers (whole, decimal, reduced fraction) are never refused, and neither are the gold answer's own
characters in another order. `7 + 1` for 8 and `16/2` for 8 are answers, unless the prompt asks just that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from verigym.verifiers import _latex, _numbers
from verigym.verifiers._latex import fold_unicode, tidy

MAX_PROMPT_LENGTH = 20_000

_UNDONE = re.compile(
    r"\\(?:i{0,3}int|oint|sum|prod|lim|limsup|liminf|partial)(?![a-zA-Z])"
    r"|\\frac\s*\{\s*(?:\\mathrm\s*\{)?d\}?\s*\}\s*\{\s*(?:\\mathrm\s*\{)?d"
)
_PRODUCT = re.compile(r"(?<![\d.^{a-zA-Z])\d+\s*(?:\\cdot|\\times|\*)\s*(?!10\s*\^|10\s*\*\*)\d+(?![\d.^!])")
_OPERATION = re.compile(r"[-+*/^!|]|\d\(|\)\(|\d[a-z]|frac|sqrt|binom|mod|gcd|lcm|sin|cos|tan|log|ln")
_SIGNS = {"multiplied by": "*", "divided by": "/", "times": "*", "plus": "+", "minus": "-", "over": "/"}
_SIGN_WORD = re.compile(rf"\s+({'|'.join(_SIGNS)})\s+")
_TWO_OPERANDS = re.compile(r"([\w.]+)([+*])([\w.]+)")
_SPELLINGS = [
    (re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[,;:!]|\\displaystyle|\$"), ""),
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"\1/\2"),
    (re.compile(r"\\(?:cdot|times|ast)(?![a-z])"), "*"),
    (re.compile(r"\\div(?![a-z])"), "/"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"[\s{}\\]"), ""),
]


def restated(answer: str, golds: Sequence[str], prompt: str) -> str | None:
    """Why the answer is refused as unevaluated; None if it is not."""
    tidied = tidy(answer)
    last = _latex.split_top(tidied, _latex.EQUALS)[-1] if "=" in tidied else tidied
    if _numbers.is_reduced(last):
        return None
    if _UNDONE.search(last) and not any(_UNDONE.search(gold) for gold in golds):
        return "the answer is not evaluated"
    if _PRODUCT.search(last) and not any(_PRODUCT.search(tidy(gold)) for gold in golds):
        return "the answer is a product that is not evaluated"
    plain = _plain(last)
    if len(plain) < 3 or not _OPERATION.search(plain[1:]):
        return None
    if any(sorted(plain) == sorted(_plain(tidy(gold))) for gold in golds):
        return None
    if any(_stands_in(form, _plain_prompt(prompt)) for form in _orders(plain)):
        return "the answer restates the question"
    return None


def _plain(text: str) -> str:
    """An expression without spacing, braces and differences of notation."""
    text = text.casefold()
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return text


@lru_cache(maxsize=512)
def _plain_prompt(prompt: str) -> str:
    text = fold_unicode(prompt[:MAX_PROMPT_LENGTH]).casefold()
    text = _SIGN_WORD.sub(lambda match: _SIGNS[match[1]], text)
    # the border of a word stays visible, so that it never runs into an expression
    return _plain(re.sub(r"(?<![\\a-z])([a-z]{2,})(?=[\s.,?!:;])", r"\1|", text))


def _orders(plain: str) -> list[str]:
    match = _TWO_OPERANDS.fullmatch(plain)
    return [plain, f"{match[3]}{match[2]}{match[1]}"] if match else [plain]


def _stands_in(expression: str, prompt: str) -> bool:
    """Whether the prompt holds the expression whole: not as a part of a longer number, name or power."""
    return re.search(rf"(?<![\w.^]){re.escape(expression)}(?![\w^]|\.\d)", prompt) is not None
