r"""Plain numbers, read exactly: whole, decimal (repeating too), fractions, mixed, scientific notation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

# a decimal stands for a number within 5e-7 and within a millionth of it
ABSOLUTE, RELATIVE = Fraction(5, 10**7), Fraction(1, 10**6)
FLOAT_RELATIVE = Fraction(1, 10**12)

_DECIMAL = r"\d+(?:\.\d*)?(?:[eE][+-]?\d{1,3})?"
_NUMBER = re.compile(
    rf"""(?P<sign>[+-]?)\s*(?:
        (?P<whole>\d+)\s*\\frac\s*\{{\s*(?P<mixed_top>\d+)\s*\}}\s*\{{\s*(?P<mixed_bottom>\d+)\s*\}}
      | (?P<spaced>\d+)\s+(?P<spaced_top>\d+)\s*/\s*(?P<spaced_bottom>\d+)
      | \\frac\s*\{{\s*(?P<top>-?{_DECIMAL})\s*\}}\s*\{{\s*(?P<bottom>-?{_DECIMAL})\s*\}}
      | (?P<left>{_DECIMAL})\s*/\s*(?P<right>-?{_DECIMAL})
      | (?P<mantissa>{_DECIMAL})\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*
        (?:\{{\s*(?P<braced>[+-]?\d{{1,3}})\s*\}}|(?P<power>\d))
      | (?P<start>\d*\.\d*)\\overline\s*\{{\s*(?P<period>\d+)\s*\}}
      | (?P<decimal>{_DECIMAL})
    )""",
    re.VERBOSE,
)
_DECIMAL_COMMA = re.compile(r"([+-]?\d+),(\d+)")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
WORDS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value, and whether it was written with a decimal point (and so may be rounded)."""

    value: Fraction
    is_decimal: bool

    def hundredth(self) -> Number:
        """What the number is as a percentage."""
        return Number(self.value / 100, self.is_decimal)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far from the gold answer a number may be: by either bound, `relative` in parts of the gold answer."""

    absolute: Fraction = Fraction(0)
    relative: Fraction = Fraction(0)

    @classmethod
    def of(cls, absolute: Any, relative: Any = 0) -> Tolerance:
        """Raises ValueError for a bound that is no finite number from 0 on."""
        for bound in (absolute, relative):
            if isinstance(bound, bool) or not isinstance(bound, int | float) or not 0 <= bound < float("inf"):
                raise ValueError(f"must be a finite number from 0 on, not {bound!r}")
        return cls(Fraction(str(absolute)), Fraction(str(relative)))

    def allows(self, gold: Fraction, answer: Fraction) -> bool:
        difference = abs(gold - answer)
        return difference <= self.absolute or difference <= self.relative * abs(gold)


@lru_cache(maxsize=8192)
def exact_number(text: str) -> Number | None:
    """The number that the whole of a tidied `text` is; None if it is anything else."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        word = WORDS.get(text.removeprefix("\\text{").removesuffix("}").strip().casefold())
        return None if word is None else Number(Fraction(word), False)
    try:
        value = _value(match)
    except (ZeroDivisionError, ValueError):
        return None
    if value is None:
        return None
    is_decimal = match["period"] is None and ("." in text or "e" in text.lower().replace("\\times", ""))
    return Number(-value if match["sign"] == "-" else value, is_decimal)


def _value(match: re.Match[str]) -> Fraction | None:
    if match["decimal"]:
        return Fraction(match["decimal"])
    if match["period"]:
        places = len(match["start"].partition(".")[2])
        repeated = Fraction(int(match["period"]), int(10 ** len(match["period"])) - 1)
        return Fraction(f"0{match['start']}0") + repeated / int(10**places)
    if match["top"]:
        return Fraction(match["top"]) / Fraction(match["bottom"])
    if match["left"]:
        return Fraction(match["left"]) / Fraction(match["right"])
    if match["mantissa"]:
        exponent = int(match["braced"] or match["power"])
        scale = Fraction(int(10 ** abs(exponent)))
        return Fraction(match["mantissa"]) * (scale if exponent >= 0 else 1 / scale)
    whole = match["whole"] or match["spaced"]
    part = Fraction(
        int(match["mixed_top"] or match["spaced_top"]), int(match["mixed_bottom"] or match["spaced_bottom"])
    )
    return int(whole) + part if part < 1 else None  # 2\frac{3}{2} is a product, and rare: leave it to sympy


def is_reduced(text: str) -> bool:
    """Whether `text` is a finished number: a whole number, a decimal or a fraction in lowest terms."""
    number = exact_number(text)
    if number is None:
        return False
    digits = [int(part) for part in re.findall(r"\d+", text)]
    return number.is_decimal or len(digits) <= 1 or number.value.denominator == digits[-1]


def last_place(text: str) -> Fraction | None:
    """What one is worth in the last place of a plain decimal or whole number; None for anything else."""
    if not re.fullmatch(r"[+-]?\d+(?:\.\d+)?", text):
        return None
    return 1 / Fraction(int(10 ** len(text.partition(".")[2])))


def with_decimal_comma(text: str) -> Number | None:
    """`1000,99` as 1000.99; None for anything else, and for `1,234`, which has a thousands separator."""
    match = _DECIMAL_COMMA.fullmatch(text)
    return exact_number(f"{match[1]}.{match[2]}") if match and not _THOUSANDS.fullmatch(text) else None


def close(gold: Number, answer: Number, *, tolerance: Tolerance | None = None, gold_is_float: bool = False) -> bool:
    """Whether `answer` is `gold`: exactly, or within `tolerance`, or, without one, within a decimal's rounding."""
    difference = abs(gold.value - answer.value)
    if difference == 0:
        return True
    if tolerance is not None:
        return tolerance.allows(gold.value, answer.value)
    if not (gold.is_decimal or answer.is_decimal or gold_is_float):
        return False
    if gold_is_float and difference <= FLOAT_RELATIVE * abs(gold.value):
        return True
    return difference <= ABSOLUTE and difference <= RELATIVE * abs(gold.value)
