r"""LiveCodeBench: contest problems by date, answered by a program or a function (Jain et al., arXiv:2403.07974).

A row of the public set, cut:

    {"question_title": "A. Short Sort", "question_content": "There are three cards with letters ...",
     "question_id": "1873_A", "contest_date": "2023-08-21T00:00:00", "difficulty": "easy", "starter_code": "",
     "public_test_cases": "[{\"input\": \"6\\nabc\\nacb\\n ...\", \"output\": \"YES\\nYES\\n ...\", \"testtype\":
     \"stdin\"}]", "private_test_cases": "eJxrYJ...", "metadata": "{}"}

or, where a method of a class is asked for, with tests such as {"input": "[1, 2]\n3", "output": "true", "testtype":
"functional"} (JSON, a line for each argument), `starter_code` and {"func_name": "twoSum"} in its `metadata`.

The prompt is the question and the starter code; a right answer is the program, or the class, in a fenced block. The
private tests may be a list of JSON, or that list packed (base64 of zlib of a pickled text). The set names no
solutions; rows of one's own may, as `solution`.
Its only split is test. Public home: `livecodebench/code_generation_lite`, whose files (`test.jsonl`, `test2.jsonl`)
are read from a folder or one by one, since the hub's loading script is no longer run.
"""

import base64
import io
import json
import os
import pickle
import zlib
from types import MappingProxyType
from typing import Any

from verigym.tasks._rows import DataSet, Row
from verigym.tasks.task import Task, TaskSet

# what solutions to contest problems may use without importing it
PRELUDE = """\
import bisect, collections, functools, heapq, itertools, math, random, re, string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
from builtins import *  # `pow` and others, which the above hide
"""
STARTER = "Start from this code:"
_MAX_BYTES = 1 << 30  # of a row's private tests, unpacked


def load(split: str = "test", source: str | os.PathLike[str] | None = None) -> TaskSet:
    """The tasks; see `tasks.load`."""
    return _DATA_SET.load(split, source)


def _to_task(row: Row, default_id: str) -> Task:
    public = _tests(row, "public_test_cases")
    tests = [*public, *_tests(row, "private_test_cases")]
    if not tests:
        raise row.unusable("a problem without tests")
    starter = str(row.values.get("starter_code") or "").strip()
    question = row.text("question_content").strip()
    prompt = f"{question}\n\n{STARTER}\n\n{starter}" if starter else question
    target = {**_pairs(tests), **_function(row, tests), "prelude": PRELUDE}
    if row.values.get("solution"):
        target["solution"] = row.text("solution")
    metadata = {name: row.values.get(name) for name in ("difficulty", "contest_date", "platform")}
    metadata["public"] = {**_pairs(public), **_function(row, public)} if public else None
    return Task(row.id("question_id", "id", default=default_id), prompt, target, MappingProxyType(_given(metadata)))


def _given(metadata: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if value}


def _tests(row: Row, field: str) -> list[dict[str, str]]:
    """The tests in a field: a list, JSON of one, or one that is packed. Raises TaskDataError."""
    tests = row.values.get(field) or []
    if isinstance(tests, str):
        try:
            tests = json.loads(tests if tests.lstrip().startswith("[") else _unpacked(tests))
        except (ValueError, zlib.error, pickle.UnpicklingError, EOFError, RecursionError) as error:
            raise row.error(f"the field '{field}' holds no tests ({type(error).__name__})") from error
    if not isinstance(tests, list) or not all(_is_test(test) for test in tests):
        raise row.error(f"the field '{field}' must be a list of tests with input and output")
    return tests


def _is_test(test: Any) -> bool:
    return isinstance(test, dict) and all(isinstance(test.get(name), str) for name in ("input", "output"))


def _unpacked(packed: str) -> str:
    content = zlib.decompressobj().decompress(base64.b64decode(packed), _MAX_BYTES)
    text = _TextUnpickler(io.BytesIO(content)).load()
    if not isinstance(text, str):
        raise pickle.UnpicklingError("not a text")
    return text


class _TextUnpickler(pickle.Unpickler):
    """Reads a pickled text, and no object: those may run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} in what should be a text")


def _pairs(tests: list[dict[str, str]]) -> dict[str, Any]:
    return {"inputs": [test["input"] for test in tests], "outputs": [test["output"] for test in tests]}


def _function(row: Row, tests: list[dict[str, str]]) -> dict[str, str]:
    """The function to call, if the tests are of that kind. Raises TaskDataError for one without a name."""
    if not any(test.get("testtype") == "functional" for test in tests):
        return {}
    metadata = row.values.get("metadata")
    try:
        metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
    except ValueError:
        metadata = None
    name = metadata.get("func_name") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or not name.isidentifier():
        raise row.error("the field 'metadata' must have the name of the function, func_name")
    return {"fn_name": name}


_DATA_SET = DataSet("livecodebench", ("test",), "livecodebench/code_generation_lite", None, _to_task)
