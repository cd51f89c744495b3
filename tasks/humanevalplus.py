r"""HumanEval+: HumanEval with some hundred tests for each function (Liu et al., arXiv:2305.01210).

A row (the first), cut:

    {"task_id": "HumanEval/0", "entry_point": "has_close_elements", "prompt": "from typing import List\n ...",
     "canonical_solution": "\n\n    sorted_numbers = sorted(numbers)\n ...", "atol": 0,
     "base_input": [[[1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.3], ...], "plus_input": [[[1.0, 2.5, 3.0, 4.5], 0.4], ...]}

The prompt is the row's, as it stands, and so are answers those of HumanEval. What is expected is what the canonical
solution returns on the inputs, `base_input` and `plus_input`. Rows of the public hub have no inputs but a `test` with
inputs and results, which is taken instead.
Its only split is test. Public home: `evalplus/humanevalplus`.
"""

import json
import os
from typing import Any

from verigym.tasks import _code
from verigym.tasks._rows import DataSet, Row
from verigym.tasks.humaneval import around, asserts, metadata
from verigym.tasks.task import Task, TaskSet


def load(split: str = "test", source: str | os.PathLike[str] | None = None) -> TaskSet:
    """The tasks; see `tasks.load`."""
    return _DATA_SET.load(split, source)


def inputs_of(row: Row) -> list[Any]:
    """The arguments of all calls, base and plus. Raises TaskDataError."""
    calls = [*(row.values.get("base_input") or []), *(row.values.get("plus_input") or [])]
    if not calls or not all(isinstance(args, list) for args in calls):
        raise row.error("the fields 'base_input' and 'plus_input' must be lists of lists of arguments")
    return calls


def tolerance(row: Row) -> float:
    """The row's absolute tolerance, 0 without one."""
    return float(row.numeric("atol")) if row.values.get("atol") is not None else 0.0


def _to_task(row: Row, default_id: str) -> Task:
    target = around(row)
    if row.values.get("base_input") is None:
        target["asserts"] = asserts(row)
    else:
        inputs = json.dumps(_code.tagged(inputs_of(row)))
        target |= {"reference": target["solution"], "inputs": inputs, "tolerance": tolerance(row)}
    return Task(row.id("task_id", default=default_id), row.text("prompt"), target, metadata(row))


_DATA_SET = DataSet("humanevalplus", ("test",), "evalplus/humanevalplus", None, _to_task)
