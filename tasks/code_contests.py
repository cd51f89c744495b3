r"""CodeContests: competition problems, answered by a program (Li et al., arXiv:2203.07814).

A row of the public set, cut:

    {"name": "1575_A. Another Sorting Problem", "description": "Andi and Budi were given an assignment to tidy up ...",
     "public_tests": {"input": ["5 2\nAA\nAB\nBB\nBA\nAZ\n"], "output": ["5 2 1 3 4 \n"]},
     "private_tests": {"input": [], "output": []}, "generated_tests": {"input": ["5 2\nAA ...", ...], "output": [...]},
     "solutions": {"language": [3, 2], "solution": ["n, m = map(int, input().split()) ...", "#include ..."]}}

or, in the shape of rllm, without solutions:

    {"id": "code_contests-test-0", "problem": "\nAndi and Budi were given ...",
     "tests": {"inputs": ["5 2\nAA\nAB\nBB\nBA\nAZ\n"], "outputs": ["5 2 1 3 4 \n"]}}

The prompt is the description; a right answer is a program in a fenced block that reads standard input and writes
standard output. All tests are in the target; public are the public ones or, where a row does not tell, those that
stand in the description; a row of which all tests stand there holds no task. The solution is the first in Python 3.
Problems with several right outputs are not marked: a comparison is too strict for them.
Splits: train (13,328 rows), validation (117) and test (165). Public home: `deepmind/code_contests`.
"""

import os
from types import MappingProxyType
from typing import Any

from verigym.tasks import _code
from verigym.tasks._rows import DataSet, Row
from verigym.tasks.task import Task, TaskSet

_PYTHON3 = 3
_TESTS = ("public_tests", "private_tests", "generated_tests")
_SPLITS = ("train", "validation", "test")


def load(split: str = "train", source: str | os.PathLike[str] | None = None) -> TaskSet:
    """The tasks of one split; see `tasks.load`."""
    return _DATA_SET.load(split, source)


def _to_task(row: Row, default_id: str) -> Task:
    prompt = row.text("description", "problem").strip()
    groups = [_tests(row, name) for name in _TESTS] if "description" in row.values else [_tests(row, "tests")]
    inputs, outputs = ([text for group in groups for text in group[side]] for side in (0, 1))
    if not inputs:
        raise row.unusable("a problem without tests")
    if _code.all_shown(inputs, outputs, prompt):
        raise row.unusable(_code.ALL_SHOWN)
    given, expected = groups[0]
    public = {"inputs": given, "outputs": expected} if len(groups) > 1 and given else {}
    public = public or _code.public_of(inputs, outputs, prompt)
    target = {"inputs": inputs, "outputs": outputs, **_solution(row)}
    metadata = MappingProxyType({"public": public} if public else {})
    return Task(row.id("name", "id", default=default_id), prompt, target, metadata)


def _tests(row: Row, field: str) -> tuple[list[str], list[str]]:
    """The inputs and outputs in a field, which may be empty. Raises TaskDataError."""
    tests = row.values.get(field) or {}
    if not isinstance(tests, dict):
        raise row.error(f"the field '{field}' must hold the texts of inputs and of outputs, as two lists")
    inputs, outputs = (tests.get(name, tests.get(f"{name}s")) or [] for name in ("input", "output"))
    texts = isinstance(inputs, list) and isinstance(outputs, list) and all(isinstance(t, str) for t in inputs + outputs)
    if not texts or len(inputs) != len(outputs):
        raise row.error(f"the field '{field}' must have equally many texts as inputs and outputs")
    return inputs, outputs


def _solution(row: Row) -> dict[str, Any]:
    given = row.values.get("solutions") or {}
    if not isinstance(given, dict):
        raise row.error("the field 'solutions' must hold languages and solutions, as two lists")
    pairs = zip(given.get("language") or [], given.get("solution") or [], strict=False)
    return next(({"solution": solution} for language, solution in pairs if language == _PYTHON3), {})


def _split(row: Row) -> str:
    """The split in an id such as code_contests-test-0."""
    words = str(row.values.get("id", "")).split("-")
    return next((split for split in _SPLITS if split in words), "")


_DATA_SET = DataSet(
    "code_contests",
    _SPLITS,
    "deepmind/code_contests",
    None,
    _to_task,
    {"validation": "valid"},
    _split,
)
