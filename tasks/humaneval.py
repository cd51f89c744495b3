r"""HumanEval: 164 functions to complete from their signature and docstring (Chen et al., arXiv:2107.03374).

A row (the first):

    {"task_id": "HumanEval/0", "entry_point": "has_close_elements",
     "prompt": "from typing import List\n\n\ndef has_close_elements(numbers: List[float], threshold: float) -> bool:\n
                \"\"\" Check if in given list of numbers, are any two numbers closer to each other than\n    given
                threshold.\n    >>> has_close_elements([1.0, 2.0, 3.0], 0.5)\n    False ...",
     "canonical_solution": "    for idx, elem in enumerate(numbers):\n ...",
     "test": "def check(candidate):\n    assert candidate([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.3) == True\n ..."}

The prompt is the row's, as it stands; a right answer is the whole function, or its body, in a fenced block. The target
has the tests and the canonical solution; `metadata["public"]` has the prompt's doctests, as asserts.
Its only split is test. Public home: `openai/openai_humaneval`.
"""

import os
from types import MappingProxyType
from typing import Any

from verigym.tasks import _code
from verigym.tasks._rows import DataSet, Row
from verigym.tasks.task import Task, TaskSet


def load(split: str = "test", source: str | os.PathLike[str] | None = None) -> TaskSet:
    """The tasks; see `tasks.load`."""
    return _DATA_SET.load(split, source)


def around(row: Row) -> dict[str, Any]:
    """What a target says of the module around a submission, and the solution, by the fields that HumanEval names."""
    prompt, function = row.text("prompt"), row.text("entry_point")
    return {
        "entry_point": function,
        "stub": prompt,
        "prelude": _code.before(prompt, function),
        "solution": prompt + row.text("canonical_solution"),
    }


def asserts(row: Row) -> str:
    """The row's tests: a function `check`, and a call of it with the function asked for."""
    return f"{row.text('test').strip()}\n\ncheck({row.text('entry_point')})\n"


def metadata(row: Row) -> MappingProxyType[str, Any]:
    """The function's name, and the public tests where the prompt has some."""
    function = row.text("entry_point")
    public = _code.doctests(row.text("prompt"), function)
    return MappingProxyType({"entry_point": function, **({"public": public} if public else {})})


def _to_task(row: Row, default_id: str) -> Task:
    if "completion" in row.values and "prompt" not in row.values:
        raise row.unusable("a sample of an answer, not a problem")
    target = {**around(row), "asserts": asserts(row)}
    return Task(row.id("task_id", default=default_id), row.text("prompt"), target, metadata(row))


_DATA_SET = DataSet("humaneval", ("test",), "openai/openai_humaneval", None, _to_task)
