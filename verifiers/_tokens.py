r"""Expressions of a prompt and of an answer as tokens, so that spelling and order of terms make no difference.

`\dfrac{1}{2}`, `\frac12`, "1/2" and "1 divided by 2" have the same tokens, and so have `9 + (10)` and "9 plus 10":
brackets, spaces and multiplication signs are left out. A word, a dollar sign or a question mark is a border.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

from verigym.verifiers._latex import TEXT, fold_unicode

MAX_PROMPT_LENGTH = 20_000
BORDER = "|border|"
RELATIONS = frozenset({"=", "<", ">", r"\le", r"\ge", r"\ne"})
_FUNCTION_NAMES = """
    sqrt binom gcd lcm sin cos tan cot sec csc arcsin arccos arctan log ln exp mod det max min lfloor lceil
"""
FUNCTIONS = frozenset(rf"\{name}" for name in _FUNCTION_NAMES.split())
_OPERATORS = frozenset({"+", "-", "^", "!", "/", "%"})

_SPELLINGS = [
    (re.compile(r"\\(?:begin|end)\s*\{(?:[a-zA-Z]*matrix|array)\}(?:\{[^{}]*\})?"), " & "),
    (re.compile(r"(?<=\d),\\!(?=\d)|(?<=\d)\{,\}(?=\d)"), ","),
    (re.compile(r"\^\s*\{?\s*\\circ(?![a-zA-Z])\s*\}?"), " "),
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![a-zA-Z])"), " "),
    (re.compile(r"\^\s*[{(]*\s*(?:1\s*/\s*2|\\[dt]?frac\s*\{?1\}?\s*\{?2\}?|0?\.5)\s*[})]*"), r"\\sqrt "),
    (re.compile(r"\\sqrt\s*\[\s*2\s*\]"), r"\\sqrt "),
    (re.compile(r"\\(?:[dtc]?frac|nicefrac|sfrac|[dt]?binom)\s*(?=\d\s*\d)"), r"\g<0> "),
    (re.compile(r"((?:frac|binom)\s*\d|_\s*\d)(?=\d)"), r"\1 "),
    (re.compile(r"\\(?:[dtc]?frac|nicefrac|sfrac|div|over)(?![a-zA-Z])"), " / "),
    (re.compile(r"\\(?:[dt]?binom|choose)(?![a-zA-Z])"), r"\\binom "),
    (re.compile(r"\\(?:cdot|times|ast|bullet)(?![a-zA-Z])|\\[,;:! ]|\\q?quad(?![a-zA-Z])|~"), " "),
    (re.compile(r"\\[lr]?vert(?![a-zA-Z])|\\mid(?![a-zA-Z])"), "|"),
    (re.compile(r"\\leq(?:slant)?(?![a-zA-Z])|<="), r"\\le "),
    (re.compile(r"\\geq(?:slant)?(?![a-zA-Z])|>="), r"\\ge "),
    (re.compile(rf"{TEXT}\{{[^{{}}]*\}}"), " ? "),
    (re.compile(r"\*\*"), "^"),
]  # fmt: skip
_IN_WORDS = [
    (re.compile(r"\bsquare root of\b", re.IGNORECASE), r"\\sqrt "),
    (re.compile(r"(?<=[\w)}$])\s+(?:times|multiplied by)\s+(?=[\w({$\\-])"), " * "),
    (re.compile(r"(?<=[\w)}$])\s+(?:divided by|over)\s+(?=[\w({$\\-])"), " / "),
    (re.compile(r"(?<=[\w)}$])\s+plus\s+(?=[\w({$\\-])"), " + "),
    (re.compile(r"(?<=[\w)}$])\s+minus\s+(?=[\w({$\\-])"), " - "),
    (re.compile(r"(?<=[\w)}$])\s+squared\b"), "^2"),
    (re.compile(r"(?<=[\w)}$])\s+cubed\b"), "^3"),
    (re.compile(r"(?<=\d)\s+factorial\b"), "!"),
]
_TOKEN = re.compile(r"\\[a-zA-Z]+|\d+(?:,\d{3})*(?:\.\d+)?|\.\d+|[a-zA-Z]+|[^\s\w]")
_MATH = re.compile(r"(\$\$?|\\[\[\]()])")
_DROPPED = frozenset("{}()[]*._\\")
_BORDERS = frozenset("?;:&$")

Tokens = tuple[str, ...]


def tokens(expression: str) -> Tokens:
    """The tokens of an answer."""
    return tuple(_read(_plain(expression), prose=False))


@lru_cache(maxsize=512)
def prompt_tokens(prompt: str) -> Tokens:
    text = fold_unicode(prompt[:MAX_PROMPT_LENGTH]).replace(r"\$", " ")
    for pattern, replacement in _IN_WORDS:
        text = pattern.sub(replacement, text)
    found: list[str] = [BORDER]
    for n, part in enumerate(_MATH.split(text)[::2]):
        found += [*_read(_plain(part), prose=n % 2 == 0), BORDER]
    return tuple(found)


def key(expression: Sequence[str]) -> list[tuple[str, list[str]]]:
    """What two orders of the same terms and factors share: the tokens, or, with a minus, the signed terms; sorted."""
    if "-" not in expression:
        return [("", sorted(expression))]
    terms: list[tuple[str, list[str]]] = [("+", [])]
    for token in expression:
        if token in {"+", "-"}:
            terms.append((token, []))
        else:
            terms[-1][1].append(token)
    return sorted((sign, sorted(term)) for sign, term in terms if term)


def has_operation(expression: Sequence[str]) -> bool:
    """Whether there is anything to evaluate: more than a number, a name, a list of these."""
    unsigned = expression[1:] if expression[:1] in (("-",), ["-"]) else expression
    if any(token in _OPERATORS or token in FUNCTIONS or token in {"|", r"\overline"} for token in unsigned):
        return True
    return any(_is_operand(a) and _is_operand(b) for a, b in pairwise(unsigned))


def stands_in(expression: Tokens, prompt: Tokens, *, alone: bool = False) -> bool:
    """Whether the prompt holds the expression whole, its terms in any order; `alone`: on neither side of a relation."""
    wanted, sums = key(expression), _sums(prompt)
    wanted_sum = _sums(expression)[-1]
    # `10 - 9` has a token less than `-9 + 10`
    for size in (len(expression), len(expression) + (-1 if expression[0] == "-" else 1)):
        for start in range(1, len(prompt) - size):
            end = start + size
            if sums[end] - sums[start] != wanted_sum:
                continue
            before, after = prompt[start - 1], prompt[end]
            whole = not (_goes_on(before) or _goes_on(after) or after == "!")
            if alone and (before in RELATIONS or after in RELATIONS):
                continue
            if whole and key(prompt[start:end]) == wanted:
                return True
    return False


@lru_cache(maxsize=512)
def _sums(found: Tokens) -> list[int]:
    """The running sum of the tokens' hashes, signs left out: windows that differ in it need no closer look."""
    return [0, *accumulate(0 if token in {"+", "-"} else hash(token) for token in found)]


def _plain(text: str) -> str:
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return text


def _read(text: str, *, prose: bool) -> list[str]:
    found = []
    for token in _TOKEN.findall(text):
        if token in _DROPPED:
            continue
        if token in _BORDERS:
            found.append(BORDER)
        elif token.isalpha():
            found += _letters(token, prose)
        elif token[0].isdigit() or (token[0] == "." and len(token) > 1):
            found.append(_number(token))
        else:
            found.append(token)
    return found


def _letters(word: str, prose: bool) -> list[str]:
    if rf"\{word}" in FUNCTIONS:
        return [rf"\{word}"]
    if len(word) > 3 or (prose and (len(word) > 1 or word in "aAI")):
        return [BORDER]
    return list(word)


def _number(digits: str) -> str:
    whole, point, places = digits.replace(",", "").partition(".")
    places = places.rstrip("0")
    return f"{whole.lstrip('0') or '0'}.{places}" if point and places else whole.lstrip("0") or "0"


def _is_operand(token: str) -> bool:
    return token[0].isalnum() or token == r"\pi"


def _goes_on(token: str) -> bool:
    """Whether an expression beside this token is only a part of a longer one."""
    return _is_operand(token) or token in _OPERATORS - {"!"} or token in FUNCTIONS
