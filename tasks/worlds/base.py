"""The tables that many tasks start from, read once in a process and never copied."""

from __future__ import annotations

import gzip
import json
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from verigym.tasks.errors import TaskDataError
from verigym.tasks.worlds.store import Record

File = tuple[str, str]
"""The name of a table, "" for a file that holds all of them by name, and where it is (JSON, or gzipped JSON)."""


class Base(dict[str, dict[str, Record]]):
    """Tables from files: a task holds them by reference, and a copied or pickled one by the names of the files.

    Raises TaskDataError for a file that cannot be read or holds something else.
    """

    def __init__(self, files: tuple[File, ...]) -> None:
        super().__init__()
        self.files = files
        for name, path in files:
            found = _objects(path)
            self.update({name: found} if name else found)

    def __reduce__(self) -> tuple[object, ...]:
        return read_base, (self.files,)

    def __deepcopy__(self, memo: object) -> Base:
        return self  # nobody writes it


def read_base(files: tuple[File, ...]) -> Base:
    """The base of these files as they are now: the same object for all who ask until one of them changes."""
    return _read_once(files, tuple(_changed(path) for _, path in files))


@lru_cache(maxsize=8)
def _read_once(files: tuple[File, ...], state: tuple[tuple[int, int], ...]) -> Base:
    return Base(files)


def _changed(path: str) -> tuple[int, int]:
    """When a file was changed, and its size."""
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise TaskDataError(f"{path}: cannot be read ({error.strerror}); fetch the file again") from error
    return stat.st_mtime_ns, stat.st_size


def _objects(path: str) -> dict[str, dict[str, Any]]:
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            found = json.loads(file.read())
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise TaskDataError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())[:160]})") from error
    if not isinstance(found, dict) or not found or not all(isinstance(value, dict) for value in found.values()):
        raise TaskDataError(f"{path}: must hold an object of objects; fetch the file again")
    return found
