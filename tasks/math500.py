"""MATH-500: five hundred competition problems with LaTeX answers (Lightman et al., arXiv:2305.20050).

A row (the second of the shared half):

    {"problem": "The point $(a, b)$ lies on the line with the equation $3x + 2y = 12.$ When $a = 4$, what
                 is the value of $b$?", "answer": "0", "difficulty": 2.0,
     "unique_id": "test/algebra/109.json"}

The prompt is the problem as it stands; the target is "0"; a correct answer is `\\boxed{0}`.
Its only split is test. Public home: `HuggingFaceH4/MATH-500` (there the level is called `level`).
"""

import os
from types import MappingProxyType
from typing import Any

from verigym.tasks._rows import DataSet, Row
from verigym.tasks.task import Task, TaskSet


def load(split: str = "test", source: str | os.PathLike[str] | None = None) -> TaskSet:
    """The tasks of one split; see `tasks.load`."""
    return _DATA_SET.load(split, source)


def _to_task(row: Row, default_id: str) -> Task:
    task_id = row.id("unique_id", "id", default=default_id)
    return Task(task_id, row.text("problem"), row.answer("answer"), MappingProxyType(_metadata(row, task_id)))


def _metadata(row: Row, task_id: str) -> dict[str, Any]:
    """Subject and level (1 to 5), each only where the row tells it."""
    level = row.values.get("level", row.values.get("difficulty"))
    # an id is "test/<subject>/<number>.json"
    subject = row.values.get("subject") or (task_id.split("/")[1] if task_id.count("/") == 2 else None)
    metadata = {
        "subject": subject,
        "level": int(level) if isinstance(level, float) and level.is_integer() else level,
    }
    return {name: value for name, value in metadata.items() if value is not None}


_DATA_SET = DataSet("math500", ("test",), "HuggingFaceH4/MATH-500", None, _to_task)
