r"""MATH: twelve thousand competition problems with LaTeX answers (Hendrycks et al., arXiv:2103.03874).

A row (test, the first):

    {"problem": "How many vertical asymptotes does the graph of $y=\\frac{2}{x^2+x-6}$ have?", "level": "Level 3",
     "type": "Algebra", "solution": "The denominator of the rational function factors into $x^2+x-6=(x-2)(x+3)$.
     Since the numerator is always nonzero, ... the graph has $\\boxed{2}$ vertical asymptotes."}

The prompt is the problem as it stands; the target is "2", the last box of the solution or, where the row has it,
its `answer`; a correct answer is `\boxed{2}`. A row whose answer is empty is left out and listed.
Splits: train (7,500 rows) and test (5,000). Public home: `DigitalLearningGmbH/MATH-lighteval`.
"""

import os
import re
from types import MappingProxyType

from verigym.tasks._boxed import boxed_contents
from verigym.tasks._rows import DataSet, Row
from verigym.tasks.task import Task, TaskSet


def load(split: str = "train", source: str | os.PathLike[str] | None = None) -> TaskSet:
    """The tasks of one split; see `tasks.load`."""
    return _DATA_SET.load(split, source)


def _to_task(row: Row, default_id: str) -> Task:
    level = re.search(r"[1-5]", str(row.values.get("level", row.values.get("difficulty"))))
    subject = row.values.get("type", row.values.get("subject"))
    metadata = {"subject": subject, "level": int(level[0]) if level else None}
    known = {name: value for name, value in metadata.items() if value is not None}
    task_id = row.id("id", "unique_id", default=default_id)
    return Task(task_id, row.text("problem"), _answer(row), MappingProxyType(known))


def _answer(row: Row) -> str:
    if "answer" in row.values:
        if row.values["answer"] in ("", None):
            raise row.unusable("its answer is empty")
        return row.answer("answer")
    boxes = boxed_contents(row.text("solution"))
    if not boxes:
        raise row.error(r"the field 'solution' has no \boxed{} answer")
    if not boxes[-1].strip():
        raise row.unusable(r"the last \boxed{} of its solution is empty")
    return boxes[-1].strip()


_DATA_SET = DataSet("math", ("train", "test"), "DigitalLearningGmbH/MATH-lighteval", "default", _to_task)
