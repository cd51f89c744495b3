"""Draws the generated sets' questions, each a pure function of (seed, index), into disjoint splits."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np

from verigym.tasks.errors import ConfigError, UnknownNameError
from verigym.tasks.task import GeneratedTaskSet, Task

SPLITS = ("train", "test")
DEFAULT_SIZE = {"train": 10_000, "test": 1_000}
MAX_SIZE = 10**9

Shape = tuple[tuple[int, ...], ...]
"""Per term, the number of digits of each of its factors: ((2, 2), (2,)) is the shape of 37 * 24 + 58."""

Terms = tuple[tuple[int, tuple[int, ...]], ...]
"""(sign, factors) of each term; the first sign is +1."""


def draw_terms(shape: Shape, rng: np.random.Generator) -> Terms:
    """Terms of this shape: numbers uniform over those of so many digits (0 left out), signs fair coins."""
    terms = []
    for position, digits in enumerate(shape):
        sign = -1 if position and rng.integers(2) else 1
        terms.append((sign, tuple(int(rng.integers(10 ** (count - 1), 10**count)) for count in digits)))
    return tuple(terms)


def expression(terms: Terms) -> str:
    """The question's text: `37 * 24 - 58`."""
    first, *others = [" * ".join(map(str, factors)) for _, factors in terms]
    signs = ["+" if sign > 0 else "-" for sign, _ in terms[1:]]
    return " ".join([first, *(f"{sign} {text}" for sign, text in zip(signs, others, strict=True))])


def value(terms: Terms) -> int:
    """The right answer."""
    return sum(sign * prod(factors) for sign, factors in terms)


def split_of(terms: Terms) -> str:
    """The split that this question belongs to in every set, at every seed and level: one in five is test.

    It depends on the content only, not on the order of summands or factors: 3 + 4 goes with 4 + 3.
    """
    ordered = sorted((sign, tuple(sorted(factors))) for sign, factors in terms)
    return split_by("".join(f"{sign:+d}*{'*'.join(map(str, factors))}" for sign, factors in ordered))


def split_by(content: str) -> str:
    """The split of a question with this content: one in five is test."""
    number = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big")
    return "test" if number % 5 == 0 else "train"


def draw(shape: Shape, *, seed: int, index: int, split: str, stream: str) -> Terms:
    """The question at `index`: draws until one belongs to `split`. `stream` names the set and level."""
    rng = generator(seed, index, f"{stream}/{split}")
    while split_of(terms := draw_terms(shape, rng)) != split:
        pass
    return terms


def generator(seed: int, index: int, stream: str) -> np.random.Generator:
    """The random generator of one task."""
    # The seed comes last: the others are one 32-bit word each, so no two triples give the same words.
    return np.random.default_rng([index, zlib.crc32(stream.encode()), seed])


def generated_set(
    name: str, levels: Sequence[Shape], *, split: str, seed: int, level: int, size: int | None
) -> GeneratedTaskSet:
    """A set of `size` questions (default: 10,000 train, 1,000 test) of the shape `levels[level - 1]`.

    Raises UnknownNameError for the split and ConfigError for level, seed or size.
    """
    level = whole_number(name, "level", level, 1, len(levels))
    return make_set(partial(_make, levels[level - 1]), name=name, split=split, seed=seed, level=level, size=size)


def make_set(
    make: Callable[..., Task], *, name: str, split: str, seed: int, level: int | None = None, size: int | None
) -> GeneratedTaskSet:
    """A set of `size` tasks, `make(index, name=, split=, seed=, prefix=)` each, with `level=` if there is one.

    Raises as `generated_set`.
    """
    if split not in SPLITS:
        raise UnknownNameError.of(f"split of '{name}' named", str(split), SPLITS)
    seed = whole_number(name, "seed", seed, 0, None)
    size = whole_number(name, "size", DEFAULT_SIZE[split] if size is None else size, 1, MAX_SIZE)
    leveled = {} if level is None else {"level": level}
    prefix = "-".join((name, split, *(f"level{level}" for level in leveled.values()), f"seed{seed}"))
    one = partial(make, name=name, split=split, seed=seed, prefix=prefix, **leveled)
    return GeneratedTaskSet(one, size=size, name=name, split=split, prefix=prefix)


def whole_number(name: str, option: str, given: Any, low: int, high: int | None) -> int:
    """`given` as an int. Raises ConfigError unless it is a whole number in the range."""
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool):
        number = int(given)
        if low <= number and (high is None or number <= high):
            return number
    span = f"of at least {low}" if high is None else f"from {low} to {high}"
    raise ConfigError(f"{name}: {option} must be a whole number {span}, not {given!r}")


def _make(shape: Shape, index: int, *, name: str, split: str, seed: int, level: int, prefix: str) -> Task:
    terms = draw(shape, seed=seed, index=index, split=split, stream=f"{name}/{level}")
    text = expression(terms)
    metadata = MappingProxyType({"level": level, "expression": text})
    return Task(f"{prefix}/{index}", f"What is {text}?", str(value(terms)), metadata)
