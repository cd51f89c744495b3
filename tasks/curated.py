"""A curated set: chosen tasks in a Parquet file that says where they come from and why the others are not there.

A row has `id`, `prompt`, `target` and `metadata` (both JSON, as their types differ from set to set), `content_hash`,
and `pass_rate` and `attempts` (null where no model has played). The file's own metadata has the provenance.

    tasks.load("curated", source="chosen.parquet")
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from verigym.tasks._rows import DataSet, Row, is_unicode
from verigym.tasks.errors import ConfigError, TaskDataError, UnknownNameError
from verigym.tasks.task import Task, TaskSet

SPLITS = ("train", "validation", "test")
_PROVENANCE = b"verigym"


def load(split: str = "train", source: str | os.PathLike[str] | None = None) -> TaskSet:
    """The tasks of a file that `write` wrote, or of the files in a folder that are named after the split.

    Raises ConfigError without a source, UnknownNameError for a split that the file does not hold (so that nobody
    evaluates on what was chosen for training), TaskDataError for a row whose content is not what was written.
    """
    if source is None:
        raise ConfigError("a curated task set needs its data: give source=PATH of what `verigym curate` wrote")
    if os.path.isfile(source) and (held := provenance(source)["split"]) != split:
        raise UnknownNameError(f"{source} holds the split '{held}', not '{split}'; give another set for it (eval_envs)")
    return DataSet("curated", SPLITS, str(source), None, _to_task).load(split, source)


def write(
    path: str | os.PathLike[str],
    tasks: TaskSet,
    origin: Mapping[str, Any],
    rates: Mapping[str, tuple[float, int]] | None = None,
) -> None:
    """Writes tasks, where they come from (as JSON), and by id the (pass rate, attempts) of those that were played.

    The file appears when it is complete. Raises ConfigError if it cannot be written, TaskDataError for a task whose
    target or metadata is no JSON.
    """
    import pyarrow
    from pyarrow import parquet

    played = rates or {}
    rows = [_row(task, *played.get(task.id, (None, None))) for task in tasks]
    kinds = {"pass_rate": pyarrow.float64(), "attempts": pyarrow.int64()}
    names = ("id", "prompt", "target", "metadata", "content_hash", "pass_rate", "attempts")
    schema = pyarrow.schema(
        [(name, kinds.get(name, pyarrow.string())) for name in names],
        metadata={_PROVENANCE: json.dumps({"split": tasks.split, **origin}).encode()},
    )
    place = Path(path)
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), part)
        part.replace(place)
    except OSError as error:
        raise ConfigError(f"cannot write '{path}': {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def provenance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Where the tasks of a file come from. Raises TaskDataError for a file that `write` did not write."""
    import pyarrow
    from pyarrow import parquet

    try:
        metadata = parquet.read_schema(path).metadata or {}
        found: dict[str, Any] = json.loads(metadata[_PROVENANCE])
    except (pyarrow.ArrowException, OSError, KeyError, ValueError) as error:
        raise TaskDataError(f"{path}: no curated set ({error}); `verigym curate` writes them") from error
    return found


def _row(task: Task, pass_rate: float | None, attempts: int | None) -> dict[str, Any]:
    try:
        target, metadata = (json.dumps(value, allow_nan=False) for value in (task.target, dict(task.metadata)))
    except (TypeError, ValueError) as error:
        raise TaskDataError(f"task {task.id} cannot be written: its target or metadata is no JSON ({error})") from error
    if not is_unicode(task.id + task.prompt):
        raise TaskDataError(f"task {task.id!a} cannot be written: its id or prompt is not Unicode")
    played = {"pass_rate": pass_rate, "attempts": attempts}
    row = {"id": task.id, "prompt": task.prompt, "target": target, "metadata": metadata, **played}
    return {**row, "content_hash": task.content_hash()}


def _to_task(row: Row, default_id: str) -> Task:
    target, metadata = (_json(row, field) for field in ("target", "metadata"))
    if not isinstance(metadata, dict):
        raise row.error(f"the field 'metadata' must be an object, not {type(metadata).__name__}")
    task = Task(row.id("id", default=default_id), row.text("prompt"), target, MappingProxyType(metadata))
    if task.content_hash() != row.values.get("content_hash"):
        raise row.error("prompt and target are not those that were written (their hash differs)")
    return task


def _json(row: Row, field: str) -> Any:
    try:
        return json.loads(row.text(field))
    except ValueError as error:
        raise row.error(f"the field '{field}' is not JSON ({error})") from error
