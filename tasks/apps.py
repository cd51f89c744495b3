r"""APPS: ten thousand problems from coding sites, for a program or a function (Hendrycks et al., arXiv:2105.09938).

A row of the public set, cut:

    {"problem_id": 0, "question": "Polycarp has $n$ different binary words. ...", "difficulty": "interview",
     "solutions": "[\"for _ in range(int(input())):\\n    n = int(input()) ...\"]", "starter_code": "",
     "input_output": "{\"inputs\": [\"4\\n4\\n0001\\n1000\\n ...\"], \"outputs\": [\"1\\n3 \\n-1\\n0 ...\"]}"}

or, where a function or a method is asked for, with its name and with arguments and results as values:

    {"input_output": "{\"fn_name\": \"makesquare\", \"inputs\": [[[1, 1, 2, 2, 2]]], \"outputs\": [true]}",
     "starter_code": "\nclass Solution:\n    def makesquare(self, nums: List[int]) -> bool:\n        ", ...}

The prompt is the question and the starter code; a right answer is the program, the class or the function in a fenced
block. Public are the tests that stand in the question. Where results are lists of one value, the value is right, too,
as in the set's own harness.
Splits: train and test (5,000 rows each); rows without tests, or whose tests all stand in the question, hold no task.
Public home: `codeparrot/apps`, whose files (`train.jsonl`, `test.jsonl`) are read from a folder or one by one, since
the hub's loading script is no longer run.
"""

import json
import os
from types import MappingProxyType
from typing import Any

from verigym.tasks import _code
from verigym.tasks._rows import DataSet, Row
from verigym.tasks.livecodebench import PRELUDE, STARTER
from verigym.tasks.task import Task, TaskSet


def load(split: str = "train", source: str | os.PathLike[str] | None = None) -> TaskSet:
    """The tasks of one split; see `tasks.load`."""
    return _DATA_SET.load(split, source)


def _to_task(row: Row, default_id: str) -> Task:
    tests = _json(row, "input_output") or {}
    inputs, outputs = (tests.get(name) if isinstance(tests, dict) else None for name in ("inputs", "outputs"))
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs or len(inputs) != len(outputs):
        raise row.unusable("a problem without tests")
    starter = str(row.values.get("starter_code") or "").strip()
    question = row.text("question").strip()
    target = {**_tests(row, tests, inputs, outputs), "prelude": PRELUDE}
    if "fn_name" not in target and _code.all_shown(target["inputs"], target["outputs"], question):
        raise row.unusable(_code.ALL_SHOWN)
    solutions = _json(row, "solutions")
    if isinstance(solutions, list) and solutions and isinstance(solutions[0], str) and solutions[0].strip():
        target["solution"] = solutions[0]
    prompt = f"{question}\n\n{STARTER}\n\n{starter}" if starter else question
    return Task(row.id("problem_id", "id", default=default_id), prompt, target, _metadata(row, target, question))


def _metadata(row: Row, target: dict[str, Any], question: str) -> MappingProxyType[str, Any]:
    metadata = {"difficulty": row.values.get("difficulty")}
    if "fn_name" not in target:
        metadata["public"] = _code.public_of(target["inputs"], target["outputs"], question)
    return MappingProxyType({name: value for name, value in metadata.items() if value})


def _tests(row: Row, tests: dict[str, Any], inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
    """The tests as a target has them: texts for programs, JSON for functions."""
    name = tests.get("fn_name")
    if not name:
        return {"inputs": [_text(given) for given in inputs], "outputs": [_text(output) for output in outputs]}
    if not isinstance(name, str) or not name.isidentifier():
        raise row.error(f"the name of a function must be one, not {str(name)[:40]!r}")
    if not all(isinstance(given, list) for given in inputs):
        raise row.error("the inputs of a function must be lists of arguments")
    arguments = ["\n".join(json.dumps(argument) for argument in given) for given in inputs]
    return {"fn_name": name, "inputs": arguments, "outputs": list(map(json.dumps, outputs)), "wrapped": "yes"}


def _text(lines: Any) -> str:
    """A program's input or output, which some rows have as a list of lines."""
    return "\n".join(map(str, lines)) if isinstance(lines, list) else str(lines)


def _json(row: Row, field: str) -> Any:
    """What a field holds, as JSON or as itself; None for an empty one. Raises TaskDataError."""
    value = row.values.get(field)
    if not isinstance(value, str) or not value.strip():
        return value or None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        if "integer string conversion" in str(error):
            raise row.unusable("a number of more digits than Python reads") from error
        raise row.error(f"the field '{field}' is not JSON ({str(error)[:100]})") from error


_DATA_SET = DataSet("apps", ("train", "test"), "codeparrot/apps", None, _to_task)
