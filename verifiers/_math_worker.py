r"""What a math worker does: reads two LaTeX expressions, says whether they are equal.

Loaded by `tasks/_worker.py`; imports nothing of the package. A request is {"gold", "answer", "tolerance"}, a reply
{"equal"}. Nothing here evaluates text as Python: LaTeX goes through a grammar.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

# a decimal stands for a number within 5e-7 and within a millionth of it
ABSOLUTE, RELATIVE = 5e-7, 1e-6
# exact irrational numbers are equal if this many digits agree beyond all that stand in the two expressions
SPARE_DIGITS, MAX_DIGITS = 40, 50_000

# `{x}^2` for `x^2`, which the fast grammar cannot read; not for names of functions and constants
_BARE_POWER = re.compile(r"\\(?!pi(?![a-zA-Z]))[a-zA-Z]+|(\\pi|[abcj-zA-Z])(?=\s*\^)")
_WARM_UP = (
    "x^2 - 3x + 5", r"\frac{1 + \sqrt{5}}{2}", r"2\sqrt{3} - \pi", "(x-1)(x+1)", "y = 2x + 3", r"(-\infty, 3]",
    r"\frac{a}{b+c}", r"\sin(x) + \cos(2x)", r"x \le 5", "3^{10} - 1", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
    "-2 + 7i", r"\log_2(5)", "n!", "a_1 + a_{2}", r"\{1, 2, 3\}", "f(x) = x^3",
)  # fmt: skip


class Grader:
    """math-verify's comparison, with its numeric part replaced."""

    def __init__(self) -> None:
        import sympy
        from antlr4.atn.PredictionMode import PredictionMode  # type: ignore[import-untyped]
        from latex2sympy2_extended import latex2sympy2  # type: ignore[import-untyped]
        from math_verify import grader

        logging.disable(logging.CRITICAL)
        self._sympy, self._latex2sympy, self._grader = sympy, latex2sympy2, grader
        self._original_numeric, self._original_symbolic = grader.sympy_numeric_eq, grader.sympy_symbolic_eq
        grader.sympy_numeric_eq, grader.sympy_symbolic_eq = self._numeric_eq, self._symbolic_eq
        self._style = latex2sympy2.NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
        )
        self._fast_mode = PredictionMode.SLL
        self._tolerance: float | None = None
        self._parsed = lru_cache(maxsize=512)(self._parse)
        for latex in _WARM_UP:  # the grammar's tables are built as they are needed
            self._parse(latex)

    def equal(self, gold: str, answer: str, tolerance: float | None) -> bool:
        """Whether the two are the same. Raises whatever the grammar and sympy raise on text that is none."""
        expected, given = self._parsed(gold), self._parsed(answer)
        if hasattr(given, "has") and given.has(self._sympy.nan, self._sympy.zoo):
            return False
        self._tolerance = tolerance
        return bool(
            self._grader.verify(expected, given, timeout_seconds=None, strict=True, allow_set_relation_comp=True)
        )

    def _parse(self, text: str) -> Any:
        latex = self._latex2sympy.normalize_latex(text, config=self._style)
        is_real = not self._grader.should_treat_as_complex(latex)
        try:
            return self._parse_fast(latex, is_real)
        except MemoryError:
            raise
        except Exception:  # the grammar raises plain Exception
            return self._latex2sympy.latex2sympy(
                latex, is_real=is_real, convert_degrees=False, normalization_config=None
            )

    def _parse_fast(self, latex: str, is_real: bool | None) -> Any:
        """What the full grammar makes of it, four times as fast; raises where it would need the full context."""
        converter = self._latex2sympy._Latex2Sympy(is_real=is_real)
        parser_of, number_of = converter.create_parser, converter.parse_number

        def create_parser(text: str) -> Any:
            parser = parser_of(text)
            parser._interp.predictionMode = self._fast_mode
            return parser

        def parse_number(text: str) -> Any:
            return self._sympy.Integer(int(text)) if text.isascii() and text.isdigit() else number_of(text)

        converter.create_parser, converter.parse_number = create_parser, parse_number
        return converter.parse(_BARE_POWER.sub(lambda match: f"{{{match[1]}}}" if match[1] else match[0], latex))

    def _numeric_eq(self, a: Any, b: Any, float_rounding: int, numeric_precision: int) -> bool:
        # math-verify compares to six places after the point, and so takes 0 for 1e-7
        if isinstance(a, self._matrices) or isinstance(b, self._matrices):
            return bool(self._original_numeric(a, b, float_rounding, numeric_precision))
        try:
            if a.free_symbols or b.free_symbols:
                return False
            return self._close(a.doit(), b.doit())
        except (AttributeError, TypeError, ValueError, ArithmeticError):
            return False

    def _close(self, a: Any, b: Any) -> bool:
        decimal = a.has(self._sympy.Float) or b.has(self._sympy.Float)
        if self._tolerance is None and not decimal:
            return self._same(a, b)
        difference, size = abs((a - b).evalf(30)), abs(a.evalf(30))
        if not (difference.is_Float or difference.is_Rational) or not size.is_finite:
            return False
        if self._tolerance is not None:
            return bool(difference <= self._tolerance)
        return bool(difference <= ABSOLUTE and difference <= RELATIVE * size)

    def _same(self, a: Any, b: Any) -> bool:
        """Whether two exact numbers are one: `2^{100}` is not `2^{100} + 1`."""
        difference = a - b
        if difference.is_Rational or (a.is_Rational and b.is_Rational):
            return bool(difference == 0)
        digits = SPARE_DIGITS + self._digits(a) + self._digits(b)
        if digits > MAX_DIGITS:
            return False
        left, right = a.evalf(digits, maxn=3 * digits), b.evalf(digits, maxn=3 * digits)
        if not (left.is_number and left.is_finite and right.is_finite):
            return False
        # what cancels to zero leaves a rest far below the smaller bound
        ten = self._sympy.Float(10, digits)
        size = max(abs(left), abs(right), ten**-SPARE_DIGITS)
        return bool(abs(left - right) <= size * ten ** (SPARE_DIGITS // 4 - digits))

    def _digits(self, number: Any) -> int:
        """How many digits the whole numbers in an expression and its value have."""
        wholes = [n for rational in number.atoms(self._sympy.Rational) for n in (rational.p, rational.q)]
        size = abs(number.evalf(15))
        scale = abs(int(self._sympy.log(size, 10).evalf(15))) if size.is_finite and size > 0 else 0
        powers = [abs(power.exp.p) for power in number.atoms(self._sympy.Pow) if power.exp.is_Integer]
        return int(scale + sum(powers) + sum(int(whole).bit_length() for whole in wholes) * 3 // 10)

    def _symbolic_eq(self, a: Any, b: Any) -> bool:
        # a point where the two differ is proof, and far cheaper than `simplify`
        return not self._differ(a, b) and bool(self._original_symbolic(a, b))

    def _differ(self, a: Any, b: Any) -> bool:
        try:
            symbols = sorted(a.free_symbols | b.free_symbols, key=str)
            point = {symbol: self._sympy.Rational(37 + 14 * i, 29) for i, symbol in enumerate(symbols)}
            left, right = a.subs(point).evalf(20), b.subs(point).evalf(20)
            if not (left.is_number and right.is_number and left.is_finite and right.is_finite):
                return False
            return bool(abs(left - right) > 1e-9 * max(abs(left), abs(right)))
        except (AttributeError, TypeError, ValueError, ArithmeticError):
            return False

    @property
    def _matrices(self) -> tuple[type, ...]:
        return self._sympy.MatrixBase, self._sympy.MatrixExpr


def load() -> Any:
    """The function of a request to a reply."""
    grader = Grader()
    return lambda request: {"equal": grader.equal(request["gold"], request["answer"], request["tolerance"])}
