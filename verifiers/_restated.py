r"""Refuses answers that leave the work undone: the question restated, or an expression nobody evaluated.

The policy, for a gold answer that is not written that way itself:

- an integral, sum, product, limit or derivative sign is never part of an answer;
- a product of whole numbers with a multiplication sign (`19 \cdot 21`) is not evaluated; powers of ten are
  scientific notation and are;
- an expression with an operation in it, or an equation, that stands in the task's prompt restates the prompt; spelling
  and the order of terms and factors do not matter, nor does a neutral `+ 0` or `/ 1` (see `_tokens`);
- where the prompt says "factor" and the gold answer is a product of brackets, so must the answer be.

Finished numbers (whole, decimal, reduced fraction, but not scientific notation) are never refused, and neither is the
gold answer with its terms in another order, nor `x = 5` for 5. `7 + 1` for 8 and `16/2` for 8 are answers, unless
the prompt has just that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from verigym.verifiers import _latex, _numbers
from verigym.verifiers._latex import tidy
from verigym.verifiers._tokens import RELATIONS, Tokens, has_operation, key, prompt_tokens, stands_in, tokens
from verigym.verifiers._units import split_unit

_UNDONE = re.compile(
    r"\\(?:i{0,3}int|oint|sum|prod|lim|limsup|liminf|partial)(?![a-zA-Z])"
    r"|\\frac\s*\{\s*(?:\\mathrm\s*\{)?d\}?\s*\}\s*\{\s*(?:\\mathrm\s*\{)?d"
)
_PRODUCT = re.compile(r"(?<![\d.^{a-zA-Z])\d+\s*(?:\\cdot|\\times|\*)\s*(?!10\s*\^|10\s*\*\*)\d+(?![\d.^!])")
_FACTOR = re.compile(r"\bfactor(?:i[sz]e)?\b(?! of\b)", re.IGNORECASE)
_BRACKETS = re.compile(r"\([^(),]*[a-z][^(),]*\)")
# what changes no value: + 0, / 1, two signs
_NEUTRAL = (("+", "0"), ("-", "0"), ("/", "1"), ("-", "-"))
MAX_TOKENS = 200


def restated(answer: str, golds: Sequence[str], prompt: str) -> str | None:
    """Why the answer is refused as unevaluated; None if it is not."""
    tidied = tidy(answer)
    last = _latex.split_top(tidied, _latex.EQUALS)[-1] if "=" in tidied else tidied
    if _is_finished(tidied):
        return None
    if _UNDONE.search(last) and not any(_UNDONE.search(gold) for gold in golds):
        return "the answer is not evaluated"
    if _PRODUCT.search(last) and not any(_PRODUCT.search(tidy(gold)) for gold in golds):
        return "the answer is a product that is not evaluated"
    if _restates(tidied, last, golds, prompt):
        return "the answer restates the question"
    if _FACTOR.search(prompt) and not _BRACKETS.search(tidied) and all(map(_BRACKETS.search, golds)):
        return "the answer is not factored"
    return None


def _restates(tidied: str, last: str, golds: Sequence[str], prompt: str) -> bool:
    claims = [_claim(text) for text in {tidied, last} if not _is_finished(split_unit(text)[0])]
    claims = [claim for claim in claims if _is_undone(claim)]
    if not claims or any(
        key(claim) == key(_claim(part)) for gold in golds for part in _parts(gold) for claim in claims
    ):
        return False
    asked = prompt_tokens(prompt)
    return any(stands_in(form, asked) for claim in claims for form in _forms(claim))


def _is_finished(text: str) -> bool:
    return _numbers.is_reduced(text) and "^" not in text  # the prompt may ask for `8.7 \\times 10^5` in digits


def _parts(gold: str) -> tuple[str, str]:
    whole = tidy(gold)
    return whole, _latex.split_top(whole, _latex.EQUALS)[-1]


def _claim(text: str) -> Tokens:
    return tokens(split_unit(text)[0])


def _is_undone(claim: Tokens) -> bool:
    """Whether a claim can be a question: an expression to evaluate, or an equation other than `x = 5`."""
    if not claim or len(claim) > MAX_TOKENS:
        return False
    return has_operation(claim) or ("=" in claim[2:] and len(claim) > 3) or bool(RELATIONS & set(claim[2:-2]))


def _forms(claim: Tokens) -> Iterator[Tokens]:
    """The claim, and the claim without what changes no value."""
    yield claim
    for neutral in _NEUTRAL:
        rest = list(reversed(claim))
        if all(claim.count(token) >= neutral.count(token) for token in neutral) and len(rest) > 3:
            for token in neutral:
                rest.remove(token)
            yield tuple(reversed(rest))
