r"""SVAMP: one-step word problems, varied so that guessing from surface patterns fails (Patel et al., arXiv:2103.07191).

A row (the first):

    {"id": "chal-3", "question": "Paco had 26 salty cookies and 17 sweet cookies. He ate 14 sweet cookies and 9 salty
     cookies. How many salty cookies did Paco have left?", "equation": "( 26.0 - 9.0 )", "answer": 17.0,
     "type": "Subtraction"}

The prompt is the question (in the original file `Body` and `Question`); the target is 17; a correct answer is
`\boxed{17}`. A challenge set, taken whole: its only split is test (1,000 rows). Public home: `ChilleD/SVAMP`.
"""

import os
from types import MappingProxyType

from verigym.tasks._rows import DataSet, Row
from verigym.tasks.task import Task, TaskSet


def load(split: str = "test", source: str | os.PathLike[str] | None = None) -> TaskSet:
    """The tasks; see `tasks.load`."""
    return _DATA_SET.load(split, source)


def _to_task(row: Row, default_id: str) -> Task:
    if "Body" in row.values:
        body = row.text("Body").strip()
        prompt = f"{body}{'' if body[-1] in '.?!,' else '.'} {row.text('Question').strip()}"
    else:
        prompt = row.text("question")
    operation = row.values.get("type", row.values.get("Type"))
    metadata = MappingProxyType({} if operation is None else {"type": operation})
    return Task(row.id("id", "ID", default=default_id), prompt, row.numeric("answer", "Answer"), metadata)


_DATA_SET = DataSet("svamp", ("test",), "ChilleD/SVAMP", None, _to_task, {"test": "train+test"})
