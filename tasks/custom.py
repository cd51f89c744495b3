r"""A task set of one's own, from rows of a prompt and a target.

A row:

    {"id": "fr", "prompt": "What is the capital of France?", "target": "Paris", "metadata": {"topic": "geography"}}

The target is a text, a number, or a list of these: any of several accepted answers; or an object, for a verifier that
reads one (`code`). `id` and `metadata` may be left
out; what a verifier needs beside the target (`options`, `tolerance`) goes into `metadata`. Rows with other names for
the two fields need no rewriting: `prompt_field="question"`, `target_field="answer"`.
A single file holds all rows, whatever the split; for several splits give a folder of files named after them.
"""

import os
from functools import partial
from types import MappingProxyType
from typing import Any

from verigym.tasks._rows import DataSet, Row
from verigym.tasks.errors import ConfigError
from verigym.tasks.task import Task, TaskSet

SPLITS = ("train", "validation", "test")


def load(
    split: str = "train",
    source: str | os.PathLike[str] | None = None,
    *,
    prompt_field: str = "prompt",
    target_field: str = "target",
) -> TaskSet:
    """The tasks of one split; see `tasks.load`. Raises ConfigError without a source."""
    if source is None:
        raise ConfigError("a custom task set needs its data: give source=PATH (JSONL or Parquet, a folder) or a hub id")
    to_task = partial(_to_task, prompt_field=prompt_field, target_field=target_field)
    return DataSet("custom", SPLITS, str(source), None, to_task).load(split, source)


def _to_task(row: Row, default_id: str, *, prompt_field: str, target_field: str) -> Task:
    metadata = row.values.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise row.error(f"the field 'metadata' must be an object, not {type(metadata).__name__}")
    prompt, target = row.text(prompt_field), _target(row, target_field)
    return Task(row.id("id", default=default_id), prompt, target, MappingProxyType(metadata or {}))


def _target(row: Row, field: str) -> Any:
    target = row.values.get(field)
    if isinstance(target, dict) and target:
        return target
    if isinstance(target, list) and target:
        return tuple(_answer(row, field, answer) for answer in target)
    return _answer(row, field, target)


def _answer(row: Row, field: str, answer: Any) -> str | int | float:
    if type(answer) in (int, float) or (isinstance(answer, str) and answer.strip()):
        return answer  # type: ignore[no-any-return]
    if field in row.values:
        raise row.error(
            f"the field '{field}' must be a text, a number, a list of these or an object, not {str(answer)[:40]!r}"
        )
    return row.text(field)  # which says that it is missing
