r"""CollegeMath: exercises of university textbooks with LaTeX answers (Tang et al., MathScale, arXiv:2403.02884).

A row (the second of the first half):

    {"data_source": "college_math.Beginning_and_Intermediate_Algebra", "question_number": "exercise.5.6.21",
     "question": "Find the square: $(p+7)^{2}$", "answer": "$p^{2}+14 p+49$",
     "license": "Creative Commons Attribution 3.0 Unported License (CC BY 3.0)", "data_topic": "college_math.algebra"}

The prompt is the question as it stands; the target is "$p^{2}+14 p+49$"; a correct answer is
`\boxed{p^2 + 14p + 49}`. Its only split is test (2,818 rows). Public home: `di-zhang-fdu/College_Math_Test`.
"""

import os
from types import MappingProxyType

from verigym.tasks._rows import DataSet, Row
from verigym.tasks.task import Task, TaskSet


def load(split: str = "test", source: str | os.PathLike[str] | None = None) -> TaskSet:
    """The tasks; see `tasks.load`."""
    return _DATA_SET.load(split, source)


def _to_task(row: Row, default_id: str) -> Task:
    named = {"topic": "data_topic", "book": "data_source", "exercise": "question_number", "license": "license"}
    metadata = {name: row.values[field] for name, field in named.items() if row.values.get(field)}
    task_id = row.id("id", default=default_id)
    return Task(task_id, row.text("question"), row.answer("answer"), MappingProxyType(metadata))


_DATA_SET = DataSet("college_math", ("test",), "di-zhang-fdu/College_Math_Test", None, _to_task)
