r"""Generated Countdown puzzles: reach a goal with some numbers, each used once (as in TinyZero).

A task of level 2:

    Use each of the numbers 19, 36 and 7 exactly once, with + - * / and parentheses, to make 101.

The target is one solution, "(19 - 4) * 7"-like; `metadata` has the numbers and the goal. A correct answer is any
expression that keeps to the rules, `\boxed{...}`.

| level | numbers | of at most | goal at most |
|---|---|---|---|
| 1 | 2 | 20 | 100 |
| 2 | 3 | 50 | 200 |
| 3 | 4 | 100 | 500 |
| 4 | 5 | 100 | 1000 |
| 5 | 6 | 100 | 1000 |

Every puzzle has a solution whose intermediate results are whole and positive. Train and test never share one.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from verigym.tasks._generate import generator, make_set, split_by, whole_number
from verigym.tasks.task import Task, TaskSet


class Level(NamedTuple):
    """How many numbers, up to which, and the largest goal."""

    numbers: int
    largest: int
    goal: int


LEVELS = (Level(2, 20, 100), Level(3, 50, 200), Level(4, 100, 500), Level(5, 100, 1000), Level(6, 100, 1000))

Puzzle = tuple[list[int], int, str]
"""Numbers as shown, the goal, and a solution."""


def load(split: str = "train", *, level: int = 2, seed: int = 0, size: int | None = None) -> TaskSet:
    """`size` puzzles of one level (default: 10,000 train, 1,000 test), a pure function of the arguments.

    A larger size only adds tasks. Raises UnknownNameError for the split, ConfigError for the other options.
    """
    level = whole_number("countdown", "level", level, 1, len(LEVELS))
    return make_set(_make, name="countdown", split=split, seed=seed, level=level, size=size)


def _make(index: int, *, name: str, split: str, seed: int, level: int, prefix: str) -> Task:
    rng = generator(seed, index, f"{name}/{level}/{split}")
    while True:
        puzzle = _draw(LEVELS[level - 1], rng)
        if puzzle is not None and split_by(f"{sorted(puzzle[0])}={puzzle[1]}") == split:
            break
    numbers, goal, solution = puzzle
    listed = f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
    prompt = f"Use each of the numbers {listed} exactly once, with + - * / and parentheses, to make {goal}."
    metadata = MappingProxyType({"level": level, "numbers": tuple(numbers), "goal": goal})
    return Task(f"{prefix}/{index}", prompt, solution, metadata)


def _draw(level: Level, rng: np.random.Generator) -> Puzzle | None:
    """A random puzzle; None if its goal is too large, or one of the numbers."""
    numbers = [int(number) for number in rng.integers(1, level.largest + 1, size=level.numbers)]
    terms = [(number, str(number)) for number in numbers]
    while len(terms) > 1:
        first, second = (terms.pop(int(rng.integers(len(terms)))) for _ in range(2))
        terms.append(_combine(first, second, rng))
    goal, solution = terms[0]
    if goal > level.goal or goal in numbers:
        return None
    return numbers, goal, solution.removeprefix("(").removesuffix(")")


def _combine(first: tuple[int, str], second: tuple[int, str], rng: np.random.Generator) -> tuple[int, str]:
    """The two terms with a random one of the operations whose result is whole and positive."""
    (a, left), (b, right) = max(first, second), min(first, second)
    choices = [(a + b, "+"), (a * b, "*")]
    choices += [(a - b, "-")] if a > b else []
    choices += [(a // b, "/")] if a % b == 0 else []
    value, sign = choices[int(rng.integers(len(choices)))]
    return value, f"({left} {sign} {right})"
