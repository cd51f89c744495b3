"""Products too large to work out at sight, the calculator to do it with, and demonstrations of its use.

A task of level 2: the prompt "What is 37 * 24?", the target "888". A correct episode has two turns,

    <tool_call>{"name": "calculator", "arguments": {"expression": "37 * 24"}}</tool_call>
    \\boxed{888}

or only the second. The level is the number of digits of each factor. Train and test never share a question.
"""

from __future__ import annotations

import re
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np

from verigym.tasks._generate import Shape, generated_set, whole_number
from verigym.tasks.canonical import render_call
from verigym.tasks.task import Task, TaskSet

LEVELS: tuple[Shape, ...] = tuple(((digits, digits),) for digits in range(1, 7))

MAX_LENGTH = 200  # characters of an expression; with it, the digits of every result are bounded too
MAX_DIGITS = 30  # of one number
MAX_DEPTH = 20  # of nested parentheses
SIGNIFICANT = 12  # digits of a result that is not whole

_CHANCE = (4 / 16, 8 / 1613, 1e-4, 1e-4, 1e-4, 1e-4)


def load(split: str = "train", *, level: int = 2, seed: int = 0, size: int | None = None) -> TaskSet:
    """`size` products of two `level`-digit numbers (default: 10,000 train, 1,000 test).

    A pure function of the arguments; a larger size only adds tasks. Raises UnknownNameError for the split,
    ConfigError for the other options.
    """
    return generated_set("calculator", LEVELS, split=split, seed=seed, level=level, size=size)


def chance(level: int = 2) -> float:
    """The share of the most common answer at this level, on the worse of the two splits.

    Counted over all questions of levels 1 to 3 (.25, as one-digit test questions are few; .005; .0001), and
    a bound for those above.
    """
    return _CHANCE[whole_number("calculator", "level", level, 1, len(LEVELS)) - 1]


def demonstrate(
    task: Task, rng: np.random.Generator, *, tool_share: float = 0.3, right_share: float = 0.0
) -> list[str]:
    """The agent's turns in one episode to imitate, in canonical syntax.

    With probability `tool_share`: a call of the calculator, then the right answer. Otherwise a direct answer,
    right with probability `right_share`, else a wrong number with as many digits. So a model learns the two
    forms from it, but neither the products nor which form pays: that is left to reinforcement learning.
    """
    target = str(task.target)
    if rng.random() < tool_share:
        call = render_call("calculator", {"expression": task.metadata["expression"]})
        return [call, f"\\boxed{{{target}}}"]
    answer = target if rng.random() < right_share else wrong_number(target, rng)
    return [f"\\boxed{{{answer}}}"]


def wrong_number(target: str, rng: np.random.Generator) -> str:
    """A number with as many digits as `target`, uniform over the others."""
    low, high = 10 ** (len(target) - 1), 10 ** len(target)
    number = int(rng.integers(low, high - 1))
    return str(number + (number >= int(target)))


def calculator(expression: str) -> str:
    """Work out an arithmetic expression exactly.

    Args:
        expression: numbers with + - * / and parentheses, without thousands separators.

    Returns:
        A whole number with all its digits; any other result as a decimal of at most 12 significant digits.

    Raises:
        ValueError: the expression is no such thing or too long; the text says where and why.
    """
    result = evaluate(expression)[0]
    if result.denominator == 1:
        return str(result.numerator)
    with localcontext(prec=SIGNIFICANT):
        return f"{(Decimal(result.numerator) / Decimal(result.denominator)).normalize():f}"


def evaluate(expression: str) -> tuple[Fraction, list[Fraction]]:
    """The value of an arithmetic expression, and the numbers in it from left to right. Raises ValueError."""
    parser = _Parser(expression)
    return parser.parse(), parser.numbers


_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"})
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")


class _Parser:
    """Recursive descent: a sum is products with + or -, a product factors with * or /, a factor has any -."""

    def __init__(self, expression: str) -> None:
        if len(expression) > MAX_LENGTH:
            raise ValueError(f"the expression has {len(expression)} characters; at most {MAX_LENGTH} are allowed")
        if not expression.strip():
            raise ValueError("the expression is empty")
        self.text = expression.translate(_SIGNS)
        self.position = self.depth = 0
        self.numbers: list[Fraction] = []

    def parse(self) -> Fraction:
        result = self.sum()
        if self.peek():
            raise self.unexpected()
        return result

    def peek(self) -> str:
        """The next character that is no white space, "" at the end."""
        while self.position < len(self.text) and self.text[self.position].isspace():
            self.position += 1
        return self.text[self.position : self.position + 1]

    def sum(self) -> Fraction:
        result = self.product()
        while (sign := self.peek()) and sign in "+-":
            self.position += 1
            term = self.product()
            result = result + term if sign == "+" else result - term
        return result

    def product(self) -> Fraction:
        result = self.factor()
        while (sign := self.peek()) and sign in "*/":
            self.position += 1
            factor = self.factor()
            if sign == "/" and factor == 0:
                raise ValueError("division by zero")
            result = result * factor if sign == "*" else result / factor
        return result

    def factor(self) -> Fraction:
        negative = False
        while self.peek() == "-":
            self.position += 1
            negative = not negative
        result = self.parenthesis() if self.peek() == "(" else self.number()
        return -result if negative else result

    def parenthesis(self) -> Fraction:
        opened_at = self.position + 1
        self.position, self.depth = self.position + 1, self.depth + 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"parentheses are nested deeper than {MAX_DEPTH}")
        result = self.sum()
        if not self.peek():
            raise ValueError(f"the '(' at position {opened_at} is not closed")
        if self.peek() != ")":
            raise self.unexpected()
        self.position, self.depth = self.position + 1, self.depth - 1
        return result

    def number(self) -> Fraction:
        self.peek()
        match = _NUMBER.match(self.text, self.position)
        if match is None:
            raise self.unexpected()
        if len(match[0].replace(".", "")) > MAX_DIGITS:
            raise ValueError(f"the number at position {self.position + 1} has more than {MAX_DIGITS} digits")
        self.position = match.end()
        self.numbers.append(Fraction(match[0]))
        return self.numbers[-1]

    def unexpected(self) -> ValueError:
        found = self.peek()
        if not found:
            return ValueError("the expression ends too soon")
        hint = "; write numbers without thousands separators" if found == "," else ""
        return ValueError(f"unexpected {found!r} at position {self.position + 1}{hint}")
