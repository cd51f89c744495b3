"""Arithmetic as tau-bench's `calculate` does it: in floating point, rounded to cents."""

from __future__ import annotations

import re

_MOST = 1000  # characters, so that parentheses cannot be nested without end
_DEEPEST = 50
_TOKEN = re.compile(r"\s*(\d+\.?\d*|\.\d+|[-+*/()])")

Number = int | float


def calculate(expression: str) -> str:
    """The value of numbers with + - * / and parentheses, such as "41.92". Raises ValueError with what is wrong."""
    if not set(expression) <= set("0123456789+-*/(). "):
        raise ValueError("invalid characters in expression")
    if len(expression) > _MOST:
        raise ValueError("expression too long")
    try:
        return str(round(float(_Parser(expression).value()), 2))
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    except OverflowError:
        raise ValueError("result too large") from None


class _Parser:
    """Recursive descent; the tokens stand in reverse, so that the next one is the last."""

    def __init__(self, expression: str) -> None:
        self.depth = 0
        self.tokens: list[str] = []
        position, end = 0, len(expression.rstrip())
        while position < end:
            match = _TOKEN.match(expression, position)
            if match is None:
                raise ValueError("invalid syntax")
            self.tokens.append(match[1])
            position = match.end()
        self.tokens.reverse()

    def value(self) -> Number:
        result = self.sum()
        if self.tokens:
            raise ValueError("invalid syntax")
        return result

    def takes(self, signs: str) -> str:
        """The next token, taken if it is one of `signs`, else ""."""
        return self.tokens.pop() if self.tokens and self.tokens[-1] in tuple(signs) else ""

    def sum(self) -> Number:
        result = self.product()
        while sign := self.takes("+-"):
            term = self.product()
            result = result + term if sign == "+" else result - term
        return result

    def product(self) -> Number:
        result = self.factor()
        while sign := self.takes("*/"):
            factor = self.factor()
            result = result * factor if sign == "*" else result / factor
        return result

    def factor(self) -> Number:
        negative = False
        while sign := self.takes("+-"):
            negative ^= sign == "-"
        result = self.parenthesis() if self.takes("(") else self.number()
        return -result if negative else result

    def parenthesis(self) -> Number:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ValueError("too many nested parentheses")
        result = self.sum()
        if not self.takes(")"):
            raise ValueError("a parenthesis was never closed")
        self.depth -= 1
        return result

    def number(self) -> Number:
        if not self.tokens or self.tokens[-1] in tuple("-+*/()"):
            raise ValueError("invalid syntax")
        text = self.tokens.pop()
        return int(text) if text.isdigit() else float(text)
