"""The space of all texts: any Unicode string, the empty one included."""

import contextlib
import os
import tempfile
from collections.abc import Sequence
from multiprocessing.reduction import DupFd
from typing import Any, overload

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import create_shared_memory, read_from_shared_memory, write_to_shared_memory

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


class _SharedText:
    """A text of any length that processes share: a file without a name, so nothing is left of it after a kill."""

    def __init__(self) -> None:
        self._descriptor = _unnamed_file()

    def write(self, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        os.ftruncate(self._descriptor, 0)
        written = 0
        while written < len(data):  # one call writes 2 GiB at most
            written += os.pwrite(self._descriptor, data[written:], written)

    def read(self) -> str:
        parts, position = [], 0
        while part := os.pread(self._descriptor, 1 << 30, position):
            parts.append(part)
            position += len(part)
        return b"".join(parts).decode("utf-8", "surrogatepass")

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (DupFd(self._descriptor),)  # how a process that is spawned inherits a descriptor

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._descriptor)


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _attach(descriptor: Any) -> _SharedText:
    shared = _SharedText.__new__(_SharedText)
    shared._descriptor = descriptor.detach()
    return shared


class _LiveTexts(Sequence[str]):
    """The texts as they are now. A copy, which `AsyncVectorEnv` hands out by default, is a tuple of them."""

    def __init__(self, shared: Sequence[_SharedText]) -> None:
        self._shared = shared

    def __len__(self) -> int:
        return len(self._shared)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(shared.read() for shared in self._shared[index])
        return self._shared[index].read()

    def __deepcopy__(self, memo: Any) -> tuple[str, ...]:
        return tuple(self)


# Gymnasium asks for these when `AsyncVectorEnv` shares memory, as it does by default.


@create_shared_memory.register(TextSpace)
def _create(space: TextSpace, n: int = 1, ctx: Any = None) -> tuple[_SharedText, ...]:
    return tuple(_SharedText() for _ in range(n))


@read_from_shared_memory.register(TextSpace)
def _read(space: TextSpace, shared_memory: tuple[_SharedText, ...], n: int = 1) -> _LiveTexts:
    return _LiveTexts(shared_memory)


@write_to_shared_memory.register(TextSpace)
def _write(space: TextSpace, index: int, value: str, shared_memory: tuple[_SharedText, ...]) -> None:
    shared_memory[index].write(value)
