r"""GSM-Hard: questions of GSM8K with numbers too large to work out at sight (Gao et al., arXiv:2211.10435).

A row (the first):

    {"question": "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins for
     her friends every day with 4933828. ... How much in dollars does she make every day at the farmers' market?",
     "target": -9867630.0}

The prompt is the question as it stands (`input` on the hub); the target is -9867630; a correct answer is
`\boxed{-9867630}`. A target that is not whole stays a float, and is compared as one. Some answers make no sense
(half a person): they come from changed numbers. Its only split is test (1,319 rows; the hub calls it train).
Public home: `reasoning-machines/gsm-hard`.
"""

import os

from verigym.tasks._rows import DataSet, Row
from verigym.tasks.task import Task, TaskSet


def load(split: str = "test", source: str | os.PathLike[str] | None = None) -> TaskSet:
    """The tasks; see `tasks.load`."""
    return _DATA_SET.load(split, source)


def _to_task(row: Row, default_id: str) -> Task:
    return Task(row.id("id", default=default_id), row.text("question", "input"), row.numeric("target"))


_DATA_SET = DataSet("gsm_hard", ("test",), "reasoning-machines/gsm-hard", None, _to_task, {"test": "train"})
