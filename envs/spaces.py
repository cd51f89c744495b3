"""The space of all texts: any Unicode string, the empty one included."""

from typing import Any

import gymnasium as gym
import numpy as np

# Code points to sample from: ASCII, Latin, Greek, Arabic, CJK, symbols, emoji; surrogates are no characters.
_RANGES = (
    (0x20, 0x7F),
    (0xA0, 0x250),
    (0x370, 0x400),
    (0x600, 0x700),
    (0x4E00, 0x9FFF),
    (0x2200, 0x2300),
    (0x1F300, 0x1F600),
)


class TextSpace(gym.Space[str]):
    """Every `str`. Unlike `gymnasium.spaces.Text` it has no alphabet and no length limit."""

    def __init__(self, *, max_sample_length: int = 64, seed: int | np.random.Generator | None = None) -> None:
        self.max_sample_length = max_sample_length
        super().__init__(shape=None, dtype=None, seed=seed)

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        """A random text of 0 to `max_sample_length` characters from many scripts."""
        if mask is not None or probability is not None:
            raise ValueError("TextSpace.sample takes no mask and no probability")
        length = int(self.np_random.integers(0, self.max_sample_length + 1))
        ranges = self.np_random.integers(0, len(_RANGES), size=length)
        return "".join(chr(int(self.np_random.integers(*_RANGES[which]))) for which in ranges)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def to_jsonable(self, sample_n: Any) -> list[str]:
        return list(sample_n)

    def from_jsonable(self, sample_n: list[Any]) -> list[str]:
        return [str(sample) for sample in sample_n]

    def __repr__(self) -> str:
        return "TextSpace()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextSpace)

    __hash__ = None  # type: ignore[assignment]
