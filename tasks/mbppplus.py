r"""MBPP+: the clear tasks of MBPP, corrected, with some hundred tests each (Liu et al., arXiv:2305.01210).

A row (the first), cut:

    {"task_id": "Mbpp/2", "entry_point": "similar_elements", "atol": 0, "prompt": "\"\"\"\nWrite a function to find the
     shared elements from the given two lists.\nassert set(similar_elements((3, 4, 5, 6),(5, 7, 4, 10))) == set((4, 5))
     \n\"\"\"\n", "canonical_solution": "\ndef similar_elements(test_tup1, test_tup2):\n  return tuple(...)",
     "base_input": [[[3, 4, 5, 6], [5, 7, 4, 10]], ...], "plus_input": [[[], []], [[1, 2, 3], []], ...]}

The prompt is the row's, as it stands; a right answer is the function in a fenced block. What is expected is what the
canonical solution returns on `base_input` and `plus_input`, which hold lists where some tasks take tuples, sets or
complex numbers: `_ARGUMENTS` tells which. Rows of the public hub have `code` and a `test` with inputs and results.
Its only split is test. Public home: `evalplus/mbppplus`.
"""

import json
import os
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from verigym.tasks import _code
from verigym.tasks._rows import DataSet, Row
from verigym.tasks.humanevalplus import inputs_of, tolerance
from verigym.tasks.mbpp import SHOWN
from verigym.tasks.task import Task, TaskSet


def load(split: str = "test", source: str | os.PathLike[str] | None = None) -> TaskSet:
    """The tasks; see `tasks.load`."""
    return _DATA_SET.load(split, source)


def arguments(number: int, args: list[Any]) -> Any:
    """The arguments of a call of task `number`, with the types that JSON could not hold."""
    return next((change(args) for change, numbers in _ARGUMENTS.items() if number in numbers), args)


def _tuples(args: list[Any]) -> list[Any]:
    return [tuple(arg) for arg in args]


def _lists_of_tuples(args: list[Any]) -> list[Any]:
    return [_tuples(arg) for arg in args]


def _tuples_of_tuples(args: list[Any]) -> list[Any]:
    return _tuples(_lists_of_tuples(args))


def _first_is_list_of_tuples(args: list[Any]) -> list[Any]:
    return [_tuples(args[0]), args[1]]


def _first_is_tuple(args: list[Any]) -> list[Any]:
    return [tuple(args[0]), *args[1:]]


def _second_is_tuple(args: list[Any]) -> list[Any]:
    return [args[0], tuple(args[1])]


def _list_of_sets(args: list[Any]) -> list[Any]:
    return [[set(item) if isinstance(item, list) and item else {} for item in args[0]]]


def _tuple_with_tuples(args: list[Any]) -> list[Any]:
    return [tuple(tuple(item) if isinstance(item, list) else item for item in args[0])]


def _dictionary_of_tuples(args: list[Any]) -> list[Any]:
    return [{key: tuple(value) for key, value in args[0].items()}, *args[1:]]


def _float_and_complex(args: list[Any]) -> list[Any]:
    return [float(args[0]), complex(args[1])]


def _complex(args: list[Any]) -> list[Any]:
    return [complex(args[0])]


def _tuples_throughout(value: Any) -> Any:
    return tuple(map(_tuples_throughout, value)) if isinstance(value, list) else value


_TUPLES = {2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809}
_LISTS_OF_TUPLES = {63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780}
_ARGUMENTS: dict[Callable[[list[Any]], Any], set[int]] = {
    _tuples: _TUPLES,
    _lists_of_tuples: _LISTS_OF_TUPLES,
    _tuples_of_tuples: {259, 401, 445},
    _first_is_list_of_tuples: {75, 413, 444, 753},
    _first_is_tuple: {250, 307, 405, 446, 617, 720, 763, 808},
    _second_is_tuple: {106, 750},
    _list_of_sets: {115},
    _tuple_with_tuples: {278},
    _dictionary_of_tuples: {722},
    _float_and_complex: {124},
    _complex: {252},
    _tuples_throughout: {580, 615, 791},
}


def _to_task(row: Row, default_id: str) -> Task:
    if row.values.get("base_input") is None:
        return _of_hub(row, default_id)
    prompt, function, task_id = row.text("prompt"), row.text("entry_point"), row.id("task_id", default=default_id)
    solution = row.text("canonical_solution")
    calls = [arguments(_number(row, task_id), args) for args in inputs_of(row)]
    target = {"entry_point": function, "reference": solution, "solution": solution}
    target |= {"inputs": json.dumps(_code.tagged(calls)), "tolerance": tolerance(row)}  # type: ignore[dict-item]
    metadata = {"entry_point": function, "public": _code.asserts_in(prompt)}
    return Task(task_id, prompt, target, MappingProxyType({name: value for name, value in metadata.items() if value}))


def _number(row: Row, task_id: str) -> int:
    number = task_id.rpartition("/")[2]
    if not number.isdecimal():
        raise row.error(f"the field 'task_id' must end in a number, as 'Mbpp/2' does, not {task_id[:40]!r}")
    return int(number)


def _of_hub(row: Row, default_id: str) -> Task:
    solution, tests = row.text("code").replace("\r\n", "\n"), row.text("test")
    shown = [test for test in row.values.get("test_list") or [] if isinstance(test, str)][:1]
    function = _code.entry_point(solution, "\n".join([*shown, tests]))
    if not function:
        raise row.error("the tests call no function that the field 'code' defines")
    prompt = "\n\n".join([row.text("prompt").strip(), *([SHOWN, *shown] if shown else [])])
    target = {"entry_point": function, "asserts": tests, "solution": solution}
    metadata = {"entry_point": function, **({"public": shown[0]} if shown else {})}
    return Task(row.id("task_id", default=default_id), prompt, target, MappingProxyType(metadata))


_DATA_SET = DataSet("mbppplus", ("test",), "evalplus/mbppplus", None, _to_task)
