"""The calculator of BFCL's multi-turn tasks: it has no state."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from decimal import Decimal, localcontext
from typing import Any

from verigym.tasks.worlds.world import World

_MAX_DIGITS = 100  # of a precision that is asked for
_SI = {
    "pico": -12, "nano": -9, "micro": -6, "milli": -3, "centi": -2, "deci": -1, "": 0,
    "deca": 1, "hecto": 2, "kilo": 3, "mega": 6, "giga": 9, "tera": 12,
}  # fmt: skip
_SYMBOLS = {"p": -12, "n": -9, "u": -6, "m": -3, "c": -2, "d": -1, "": 0, "da": 1, "h": 2, "k": 3, "M": 6, "G": 9,
            "T": 12}  # fmt: skip
_SI_UNITS = {"m": "meter", "g": "gram", "s": "second", "l": "liter", "L": "liter", "A": "ampere", "J": "joule",
             "W": "watt", "N": "newton", "Pa": "pascal", "Hz": "hertz", "V": "volt", "K": "kelvin"}  # fmt: skip
_IMPERIAL = {  # of one unit in its SI unit
    "km": ("m", 1000.0), "m": ("m", 1.0), "cm": ("m", 0.01), "mm": ("m", 0.001),
    "miles": ("m", 1609.344), "yards": ("m", 0.9144), "feet": ("m", 0.3048), "inches": ("m", 0.0254),
    "kg": ("g", 1000.0), "g": ("g", 1.0), "lb": ("g", 453.59237), "oz": ("g", 28.349523125),
    "liters": ("l", 1.0), "ml": ("l", 0.001), "gallons": ("l", 3.785411784), "pints": ("l", 0.473176473),
    "celsius": ("temperature", 1.0), "fahrenheit": ("temperature", 1.0),
}  # fmt: skip
_NAMES = {
    "mile": "miles", "yard": "yards", "foot": "feet", "ft": "feet", "inch": "inches", "in": "inches", "yd": "yards",
    "mi": "miles", "kilometers": "km", "kilometer": "km", "meters": "m", "meter": "m", "centimeters": "cm",
    "millimeters": "mm", "kilograms": "kg", "kilogram": "kg", "grams": "g", "gram": "g", "pounds": "lb", "pound": "lb",
    "lbs": "lb", "ounces": "oz", "ounce": "oz", "liter": "liters", "l": "liters", "gallon": "gallons", "pint": "pints",
    "c": "celsius", "f": "fahrenheit",
}  # fmt: skip


class MathAPI(World):
    """Numbers in, one number out: `{"result": ...}`."""

    def absolute_value(self, number: float) -> dict[str, Any]:
        """Tell the absolute value of a number.

        Args:
            number: The number.
        """
        return _result(abs(number))

    def add(self, a: float, b: float) -> dict[str, Any]:
        """Add two numbers.

        Args:
            a: The first number.
            b: The second number.
        """
        return _result(a + b)

    def divide(self, a: float, b: float) -> dict[str, Any]:
        """Divide a number by another.

        Args:
            a: What is divided.
            b: What it is divided by.
        """
        if b == 0:
            raise ValueError("nothing can be divided by 0")
        return _result(a / b)

    def imperial_si_conversion(self, value: float, unit_in: str, unit_out: str) -> dict[str, Any]:
        """Convert a value between imperial and SI units, such as miles and km, lb and kg, fahrenheit and celsius.

        Args:
            value: The value.
            unit_in: The unit that it is in.
            unit_out: The unit to convert it to.
        """
        one, other = _imperial(unit_in), _imperial(unit_out)
        (kind, size), (other_kind, other_size) = _IMPERIAL[one], _IMPERIAL[other]
        if kind != other_kind:
            raise ValueError(f"{unit_in} and {unit_out} do not measure the same thing")
        if kind == "temperature" and one != other:
            return _result(value * 9 / 5 + 32 if one == "celsius" else (value - 32) * 5 / 9)
        return _result(value * size / other_size)

    def logarithm(self, value: float, base: float, precision: int) -> dict[str, Any]:
        """Tell the logarithm of a number.

        Args:
            value: The number.
            base: The base.
            precision: How many digits of the result count.
        """
        if value <= 0 or base <= 0 or base == 1:
            raise ValueError("a logarithm needs a positive number and a positive base other than 1")
        with localcontext(prec=_digits(precision) + 10):
            exact = Decimal(value).ln() / Decimal(base).ln()
        return _result(_rounded(exact, precision))

    def max_value(self, numbers: list[float]) -> dict[str, Any]:
        """Tell the largest of several numbers.

        Args:
            numbers: The numbers.
        """
        return _result(max(_some(numbers)))

    def mean(self, numbers: list[float]) -> dict[str, Any]:
        """Tell the mean of several numbers.

        Args:
            numbers: The numbers.
        """
        return _result(math.fsum(_some(numbers)) / len(numbers))

    def min_value(self, numbers: list[float]) -> dict[str, Any]:
        """Tell the smallest of several numbers.

        Args:
            numbers: The numbers.
        """
        return _result(min(_some(numbers)))

    def multiply(self, a: float, b: float) -> dict[str, Any]:
        """Multiply two numbers.

        Args:
            a: The first number.
            b: The second number.
        """
        return _result(a * b)

    def percentage(self, part: float, whole: float) -> dict[str, Any]:
        """Tell how many per cent of a whole a part is.

        Args:
            part: The part.
            whole: The whole.
        """
        if whole == 0:
            raise ValueError("nothing is a share of 0")
        return _result(part / whole * 100)

    def power(self, base: float, exponent: float) -> dict[str, Any]:
        """Raise a number to a power.

        Args:
            base: The number.
            exponent: The power.
        """
        try:
            return _result(math.pow(base, exponent))
        except OverflowError:
            raise ValueError("the result is too large") from None

    def round_number(self, number: float, decimal_places: int = 0) -> dict[str, Any]:
        """Round a number.

        Args:
            number: The number.
            decimal_places: How many decimal places are kept.
        """
        return _result(round(float(number), decimal_places))

    def si_unit_conversion(self, value: float, unit_in: str, unit_out: str) -> dict[str, Any]:
        """Convert a value between units of the SI that differ by a prefix, such as km and cm, or kilometer and meter.

        Args:
            value: The value.
            unit_in: The unit that it is in.
            unit_out: The unit to convert it to.
        """
        (power, unit), (other_power, other_unit) = _si(unit_in), _si(unit_out)
        if unit != other_unit:
            raise ValueError(f"{unit_in} and {unit_out} do not measure the same thing")
        exact = Decimal(repr(float(value))).scaleb(power - other_power)
        return _result(float(exact))

    def square_root(self, number: float, precision: int) -> dict[str, Any]:
        """Tell the square root of a number.

        Args:
            number: The number.
            precision: How many digits of the result count.
        """
        if number < 0:
            raise ValueError("a negative number has no square root")
        with localcontext(prec=_digits(precision) + 10):
            exact = Decimal(number).sqrt()
        return _result(_rounded(exact, precision))

    def standard_deviation(self, numbers: list[float]) -> dict[str, Any]:
        """Tell the standard deviation of several numbers, taken as the whole population.

        Args:
            numbers: The numbers.
        """
        return _result(statistics.pstdev(map(float, _some(numbers))))

    def subtract(self, a: float, b: float) -> dict[str, Any]:
        """Subtract a number from another.

        Args:
            a: What is subtracted from.
            b: What is subtracted.
        """
        return _result(a - b)

    def sum_values(self, numbers: list[float]) -> dict[str, Any]:
        """Add up several numbers.

        Args:
            numbers: The numbers.
        """
        return _result(math.fsum(_some(numbers)))


def _result(value: float) -> dict[str, Any]:
    """Whole numbers and others are the same kind of number: 2 and 2.0 give one and the same result."""
    try:
        number = float(value)
    except OverflowError:
        raise ValueError("the result is too large") from None
    if not math.isfinite(number):
        raise ValueError("the result is no finite number")
    return {"result": number}


def _some(numbers: Sequence[float]) -> Sequence[float]:
    if not numbers:
        raise ValueError("numbers must hold at least one")
    return numbers


def _digits(precision: int) -> int:
    if not 1 <= precision <= _MAX_DIGITS:
        raise ValueError(f"precision must be from 1 to {_MAX_DIGITS}, not {precision}")
    return precision


def _rounded(exact: Decimal, precision: int) -> float:
    with localcontext(prec=precision):
        return float(+exact)


def _imperial(unit: str) -> str:
    name = unit.strip().casefold()
    name = _NAMES.get(name, name)
    if name not in _IMPERIAL:
        raise ValueError(f"no unit '{unit[:40]}'; there are {', '.join(_IMPERIAL)}")
    return name


def _si(unit: str) -> tuple[int, str]:
    """The power of ten of a unit's prefix, and the unit without it."""
    for symbol, name in _SI_UNITS.items():
        if unit.endswith(symbol) and unit[: -len(symbol)] in _SYMBOLS:
            return _SYMBOLS[unit[: -len(symbol)]], name
    word = unit.strip().casefold().removesuffix("s")
    for name in {*_SI_UNITS.values()}:
        if word.endswith(name) and word[: -len(name)] in _SI:
            return _SI[word[: -len(name)]], name
    raise ValueError(f"no SI unit '{unit[:40]}'; use such as km, mg, milliliter")
