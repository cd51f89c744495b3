r"""Whether an answer is the gold answer: words, numbers, names and lists by rule, the rest by sympy.

The policy, in the order in which it applies:

- Equal after tidying (white space, `\left`, `$`, `\dfrac`, degree signs, thousands separators): equal.
- Units may be missing on either side; two known units must agree. `10\%` is 10 and is 0.1. (Both by option.)
- Plain numbers are compared exactly; a decimal may differ by 5e-7 and by a millionth of the gold answer, or by
  the tolerance of the task. For a decimal, `1000,99` has a decimal comma. Beside pi, degrees are radians.
- `\text{...}` answers and words (`even`) are compared as words, without regard to case; `x` is not `X`.
- `name = value` is its value, and so is `a + b = value` where the prompt asks for `a + b`; in a chain each link must
  equal the gold answer; two names must be the same. What follows `\\approx` must be the rounded value.
- `a:b:c` is a ratio; a gold answer such as `3:30` is a time of day unless the prompt speaks of ratios.
- A bare list or set is free of order, anything in ( ) or [ ] is ordered, and brackets must be the same; a
  bare list may stand for a ( ) tuple. `\pm` stands for two elements. One too few, too many or twice is wrong.
- Matrices are compared entry by entry.
- Anything else is compared by math-verify in a worker process (`Oracle`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from verigym.verifiers import _latex, _numbers
from verigym.verifiers._latex import canonical, fold_unicode, split_list, split_top, tidy
from verigym.verifiers._names import claims, is_name
from verigym.verifiers._numbers import Tolerance
from verigym.verifiers._units import spell_out_unit, split_unit, units_agree

Oracle = Callable[[str, str], bool]
MAX_ELEMENTS = 64

_PM = re.compile(r"\\[pm][mp](?![a-zA-Z])")
_IN_SET = re.compile(r"^\s*[a-zA-Z](?:\s*\([a-z]\))?\s*\\in(?![a-zA-Z])\s*")
_APPROX = re.compile(r"\\(?:approx|simeq)(?![a-zA-Z])")
_BASE = re.compile(r"(?P<digits>[0-9A-Fa-f]+)\s*_\s*\{?\s*(?P<base>\d+|[a-z]+)\s*\}?")
_MATRIX = re.compile(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", re.DOTALL)
_UNBOUNDED = re.compile(r"\\infty|[<>]|\\(?:le|ge|ne|mathbb|setminus)(?![a-zA-Z])")
_DEGREES = re.compile(r"\s*\$?\s*(-?\d+(?:\.\d+)?)\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree)\s*\$?\s*")
_SET_BUILDER = re.compile(r"\\\{\s*([a-zA-Z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?[|:]\s*(.*)\\\}", re.DOTALL)
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne)(?![a-zA-Z])")
_ABSOLUTE = re.compile(r"\|\s*([a-zA-Z])\s*\|\s*(<|\\le(?![a-zA-Z]))\s*(\d+(?:\.\d+)?|\\frac\{\d+\}\{\d+\})")
_COLON = re.compile(r":|\\text\{\s*to\s*\}|(?<=[\d ])to(?= )")
_CLOCK = re.compile(r"\d{1,2}:[0-5]\d(?::[0-5]\d)?")
_RATIO_WORD = re.compile(r"\b(?:ratio|proportion|odds|in the form)\b", re.IGNORECASE)
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
_SHORT_WORDS = frozenset({"no", "on", "up", "in", "or", "at", "by"})
_TEXT_ONLY = re.compile(rf"{_latex.TEXT}\{{[^{{}}]*\}}")
_NOT_A_NUMBER = re.compile(
    r"(?<![a-zA-Z])(?:nan|zoo|oo|inf)(?![a-zA-Z])|'$|\d\s*(?:'(?!\d)|\^\s*\{?\s*\\prime)|\.\.|\\l?dots(?![a-zA-Z])",
    re.IGNORECASE,
)
_MONEY = {r"\$": "$", "€": "€", "£": "£", "¥": "¥", "₹": "₹", "dollar": "$", "cent": "¢", "euro": "€", "yen": "¥"}
_CURRENCY = re.compile(r"\\\$|[€£¥₹]|\b(?:dollar|cent|euro|yen)(?=s?\b)")


@dataclass(frozen=True, slots=True)
class Rules:
    """What the parts of one comparison share.

    `oracle` compares what the rules leave open; `tolerance` replaces the rounding that decimals may have;
    with `units` a unit of the gold answer must be there, with `strict_percent` 10% is 0.1 and not 10.
    The words of the `prompt` may be units, and what it asks for may stand to the left of an equals sign. `near`
    says whether two values are within a bound.
    """

    oracle: Oracle
    tolerance: Tolerance | None = None
    gold_is_float: bool = False
    units: bool = False
    strict_percent: bool = False
    prompt: str = ""
    near: Callable[[str, str, float], bool] | None = None


def equal(gold: str, answer: str, rules: Rules) -> bool:
    """Whether two answers, in LaTeX or plain, are the same."""
    if (currencies := _currencies(gold)) and not _currencies(answer) <= currencies:
        return False
    if rules.units:
        gold, answer = spell_out_unit(gold), spell_out_unit(answer)
    if canonical(gold) == canonical(answer):
        return bool(canonical(gold))
    gold, answer = _in_radians(gold, answer), _in_radians(answer, gold)
    try:
        return _equal(tidy(gold), tidy(answer), rules)
    except RecursionError:  # lists in lists in lists: no answer
        return False


def _equal(gold: str, answer: str, rules: Rules) -> bool:
    gold, answer = _condition(gold), _condition(answer)
    if not gold or not answer:
        return False
    if canonical(gold) == canonical(answer):
        return True
    verdict = _as_words(gold, answer)
    if verdict is None:
        verdict = _as_numbers(gold, answer, rules)
    if verdict is None:
        verdict = _as_ratios(gold, answer, rules)
    if verdict is None:
        verdict = _as_equations(gold, answer, rules)
    if verdict is None:
        verdict = _as_matrices(gold, answer, rules)
    if verdict is None:
        verdict = _as_lists(gold, answer, rules)
    if verdict is None:
        verdict = _as_expressions(gold, answer, rules)
    return verdict


def _currencies(text: str) -> set[str]:
    return {_MONEY[name] for name in _CURRENCY.findall(text)}


def _in_radians(text: str, other: str) -> str:
    r"""`120^\circ` as `\frac{120\pi}{180}` beside a text with pi; any other text as it is."""
    match = _DEGREES.fullmatch(fold_unicode(text))
    return rf"\frac{{{match[1]}\pi}}{{180}}" if match and r"\pi" in fold_unicode(other) else text


def _condition(text: str) -> str:
    r"""`\{x \mid x > 3\}` as `x > 3`, and `|x| < 3` as `-3 < x < 3`."""
    if (match := _SET_BUILDER.fullmatch(text)) and _RELATION.search(match[2]):
        text = match[2].strip()
    if match := _ABSOLUTE.fullmatch(text):
        name, sign, bound = match.groups()
        return f"-{bound} {sign} {name} {sign} {bound}"
    return text


def _as_words(gold: str, answer: str) -> bool | None:
    r"""Text against text: `\text{Evelyn}`, `\text{(C)}`, `even`. None if the gold answer is no text."""
    wrapped = _TEXT_ONLY.fullmatch(gold) is not None
    expected, given = _plain_words(gold), _plain_words(answer)
    if not wrapped and not _is_word(gold):
        if len(expected) == len(given) == 1 and expected.isalpha():
            return expected == given
        return None
    if not expected:
        return None
    if expected.casefold() == given.casefold():
        return True
    if "," in gold and sorted(_listed(gold)) == sorted(_listed(answer)):
        return True
    plain = expected.replace(" ", "").isalpha() and len(expected) > 1
    return False if plain and (wrapped or given.replace(" ", "").isalpha()) else None


def _is_word(text: str) -> bool:
    """Whether letters are a word and not a product: `even`, `no`, `abc`, but not `xyz` or `ab`."""
    if not _WORDS.fullmatch(text):
        return False
    return len(text) >= 4 or text.lower() in _SHORT_WORDS or (len(text) == 3 and bool(re.search("[aeiou]", text)))


def _listed(text: str) -> list[str]:
    return [word.casefold() for word in re.split(r"[,\s]+|\band\b", _plain_commas(text)) if word]


def _plain_words(text: str) -> str:
    return _plain_commas(text).replace(",", " ").strip()


def _plain_commas(text: str) -> str:
    return re.sub(r"[\s()$.:;!{}]+", " ", _drop_text(text))


def _as_numbers(gold: str, answer: str, rules: Rules) -> bool | None:
    """Number against number, with units, percent signs and bases. None if either is no plain number."""
    expected_text, expected_unit = split_unit(gold)
    given_text, given_unit = split_unit(answer)
    if (in_base := _as_based(expected_text, given_text)) is not None:
        return in_base
    expected, given = _two_numbers(expected_text, given_text)
    if expected is None or given is None:
        return None
    if not units_agree(expected_unit, given_unit, rules.prompt, required=rules.units):
        return False
    percent = expected_unit == "percent", given_unit == "percent"
    as_written = percent[0] == percent[1] or not rules.strict_percent
    if as_written and _close(expected, given, rules):
        return True
    if percent[0] == percent[1]:
        return False
    return _close(expected.hundredth(), given, rules) if percent[0] else _close(expected, given.hundredth(), rules)


def _two_numbers(gold: str, answer: str) -> tuple[_numbers.Number | None, _numbers.Number | None]:
    """The two as numbers; where the gold answer is a decimal, `1000,99` is one too."""
    expected, given = _numbers.exact_number(gold), _numbers.exact_number(answer)
    if given is None and expected is not None and expected.is_decimal:
        given = _numbers.with_decimal_comma(answer)
    return expected, given


def _close(expected: _numbers.Number, given: _numbers.Number, rules: Rules) -> bool:
    return _numbers.close(expected, given, tolerance=rules.tolerance, gold_is_float=rules.gold_is_float)


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
    return int(base) if base.isdigit() else _numbers.WORDS.get(base, base)


def _drop_text(text: str) -> str:
    return re.sub(rf"{_latex.TEXT}\{{([^{{}}]*)\}}", r"\1", text).strip()


def _as_ratios(gold: str, answer: str, rules: Rules) -> bool | None:
    """`2:3` is `4:6` and two thirds; `3:30` is a time of day. None if neither is a ratio."""
    (expected_text, expected_unit), (given_text, given_unit) = split_unit(gold), split_unit(answer)
    expected_text, given_text = (
        split_top(text, _latex.EQUALS)[-1] for text in (expected_text, given_text)
    )  # a:b = 2:3
    expected, given = split_top(expected_text, _COLON), split_top(given_text, _COLON)
    if len(expected) == len(given) == 1 or r"\{" in gold + answer:
        return None
    if not (
        all(expected) and all(given) and units_agree(expected_unit, given_unit, rules.prompt, required=rules.units)
    ):
        return False
    if _CLOCK.fullmatch(expected_text) and not _RATIO_WORD.search(rules.prompt):
        return [part.lstrip("0") for part in expected] == [part.lstrip("0") for part in given]
    if len(expected) != len(given):
        several, single = (expected, given_text) if len(expected) > 1 else (given, expected_text)
        return len(several) == 2 and _equal(_quotient(*several), single, rules)
    pairs = zip(expected[1:], given[1:], strict=True)
    return all(_equal(_quotient(a, expected[0]), _quotient(b, given[0]), rules) for a, b in pairs)


def _quotient(top: str, bottom: str) -> str:
    return rf"\frac{{{top}}}{{{bottom}}}"


def _as_equations(gold: str, answer: str, rules: Rules) -> bool | None:
    """`name = value` on either side, and chains of them. None if there is no such thing."""
    gold, answer = _without_membership(gold), _without_membership(answer)
    if len(split_list(gold)[1]) > 1 or len(split_list(answer)[1]) > 1:
        return None
    if len(parts := split_top(answer, _APPROX)) > 1:
        return _as_approximation(gold, parts, rules)
    gold_links, links = split_top(split_top(gold, _APPROX)[0] or gold, _latex.EQUALS), split_top(answer, _latex.EQUALS)
    if len(gold_links) == len(links) == 1:
        return None
    if len(gold_links) == 1:
        return all(_equal(gold, link, rules) for link in claims(links, rules.prompt))
    if len(links) == 1:
        return _gold_value(gold_links, answer, rules)
    if is_name(gold_links[0]) and is_name(links[0]) and canonical(gold_links[0]) != canonical(links[0]):
        return None if len(links) == 2 else False
    if len(links) > 2 or len(gold_links) > 2:
        return all(_equal(gold_links[-1], link, rules) for link in claims(links, rules.prompt))
    if is_name(gold_links[0]) and canonical(gold_links[0]) == canonical(links[0]):
        return _equal(gold_links[1], links[1], rules)
    return None


def _gold_value(links: list[str], answer: str, rules: Rules) -> bool | None:
    """A bare value for the gold answer `name = value`; None for an equation between expressions."""
    if is_name(links[-1]) and len(links) == 2 and not re.search("[a-zA-Z]", links[0]):
        return _equal(links[0], answer, rules)
    named = is_name(links[0]) or not re.search("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", links[0]))
    return _equal(links[-1], answer, rules) if named or len(links) > 2 else None


def _as_approximation(gold: str, parts: list[str], rules: Rules) -> bool:
    r"""`\sqrt{2} \approx 1.41` and `x \approx 1.41`: what comes first counts, the rest must be that, rounded."""
    exact, *rounded = parts[1:] if not parts[0] or is_name(parts[0]) else parts
    if not _equal(gold, exact, rules):
        return False
    value = split_unit(split_top(exact, _latex.EQUALS)[-1])[0]
    return all(_rounds_to(value, split_unit(part)[0], rules) for part in rounded)


def _rounds_to(value: str, rounded: str, rules: Rules) -> bool:
    number, place = _numbers.exact_number(value), _numbers.last_place(rounded)
    if place is None:
        return False
    if number is not None:
        return abs(number.value - Fraction(rounded)) <= place / 2
    return rules.near is None or rules.near(value, rounded, float(place / 2))


def _without_membership(text: str) -> str:
    return _IN_SET.sub("", text)


def _as_lists(gold: str, answer: str, rules: Rules) -> bool | None:
    """Lists, tuples, sets and intervals, element by element. None if sympy should see the two as they are."""
    gold, answer = _strip_name(gold), _strip_name(answer)
    unions = split_top(gold, _latex.CUP), split_top(answer, _latex.CUP)
    if len(unions[0]) == len(unions[1]) > 1:
        return _match(unions[0], unions[1], rules, ordered=False) or None
    (brackets, expected), (given_brackets, given) = split_list(gold), split_list(answer)
    ordered = bool({brackets, given_brackets} & {"()", "[]", "(]", "[)"})
    if not ordered:
        expected, given = _expand_signs(expected), _expand_signs(given)
    if len(expected) == len(given) == 1:
        if {brackets, given_brackets} == {"", "{}"}:
            return _equal(expected[0], given[0], rules)
        return False if _is_bracketed(answer) and not _is_bracketed(gold) else None
    if len(expected) == 1 or len(given) == 1:
        single = gold if len(expected) == 1 else answer
        return None if re.search(r"[<>]|\\(?:le|ge|cup|in|mathbb|setminus|ne)(?![a-zA-Z])|pmatrix", single) else False
    if brackets != given_brackets and {brackets, given_brackets} not in ({"", "{}"}, {"", "()"}):
        return False
    return _match(expected, given, rules, ordered=ordered)


def _is_bracketed(text: str) -> bool:
    return text.startswith("[") and text.endswith("]") and _latex.matching(text, 0) == len(text) - 1


def _as_matrices(gold: str, answer: str, rules: Rules) -> bool | None:
    """Matrix against matrix, entry by entry. None unless both are one matrix."""
    expected, given = _rows(gold), _rows(answer)
    if expected is None or given is None:
        return None
    if [len(row) for row in expected] != [len(row) for row in given]:
        return False
    return all(_match(a, b, rules, ordered=True) for a, b in zip(expected, given, strict=True))


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
    return links[1] if len(links) == 2 and tuple_or_matrix and is_name(links[0]) else text


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


def _match(expected: list[str], given: list[str], rules: Rules, *, ordered: bool) -> bool:
    """Whether the elements correspond one to one, in order or in any order."""
    if len(expected) != len(given) or len(expected) > MAX_ELEMENTS or not all(given):
        return False
    if ordered:
        return all(_equal(a, b, rules) for a, b in zip(expected, given, strict=True))
    left = list(given)
    for element in expected:
        same = [other for other in left if canonical(other) == canonical(element)]
        found = next((other for other in same or left if _equal(element, other, rules)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _as_expressions(gold: str, answer: str, rules: Rules) -> bool:
    (expected, expected_unit), (given, given_unit) = split_unit(gold), split_unit(answer)
    if not units_agree(expected_unit, given_unit, rules.prompt, required=rules.units):
        return False
    if r"\infty" in given and not _UNBOUNDED.search(expected):
        return False
    if (_NOT_A_NUMBER.search(given) and not _NOT_A_NUMBER.search(expected)) or (
        "\\text" in given and "\\text" not in expected
    ):
        return False
    if rules.strict_percent and (expected_unit == "percent") != (given_unit == "percent"):
        expected = rf"\frac{{{expected}}}{{100}}" if expected_unit == "percent" else expected
        given = rf"\frac{{{given}}}{{100}}" if given_unit == "percent" else given
    return rules.oracle(expected, given)
