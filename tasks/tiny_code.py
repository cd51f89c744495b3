"""Generated small functions to write, in five levels: code tasks that a model of a million parameters can learn.

| level | function | example | chance |
|---|---|---|---|
| 1 | one operation on x | x times 7 | 0.02 |
| 2 | an addition and a product, one after the other | x plus 12, then times 3 | 0.001 |
| 3 | a sum of multiples of x and y | x times 3, plus y times 14 | 0.001 |
| 4 | one operation or another, by the size of x | x times 3 if x is above 5, else x minus 9 | 0.001 |
| 5 | a sum over some of a list | the sum of y times 7, for each y in the list x that is above 3 | 0.001 |

A task of level 2: the prompt "Write a function f(x) that returns x plus 12, then times 3. For example, f(4) is 48.",
asserts as the target's tests (the one of the example is public), and a correct answer

    ```python
    def f(x):
        return (x + 12) * 3
    ```

Numbers are uniform from 2 to 99, and bounds are tested on both of their sides. Train and test never share a question.
Chance is the share of the most common function, on the worse of the two splits: counted at level 1 (50 of 294
questions are test), a bound above.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from verigym.tasks._generate import generator, make_set, split_by, whole_number
from verigym.tasks.task import Task, TaskSet

TESTS = 6
_NUMBERS = range(2, 100)
_CHANCE = (0.02, 1e-3, 1e-3, 1e-3, 1e-3)
_SIGNS = {"plus": "+", "minus": "-", "times": "*"}


@dataclass(frozen=True)
class Function:
    """A function in words and in Python, and what it gives."""

    parameters: tuple[str, ...]
    words: str
    body: str
    value: Callable[..., int]
    probes: tuple[tuple[Any, ...], ...] = ()
    """Arguments that a test must try."""

    @property
    def solution(self) -> str:
        return f"def f({', '.join(self.parameters)}):\n    return {self.body}"


def load(split: str = "train", *, level: int = 1, seed: int = 0, size: int | None = None) -> TaskSet:
    """`size` functions of one level (default: 10,000 train, 1,000 test), a pure function of the arguments.

    A larger size only adds tasks. Raises UnknownNameError for the split, ConfigError for the other options.
    """
    level = whole_number("tiny_code", "level", level, 1, len(LEVELS))
    return make_set(_make, name="tiny_code", split=split, seed=seed, level=level, size=size)


def chance(level: int = 1) -> float:
    """The share of the most common function at this level, which is what always writing it earns."""
    return _CHANCE[whole_number("tiny_code", "level", level, 1, len(LEVELS)) - 1]


def demonstrate(task: Task, rng: np.random.Generator, *, right_share: float = 0.4) -> list[str]:
    """One answer to imitate: the right function with probability `right_share`, else another of the same level.

    So a model learns the form of answers from it, and what pays is left to reinforcement learning.
    """
    right = rng.random() < right_share
    solution = task.target["solution"] if right else LEVELS[task.metadata["level"] - 1](rng).solution
    return [f"```python\n{solution}\n```"]


def _operation(rng: np.random.Generator, *names: str) -> tuple[str, str, Callable[[int], int]]:
    """An operation with a number: in words, in Python, and what it does."""
    name, number = names[int(rng.integers(len(names)))], int(rng.choice(_NUMBERS))
    does = {"plus": lambda x: x + number, "minus": lambda x: x - number, "times": lambda x: x * number}[name]
    return f"{name} {number}", f"{_SIGNS[name]} {number}", does


def _one(rng: np.random.Generator) -> Function:
    words, code, does = _operation(rng, *_SIGNS)
    return Function(("x",), f"x {words}", f"x {code}", does)


def _two(rng: np.random.Generator) -> Function:
    addition, product = _operation(rng, "plus", "minus"), _operation(rng, "times")
    first, second = (addition, product) if rng.integers(2) else (product, addition)
    body = f"(x {first[1]}) {second[1]}" if first is addition else f"x {first[1]} {second[1]}"
    return Function(("x",), f"x {first[0]}, then {second[0]}", body, lambda x: second[2](first[2](x)))


def _two_arguments(rng: np.random.Generator) -> Function:
    first, second = _operation(rng, "times"), _operation(rng, "times")
    name, sign = [("plus", 1), ("minus", -1)][int(rng.integers(2))]
    words = f"x {first[0]}, {name} y {second[0]}"
    body = f"x {first[1]} {_SIGNS[name]} y {second[1]}"
    return Function(("x", "y"), words, body, lambda x, y: first[2](x) + sign * second[2](y))


def _choice(rng: np.random.Generator) -> Function:
    bound = int(rng.integers(-20, 21))
    high, low = _operation(rng, *_SIGNS), _operation(rng, *_SIGNS)
    words = f"x {high[0]} if x is above {bound}, else x {low[0]}"
    body = f"x {high[1]} if x > {bound} else x {low[1]}"
    return Function(("x",), words, body, lambda x: high[2](x) if x > bound else low[2](x), ((bound,), (bound + 1,)))


def _list(rng: np.random.Generator) -> Function:
    bound = int(rng.integers(-20, 21))
    words, code, does = _operation(rng, *_SIGNS)
    said = f"the sum of y {words}, for each y in the list x that is above {bound}"
    body = f"sum(y {code} for y in x if y > {bound})"
    return Function(("x",), said, body, lambda x: sum(does(y) for y in x if y > bound), (([bound, bound + 1],),))


LEVELS: tuple[Callable[[np.random.Generator], Function], ...] = (_one, _two, _two_arguments, _choice, _list)


def _make(index: int, *, name: str, split: str, seed: int, level: int, prefix: str) -> Task:
    rng = generator(seed, index, f"{name}/{level}/{split}")
    while split_by((function := LEVELS[level - 1](rng)).words) != split:
        pass
    calls = [*(_arguments(rng, function, level) for _ in range(TESTS)), *function.probes]
    tests = [f"assert f({', '.join(map(str, args))}) == {function.value(*args)}" for args in calls]
    call, _, value = tests[0].removeprefix("assert ").partition(" == ")
    parameters = ", ".join(function.parameters)
    prompt = f"Write a function f({parameters}) that returns {function.words}. For example, {call} is {value}."
    target = {"asserts": "\n".join(tests), "entry_point": "f", "solution": function.solution}
    metadata = MappingProxyType({"level": level, "public": tests[0]})
    return Task(f"{prefix}/{index}", prompt, target, metadata)


def _arguments(rng: np.random.Generator, function: Function, level: int) -> tuple[Any, ...]:
    """Arguments of one test."""
    if level == len(LEVELS):
        return ([int(number) for number in rng.integers(-50, 51, int(rng.integers(2, 6)))],)
    return tuple(int(rng.integers(-50, 51)) for _ in function.parameters)
