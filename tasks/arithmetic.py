"""Generated sums, differences and products of whole numbers, in five levels.

| level | question | example | chance |
|---|---|---|---|
| 1 | two one-digit numbers, + or - | 3 + 4 | 0.105 |
| 2 | two two-digit numbers, + or - | 37 - 58 | 0.0104 |
| 3 | three two-digit numbers, + or - | 37 + 24 - 58 | 0.0046 |
| 4 | a product of two-digit numbers, + or - a two-digit number | 37 * 24 + 58 | 0.0004 |
| 5 | three terms of three-digit numbers, two of them products | 372 * 241 - 958 * 103 + 644 | 0.0001 |

A task: the prompt "What is 37 * 24 + 58?", the target "946", a correct answer `\\boxed{946}`.
Numbers are uniform over those with so many digits, 0 left out. Train and test never share a question.
Chance is the share of the most common answer, on the worse of the two splits: counted over all questions of
levels 1 to 4; at level 5 a bound from 200,000 sampled questions.
"""

from verigym.tasks._generate import Shape, generated_set, whole_number
from verigym.tasks.task import TaskSet

LEVELS: tuple[Shape, ...] = (
    ((1,), (1,)),
    ((2,), (2,)),
    ((2,), (2,), (2,)),
    ((2, 2), (2,)),
    ((3, 3), (3, 3), (3,)),
)

_CHANCE = (4 / 38, 34 / 3262, 2694 / 582468, 122 / 292587, 1e-4)


def load(split: str = "train", *, level: int = 1, seed: int = 0, size: int | None = None) -> TaskSet:
    """`size` questions of one level (default: 10,000 train, 1,000 test), a pure function of the arguments.

    A larger size only adds tasks. Raises UnknownNameError for the split, ConfigError for the other options.
    """
    return generated_set("arithmetic", LEVELS, split=split, seed=seed, level=level, size=size)


def chance(level: int = 1) -> float:
    """The share of the most common answer at this level, which is what always answering it earns."""
    return _CHANCE[whole_number("arithmetic", "level", level, 1, len(LEVELS)) - 1]
