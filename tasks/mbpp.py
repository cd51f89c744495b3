r"""MBPP: some thousand small functions described in a sentence (Austin et al., arXiv:2108.07732).

A row (test, the first), cut:

    {"task_id": 11, "text": "Write a python function to remove first and last occurrence of a given character from the
     string.", "code": "def remove_Occ(s,ch): \r\n    for i in range(len(s)): ...", "test_setup_code": "",
     "test_list": ["assert remove_Occ(\"hello\",\"l\") == \"heo\"", ...],
     "challenge_test_list": ["assert remove_Occ(\"\",\"l\") == \"\"", ...]}

The prompt is the text and the first test, which tells the function's name:

    Write a python function to remove first and last occurrence of a given character from the string.

    The code must pass tests such as this:

    assert remove_Occ("hello","l") == "heo"

A right answer is the function in a fenced block. Shown tests are public (`metadata["public"]`); all others, the
challenging ones too, are hidden, so that an answer made up of what is shown fails. `shown=3` shows three, as the paper
does. `test_setup_code` runs after the answer, whose classes it uses.
Splits: train (374 rows, the ids 601 to 974), validation (90, from 511), test (500, from 11) and prompt (10, from 1);
a folder's files may hold several. Public home: `google-research-datasets/mbpp`, the configurations `full` and
`sanitized`. The sanitized set (427 rows) has `prompt` for `text`, and imports for its tests.
"""

import os
from functools import partial
from types import MappingProxyType
from typing import Any

from verigym.tasks import _code
from verigym.tasks._rows import DataSet, Row
from verigym.tasks.errors import ConfigError
from verigym.tasks.task import Task, TaskSet

SPLITS = ("train", "validation", "test", "prompt")
SHOWN = "The code must pass tests such as this:"
_FIRST_IDS = {"train": 601, "validation": 511, "test": 11, "prompt": 1}
_HUB = "google-research-datasets/mbpp"


def load(split: str = "train", source: str | os.PathLike[str] | None = None, *, shown: int = 1) -> TaskSet:
    """The tasks of one split, with the first `shown` tests in their prompts; see `tasks.load`."""
    return _data_set("mbpp", "full", shown).load(split, source)


def load_sanitized(split: str = "train", source: str | os.PathLike[str] | None = None, *, shown: int = 1) -> TaskSet:
    """The tasks of one split of the sanitized set; see `load`."""
    return _data_set("mbpp_sanitized", "sanitized", shown).load(split, source)


def _data_set(name: str, config: str, shown: int) -> DataSet:
    if isinstance(shown, bool) or not isinstance(shown, int) or shown < 1:
        raise ConfigError(f"shown must be a whole number of at least 1, not {shown!r}")
    return DataSet(name, SPLITS, _HUB, config, partial(_to_task, shown=shown), row_split=_split)


def _split(row: Row) -> str:
    number = int(row.numeric("task_id"))
    return next((split for split, first in _FIRST_IDS.items() if number >= first), "")


def _to_task(row: Row, default_id: str, *, shown: int) -> Task:
    tests = [*_texts(row, "test_list"), *_texts(row, "challenge_test_list")]
    if not tests:
        raise row.error("the field 'test_list' must be a list of tests")
    public = "\n".join(tests[:shown])
    target = _target(row, [*_texts(row, "test_imports"), *tests])
    prompt = f"{row.text('text', 'prompt').strip()}\n\n{SHOWN}\n\n{public}"
    metadata = {"entry_point": target["entry_point"], "public": public}
    return Task(row.id("task_id", default=default_id), prompt, target, MappingProxyType(metadata))


def _target(row: Row, tests: list[str]) -> dict[str, Any]:
    solution = row.text("code").replace("\r\n", "\n")
    function = _code.entry_point(solution, "\n".join(tests))
    if not function:
        raise row.error("the tests call no function that the field 'code' defines")
    setup = str(row.values.get("test_setup_code") or "").replace("\r\n", "\n").strip()
    target = {"asserts": "\n".join(tests), "entry_point": function, "solution": solution}
    return {**target, "setup": setup} if setup else target


def _texts(row: Row, field: str) -> list[str]:
    texts = row.values.get(field) or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise row.error(f"the field '{field}' must be a list of texts")
    return texts
