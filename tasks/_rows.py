"""Reads the rows of a data set from the hub, a file or a folder, and says where a bad row is."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verigym.tasks.errors import TaskDataError, UnknownNameError
from verigym.tasks.task import Task, TaskSet

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_NAMES_OF = {"train": {"train"}, "test": {"test"}, "validation": {"validation", "valid", "val", "dev"}}
_SPLIT_WORDS = frozenset().union(*_NAMES_OF.values())
_FORMATS = "JSONL (.jsonl), gzipped JSONL (.jsonl.gz) or Parquet (.parquet)"


@dataclass(frozen=True, slots=True)
class DataSet:
    """What a data set's module declares: its name, its home on the hub, and how a row becomes a task."""

    name: str
    splits: tuple[str, ...]
    hub_id: str
    hub_config: str | None
    to_task: Callable[[Row, str], Task]  # (row, id for a row that has none)
    hub_splits: Mapping[str, str] = field(default_factory=dict)  # where the hub names a split otherwise
    row_split: Callable[[Row], str] | None = None  # tells a row's split, where a file of a folder may hold several

    def load(self, split: str, source: str | os.PathLike[str] | None) -> TaskSet:
        """The tasks of `split`. Raises UnknownNameError for the split, TaskDataError for the data."""
        if split not in self.splits:
            raise UnknownNameError.of(f"split of '{self.name}' named", str(split), self.splits)
        rows = self._rows(split, self.hub_id if source is None else os.fspath(source))
        tasks, left_out = [], []
        for index, row in enumerate(rows):
            try:
                tasks.append(self.to_task(row, f"{self.name}-{split}-{index}"))
            except UnusableRow as unusable:
                left_out.append(str(unusable))
        if not tasks:
            raise TaskDataError(
                f"{self.name}/{split}: {source or self.hub_id} holds no rows of it; give another source or split"
            )
        return TaskSet(tasks, name=self.name, split=split, left_out=left_out)

    def _rows(self, split: str, source: str) -> Iterator[Row]:
        if not is_path(source):
            return read_hub(source, self.hub_config, self.hub_splits.get(split, split))
        path = Path(os.path.expanduser(source))
        if not source or not os.path.exists(path):
            raise TaskDataError(f"{self.name}/{split}: no file or folder '{source}'; check the path given as source")
        files = find_files(path, self, split) if path.is_dir() else [path]
        rows = (row for file in files for row in read_file(file))
        tell = self.row_split if path.is_dir() else None
        return rows if tell is None else (row for row in rows if tell(row) == split)


class UnusableRow(Exception):  # noqa: N818 - control flow: the row is left out, and the task set says so
    """Raised for a row that is as it should be but holds no task, such as one without an answer."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source: its fields, and the file (or hub id) and 1-based row number for error messages."""

    values: Mapping[str, Any]
    file: str
    number: int

    def text(self, *fields: str) -> str:
        """The text in the first of `fields` that is there. Raises TaskDataError if there is none, or no text in it."""
        name = next((name for name in fields if name in self.values), fields[0])
        value = self.values.get(name)
        if isinstance(value, str) and value.strip() and is_unicode(value):
            return value
        if name not in self.values:
            problem = "is missing"
        elif not isinstance(value, str):
            problem = f"must be text, not {'null' if value is None else type(value).__name__}"
        else:
            problem = "is not Unicode" if value.strip() else "is empty"
        found = ", ".join(map(str, self.values)) or "none"
        raise self.error(f"the field '{name}' {problem} (fields found: {found})")

    def answer(self, *fields: str) -> str:
        """The text in the first of `fields` that is there, or the digits of a number. Raises TaskDataError else."""
        name = next((name for name in fields if name in self.values), fields[0])
        value = self.values.get(name)
        return str(self.numeric(name)) if type(value) in (int, float) else self.text(name)

    def numeric(self, *fields: str) -> int | float:
        """The finite number in the first of `fields` that is there, or that its text spells; whole ones as int.

        Raises TaskDataError for anything else in it.
        """
        name = next((name for name in fields if name in self.values), fields[0])
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            text = self.text(name)
            try:
                value = float(text.replace(",", ""))
            except ValueError:
                raise self.error(f"the field '{name}' must be a number, not {text[:40]!r}") from None
        if not math.isfinite(value):
            raise self.error(f"the field '{name}' must be a finite number, not {value}")
        return int(value) if value == int(value) else value

    def id(self, *fields: str, default: str) -> str:
        """The first of `fields` that is there, as text; a whole number becomes its digits.

        Raises TaskDataError for anything else in it.
        """
        for name in fields:
            value = self.values.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                return str(value)
            if value is not None:
                return self.text(name)
        return default

    def unusable(self, why: str) -> UnusableRow:
        """For a row that holds no task: it is left out, and the task set lists it."""
        return UnusableRow(f"{self.file}: row {self.number}: {why}")

    def error(self, problem: str) -> TaskDataError:
        """A TaskDataError that says where, what, and what to do."""
        return TaskDataError(f"{self.file}: row {self.number}: {problem}; correct the row or give another source")


def is_unicode(text: str) -> bool:
    """Whether `text` can be encoded: JSON can spell half of a surrogate pair, which no tokenizer takes."""
    return text.isascii() or not re.search("[\ud800-\udfff]", text)


def is_path(source: str) -> bool:
    """Whether `source` names a file or folder rather than a hub id ("org/name")."""
    if source.startswith((".", "/", "~")) or source.endswith(SUFFIXES) or source.count("/") != 1:
        return True
    return os.path.exists(source)


def find_files(folder: Path, data_set: DataSet, split: str) -> list[Path]:
    """The files of `split` by the rule of `tasks.load`. Raises TaskDataError for none, or two formats."""
    seen: list[Path] = []
    places = [folder, folder / "data", *([folder / data_set.hub_config] if data_set.hub_config else [])]
    for place in places:
        if not place.is_dir():
            continue
        files = sorted(file for file in place.iterdir() if file.is_file() and file.name.endswith(SUFFIXES))
        seen += files
        named = [file for file in files if _NAMES_OF.get(split, {split}) & _words(file)]
        whole = len(data_set.splits) == 1 or data_set.row_split is not None
        if not named and whole and not any(_words(file) & _SPLIT_WORDS for file in files):
            named = files
        if named:
            return _refuse_doubles(named)
    found = ", ".join(str(file.relative_to(folder)) for file in seen[:10]) or "none"
    raise TaskDataError(
        f"{folder}: no data file for the split '{split}' of {data_set.name} (data files seen: {found}); "
        f"put '{split}' in a file's name, or give the file itself as source; formats: {_FORMATS}"
    )


def _words(file: Path) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", file.name.lower()))


def _refuse_doubles(files: list[Path]) -> list[Path]:
    """`files`, unless they look like one split in two formats, which would be read twice."""
    stems = [file.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".parquet") for file in files]
    parquet = [file.suffix == ".parquet" for file in files]
    if len(set(stems)) < len(stems) or any(parquet) != all(parquet):
        names = ", ".join(file.name for file in files)
        raise TaskDataError(f"{files[0].parent}: the same split in two formats ({names}); give one file as source")
    return files


def read_file(path: Path) -> Iterator[Row]:
    """The rows of one data file. Raises TaskDataError for an unknown suffix or an unreadable file."""
    if path.name.endswith(".parquet"):
        return _read_parquet(path)
    if path.name.endswith(SUFFIXES):
        return read_jsonl(path)
    raise TaskDataError(f"{path}: not a data file by its name; data files are {_FORMATS}")


def read_jsonl(path: Path) -> Iterator[Row]:
    """The rows of a file of JSON lines, whatever its name. Raises TaskDataError for an unreadable file."""
    # The standard parser, not a columnar one: it keeps each value's own type and tells the line of an error.
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
                if line:
                    yield Row(_parse_line(line, path, number), str(path), number)
    except (OSError, EOFError, zlib.error) as error:
        raise TaskDataError(f"{path}: cannot be read ({_one_line(error)}); fetch the file again") from error


def _parse_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        values = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TaskDataError(
            f"{path}:{number}: row {number} is not JSON in UTF-8 ({_one_line(error)}); correct or remove it"
        ) from error
    if not isinstance(values, dict):
        raise TaskDataError(f"{path}:{number}: row {number} must be a JSON object, not {type(values).__name__}")
    return values


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise TaskDataError(f"{path}: cannot be read as Parquet ({_one_line(error)}); fetch the file again") from error
    return _number(rows, str(path))


def read_hub(hub_id: str, config: str | None, split: str) -> Iterator[Row]:
    """The rows of a hub data set. Raises TaskDataError if it cannot be had."""
    import datasets

    try:
        rows = _load_hub(datasets.load_dataset, hub_id, config, split).to_list()
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise TaskDataError(
            f"cannot load '{hub_id}' (split {split}) from the hub ({_one_line(error)}); "
            "give source=PATH of a local file or folder"
        ) from error
    return _number(rows, hub_id)


def _load_hub(load_dataset: Callable[..., Any], hub_id: str, config: str | None, split: str) -> Any:
    try:
        return load_dataset(hub_id, config, split=split)
    except ValueError:
        # a mirror of the set may well have no configuration of the original's name
        if config is None:
            raise
        return load_dataset(hub_id, split=split)


def _number(rows: Sequence[Mapping[str, Any]], file: str) -> Iterator[Row]:
    return (Row(values, file, number) for number, values in enumerate(rows, start=1))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
