r"""Whether an answer is the gold answer: words, numbers, names and lists by rule, the rest by sympy.

The policy, in the order in which it applies:

- Equal after tidying (white space, `\left`, `$`, `\dfrac`, degree signs, thousands separators): equal.
- Units may be missing on either side; two known units must agree. `10\%` is 10 and is 0.1.
- Plain numbers are compared exactly; a decimal may differ by 5e-7 and by a millionth of the gold answer.
- `\text{...}` answers are compared as words, without regard to case.
- `name = value` is its value; in a chain each link must equal the gold answer; two names must be the same.
- A bare list or set is free of order, anything in ( ) or [ ] is ordered, and brackets must be the same; a
  bare list may stand for a ( ) tuple. `\pm` stands for two elements. One too few, too many or twice is wrong.
- Matrices are compared entry by entry.
- Anything else is compared by math-verify in a worker process (`Oracle`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from verigym.verifiers import _latex, _numbers
from verigym.verifiers._latex import canonical, split_list, split_top, tidy
from verigym.verifiers._units import split_unit, units_agree

Oracle = Callable[[str, str], bool]
MAX_ELEMENTS = 64

_PM = re.compile(r"\\[pm][mp](?![a-zA-Z])")
_IN_SET = re.compile(r"^\s*[a-zA-Z](?:\s*\([a-z]\))?\s*\\in(?![a-zA-Z])\s*")
_APPROX = re.compile(r"\\(?:approx|simeq)(?![a-zA-Z])")
_BASE = re.compile(r"(?P<digits>[0-9A-Fa-f]+)\s*_\s*\{?\s*(?P<base>\d+|[a-z]+)\s*\}?")
_BASE_WORDS = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
}
_MATRIX = re.compile(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", re.DOTALL)
_UNBOUNDED = re.compile(r"\\infty|[<>]|\\(?:le|ge|ne|mathbb|setminus)(?![a-zA-Z])")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
_TEXT_ONLY = re.compile(rf"{_latex._TEXT}\{{[^{{}}]*\}}")
_NOT_A_NUMBER = re.compile(r"(?<![a-zA-Z])(?:nan|zoo|oo|inf)(?![a-zA-Z])", re.IGNORECASE)


def equal(gold: str, answer: str, oracle: Oracle, *, gold_is_float: bool = False) -> bool:
    """Whether two answers, in LaTeX or plain, are the same. `oracle` compares what the rules leave open."""
    if canonical(gold) == canonical(answer):
        return bool(canonical(gold))
    try:
        return _equal(tidy(gold), tidy(answer), oracle, gold_is_float)
    except RecursionError:  # lists in lists in lists: no answer
        return False


def _equal(gold: str, answer: str, oracle: Oracle, gold_is_float: bool = False) -> bool:
    if not gold or not answer:
        return False
    if canonical(gold) == canonical(answer):
        return True
    verdict = _as_words(gold, answer)
    if verdict is None:
        verdict = _as_numbers(gold, answer, gold_is_float)
    if verdict is None:
        verdict = _as_equations(gold, answer, oracle, gold_is_float)
    if verdict is None:
        verdict = _as_matrices(gold, answer, oracle)
    if verdict is None:
        verdict = _as_lists(gold, answer, oracle)
    if verdict is None:
        verdict = _as_expressions(gold, answer, oracle)
    return verdict


def _as_words(gold: str, answer: str) -> bool | None:
    r"""Text against text: `\text{Evelyn}`, `\text{(C)}`, `even`. None if the gold answer is no text."""
    wrapped = _TEXT_ONLY.fullmatch(gold) is not None
    expected, given = _plain_words(gold), _plain_words(answer)
    if not wrapped and not (_WORDS.fullmatch(gold) and len(gold) >= 4):
        return True if len(expected) == 1 and expected.isalpha() and expected == given else None
    if not expected:
        return None
    if expected.casefold() == given.casefold():
        return True
    return False if wrapped and expected.replace(" ", "").isalpha() and len(expected) > 1 else None


def _plain_words(text: str) -> str:
    bare = re.sub(rf"{_latex._TEXT}\{{([^{{}}]*)\}}", r"\1", text)
    return re.sub(r"[\s()$.,:;!{}]+", " ", bare).strip()


def _as_numbers(gold: str, answer: str, gold_is_float: bool) -> bool | None:
    """Number against number, with units, percent signs and bases. None if either is no plain number."""
    expected_text, expected_unit = split_unit(gold)
    given_text, given_unit = split_unit(answer)
    if (in_base := _as_based(expected_text, given_text)) is not None:
        return in_base
    expected, given = _numbers.exact_number(expected_text), _numbers.exact_number(given_text)
    if expected is None or given is None:
        return None
    if not units_agree(expected_unit, given_unit):
        return False
    if _numbers.close(expected, given, gold_is_float=gold_is_float):
        return True
    if (expected_unit == "percent") == (given_unit == "percent"):
        return False
    scale = Fraction(1, 100)
    if expected_unit == "percent":
        expected = _numbers.Number(expected.value * scale, expected.is_decimal)
    else:
        given = _numbers.Number(given.value * scale, given.is_decimal)
    return _numbers.close(expected, given)


def _as_based(gold: str, answer: str) -> bool | None:
    """`4343_6`: the same digits, with the same base or none (the question names it); None without a base."""
    expected, given = _BASE.fullmatch(_drop_text(gold)), _BASE.fullmatch(_drop_text(answer))
    if expected is None:
        if given is None or not given["digits"].isdigit():
            return None
        return _base_of(given) == 10 and given["digits"] == gold
    if given is None:
        return answer.strip() == expected["digits"] if re.fullmatch(r"[0-9A-Fa-f]+", answer.strip()) else None
    return expected["digits"] == given["digits"] and _base_of(expected) == _base_of(given)


def _base_of(match: re.Match[str]) -> int | str:
    base = match["base"]
    return int(base) if base.isdigit() else _BASE_WORDS.get(base, base)


def _drop_text(text: str) -> str:
    return re.sub(rf"{_latex._TEXT}\{{([^{{}}]*)\}}", r"\1", text).strip()


def _as_equations(gold: str, answer: str, oracle: Oracle, gold_is_float: bool) -> bool | None:
    """`name = value` on either side, and chains of them. None if there is no such thing."""
    gold, answer = _without_membership(gold), _without_membership(answer)
    if len(split_list(gold)[1]) > 1 or len(split_list(answer)[1]) > 1:
        return None
    gold_links, links = _links(gold), _links(answer)
    if len(gold_links) == len(links) == 1:
        return None
    if len(gold_links) == 1:
        return all(_equal(gold, link, oracle, gold_is_float) for link in _values(links))
    if len(links) == 1:
        values = _values(gold_links)
        if len(values) > 1 or any(map(_is_name, gold_links)):
            return _equal(values[-1], answer, oracle, gold_is_float)
        return None  # an equation between expressions
    if _is_name(gold_links[0]) and _is_name(links[0]) and canonical(gold_links[0]) != canonical(links[0]):
        return None if len(links) == 2 else False
    if len(links) > 2 or len(gold_links) > 2:
        value = _values(gold_links)[-1]
        return all(_equal(value, link, oracle, gold_is_float) for link in _values(links))
    if _is_name(gold_links[0]) and canonical(gold_links[0]) == canonical(links[0]):
        return _equal(gold_links[1], links[1], oracle, gold_is_float)
    return None


def _links(text: str) -> list[str]:
    """The parts of `text` between its equals signs; an approximation after an exact value is left out."""
    parts = split_top(text, _APPROX)
    if len(parts) > 1:
        text = f"{parts[0]}={parts[1]}" if _is_name(parts[0]) else parts[0]
    return split_top(text, _latex.EQUALS)


def _values(links: list[str]) -> list[str]:
    """The links that claim to be the answer: all but a name at the start (or at the end, as in `2 = x`)."""
    if len(links) == 2 and _is_name(links[1]) and not re.search("[a-zA-Z]", links[0]):
        return links[:1]
    return links[1:] if re.search("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", links[0])) or _is_name(links[0]) else links


def _is_name(text: str) -> bool:
    """Whether `text` names a quantity: `x`, `x_1`, `f(x)`, `AB`, `\angle ABC`, `\text{area}`, `(p,q)`."""
    bare = re.sub(rf"{_latex._TEXT}\{{[^{{}}]*\}}|\\[a-zA-Z]+", "a", text)
    return bool(
        re.fullmatch(r"\s*\(?[a-zA-Z][a-zA-Z\s']*(?:_\s*\{?\w+\}?)?(?:,[a-zA-Z, ]*)?(?:\([\w,\s]*\))?\)?\s*", bare)
    )


def _without_membership(text: str) -> str:
    return _IN_SET.sub("", text)


def _as_lists(gold: str, answer: str, oracle: Oracle) -> bool | None:
    """Lists, tuples, sets and intervals, element by element. None if sympy should see the two as they are."""
    gold, answer = _strip_name(gold), _strip_name(answer)
    unions = split_top(gold, _latex.CUP), split_top(answer, _latex.CUP)
    if len(unions[0]) == len(unions[1]) > 1:
        return _match(unions[0], unions[1], oracle, ordered=False) or None
    (brackets, expected), (given_brackets, given) = split_list(gold), split_list(answer)
    ordered = bool({brackets, given_brackets} & {"()", "[]", "(]", "[)"})
    if not ordered:
        expected, given = _expand_signs(expected), _expand_signs(given)
    if len(expected) == len(given) == 1:
        if {brackets, given_brackets} == {"", "{}"}:
            return _equal(expected[0], given[0], oracle)
        return None
    if len(expected) == 1 or len(given) == 1:
        single = gold if len(expected) == 1 else answer
        return None if re.search(r"[<>]|\\(?:le|ge|cup|in|mathbb|setminus|ne)(?![a-zA-Z])|pmatrix", single) else False
    if brackets != given_brackets and {brackets, given_brackets} not in ({"", "{}"}, {"", "()"}):
        return False
    return _match(expected, given, oracle, ordered=ordered)


def _as_matrices(gold: str, answer: str, oracle: Oracle) -> bool | None:
    """Matrix against matrix, entry by entry. None unless both are one matrix."""
    expected, given = _rows(gold), _rows(answer)
    if expected is None or given is None:
        return None
    if [len(row) for row in expected] != [len(row) for row in given]:
        return False
    return all(_match(a, b, oracle, ordered=True) for a, b in zip(expected, given, strict=True))


def _rows(text: str) -> list[list[str]] | None:
    match = _MATRIX.fullmatch(_strip_name(text))
    if match is None or r"\begin" in match[1]:
        return None
    rows = [row.replace(r"\hline", "").strip() for row in match[1].split(r"\\")]
    return [[cell.strip() for cell in row.split("&")] for row in rows if row]


def _strip_name(text: str) -> str:
    """`x \\in [0,1]` and `(p,q) = (3,2)` without what comes before the value."""
    text = _without_membership(text)
    links = split_top(text, _latex.EQUALS)
    tuple_or_matrix = links[-1].startswith(("(", "\\begin", "["))
    return links[1] if len(links) == 2 and tuple_or_matrix and _is_name(links[0]) else text


def _expand_signs(elements: list[str]) -> list[str]:
    r"""`1 \pm a` as `1 + a` and `1 - a`."""
    expanded: list[str] = []
    for element in elements:
        if _PM.search(element):
            expanded.append(_PM.sub(lambda m: "+" if m.group() == r"\pm" else "-", element).strip())
            expanded.append(_PM.sub(lambda m: "-" if m.group() == r"\pm" else "+", element).strip())
        else:
            expanded.append(element)
    return [element[1:].strip() if element.startswith("+") else element for element in expanded]


def _match(expected: list[str], given: list[str], oracle: Oracle, *, ordered: bool) -> bool:
    """Whether the elements correspond one to one, in order or in any order."""
    if len(expected) != len(given) or len(expected) > MAX_ELEMENTS or not all(given):
        return False
    if ordered:
        return all(_equal(a, b, oracle) for a, b in zip(expected, given, strict=True))
    left = list(given)
    for element in expected:
        same = [other for other in left if canonical(other) == canonical(element)]
        found = next((other for other in same or left if _equal(element, other, oracle)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _as_expressions(gold: str, answer: str, oracle: Oracle) -> bool:
    (expected, expected_unit), (given, given_unit) = split_unit(gold), split_unit(answer)
    if not units_agree(expected_unit, given_unit):
        return False
    if r"\infty" in given and not _UNBOUNDED.search(expected):
        return False
    if _NOT_A_NUMBER.search(given) or ("\\text" in given and "\\text" not in expected):
        return False
    return oracle(expected, given)
