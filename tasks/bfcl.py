r"""BFCL, the Berkeley function-calling leaderboard: what is asked of functions whose documents are given, in one turn.

A row of the questions (`simple_python`, the first), cut, and that of its answer:

    {"id": "simple_python_0", "question": [[{"role": "user", "content": "Find the area of a triangle with a base of 10
     units and height of 5 units."}]], "function": [{"name": "calculate_triangle_area", "description": "Calculate ...",
     "parameters": {"type": "dict", "properties": {"base": {"type": "integer", ...}, ...}, "required": [...]}}]}
    {"id": "simple_python_0", "ground_truth": [{"calculate_triangle_area": {"base": [10], "height": [5],
     "unit": ["units", ""]}}]}

The prompt is the user's message; the documents are `metadata["tools"]`, the target is the ground truth. A right answer:

    <tool_call>{"name": "calculate_triangle_area", "arguments": {"base": 10, "height": 5}}</tool_call>

Where no function fits (irrelevance) none is called and `\boxed{no function}` is said. Those rows, and live_relevance,
whose answer is any call, are judged paired: each stands behind a row that wants the opposite, so that who always or
never calls is right in one half, which is their chance.
A row whose ground truth its own documents refuse is left out, and the task set says so (`left_out`).
There is one split, test. A source is the hub's layout (`BFCL_v3_simple.json`, `possible_answer/` beside it), the
repository's, or `simple_python.jsonl` with `simple_python.answer.jsonl`; a file of questions, or a folder of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from verigym.tasks._function_docs import (
    ANY_CALL,
    JSON_TYPE,
    Doc,
    asked_calls,
    fault,
    find_doc,
    properties,
    read_docs,
    safe_name,
    tool_schema,
)
from verigym.tasks._rows import Row, UnusableRow, is_path, read_jsonl
from verigym.tasks.errors import TaskDataError, UnknownNameError
from verigym.tasks.task import Task, TaskSet

HUB_ID = "gorilla-llm/Berkeley-Function-Calling-Leaderboard"
SPLITS = ("test",)
NO_FUNCTION = "no function"  # what a right answer says where no function fits
_FILES = {  # the names of a category's files, without what stands before and behind
    "simple": ("simple_python", "simple"),
    "java": ("simple_java", "java"),
    "javascript": ("simple_javascript", "javascript"),
}
_OPPOSITES = {  # the categories with which one is paired, as far as they are there
    "irrelevance": ("simple", "multiple"),
    "live_irrelevance": ("live_multiple", "live_simple"),
    "live_relevance": ("live_irrelevance", "irrelevance"),
}
_CALLS = ("simple", "multiple", "parallel", "parallel_multiple")
CATEGORIES = (
    *_CALLS,
    "java",
    "javascript",
    *(f"live_{name}" for name in _CALLS),
    *(f"exec_{name}" for name in _CALLS),
    *_OPPOSITES,
)
_ALIASES = {name: category for category, names in _FILES.items() for name in names}


def load(split: str = "test", source: str | os.PathLike[str] | None = None, *, category: str = "simple") -> TaskSet:
    """The tasks of one category; see `tasks.load`."""
    if split not in SPLITS:
        raise UnknownNameError.of("split of 'bfcl' named", str(split), SPLITS)
    category = _ALIASES.get(category, category)
    if category not in CATEGORIES:
        raise UnknownNameError.of("category of 'bfcl' named", str(category), CATEGORIES)
    place = Place.of(HUB_ID if source is None else os.fspath(source), category)
    left_out: list[str] = []
    tasks = list(place.tasks(category, left_out))
    if category in _OPPOSITES:
        tasks = _paired(tasks, place, _OPPOSITES[category], left_out)
    if not tasks:
        why = f" that can be used ({left_out[0]})" if left_out else ""
        raise TaskDataError(f"bfcl/{category}: {source or HUB_ID} holds no rows{why}; give another source")
    return TaskSet(tasks, name=f"bfcl/{category}", split=split, left_out=left_out)


def chance(task_set: TaskSet) -> float:
    """What one earns who never calls, or calls at random with values that the documents name."""
    refused = sum(1 for task in task_set if task.target == [])
    return max(refused, sum(map(_odds, task_set))) / len(task_set)


def _odds(task: Task) -> float:
    """The odds that a random call is right: one of the functions, of each argument one of the values in its schema."""
    docs: list[Doc] = task.metadata["tools"]
    if task.target == ANY_CALL:
        return 1.0
    asked = asked_calls(task.target, docs)
    doc = find_doc(docs, asked[0].name) if len(asked) == 1 else None
    if doc is None:
        return 0.0
    shares = [_share(asked[0].allowed.get(name, ()), schema) for name, schema in properties(doc).items()]
    return prod(shares) / len(docs)


def _share(allowed: Sequence[Any], schema: Mapping[str, Any]) -> float:
    """The share of the values that an argument's schema names that are allowed."""
    boolean = JSON_TYPE.get(str(schema.get("type"))) == "boolean"
    named: Sequence[Any] = schema.get("enum") or ([True, False] if boolean else [])
    return sum(1 for value in named if value in allowed) / max(1, len(named))


def _paired(tasks: Sequence[Task], place: Place, opposites: Sequence[str], left_out: list[str]) -> list[Task]:
    """Each task behind one of the opposite kind, as long as there are any."""
    others: list[Task] = []
    for category in opposites:
        if len(others) < len(tasks) and place.find(category) is not None:
            others += place.tasks(category, left_out)
    if not others:
        raise TaskDataError(
            f"{place.folder}: {tasks[0].metadata['category']} is judged paired with rows of the opposite kind, "
            f"and there are none; put the files of one of {', '.join(opposites)} beside its own"
        )
    pairs = zip(others, tasks, strict=False)
    return [task for pair in pairs for task in pair] + list(tasks[len(others) :])


class Place:
    """A folder with the files of BFCL, whichever of their layouts they have."""

    def __init__(self, folder: Path, file: Path | None = None) -> None:
        self.folder, self._file = folder, file

    @classmethod
    def of(cls, source: str, category: str) -> Place:
        """The place that a source names. Raises TaskDataError if it is missing."""
        if not is_path(source):
            return cls(_download(source, category))
        path = Path(os.path.expanduser(source))
        if not source or not path.exists():
            raise TaskDataError(f"bfcl/{category}: no file or folder '{source}'; check the path given as source")
        return cls(path) if path.is_dir() else cls(path.parent, path)

    def tasks(self, category: str, left_out: list[str]) -> Iterator[Task]:
        """The tasks of a category; what makes a row none is added to `left_out`. Raises TaskDataError."""
        file = self.questions(category)
        answers = answers_of(file)
        for row in read_jsonl(file):
            try:
                yield _to_task(row, category, answers)
            except UnusableRow as unusable:
                left_out.append(str(unusable))

    def questions(self, category: str) -> Path:
        """The file with a category's questions. Raises TaskDataError if there is none."""
        file, self._file = self._file or self.find(category), None  # a file that is named is the category asked for
        if file is None:
            raise TaskDataError(
                f"{self.folder}: no questions of the category '{category}' ({_names(category)[0]}.jsonl or "
                f"BFCL_v4_{_names(category)[0]}.json); give another source or category"
            )
        return file

    def find(self, category: str) -> Path | None:
        """The file with a category's questions, of the latest version."""
        names = "|".join(map(re.escape, _names(category)))
        pattern = re.compile(rf"(?:BFCL_v\d+_)?(?:{names})\.(?:json|jsonl|jsonl\.gz)")
        for place in (self.folder, self.folder / "data", self.folder / "question"):
            files = sorted(place.iterdir()) if place.is_dir() else []
            if found := [file for file in files if pattern.fullmatch(file.name)]:
                return found[-1]
        return None


def _names(category: str) -> tuple[str, ...]:
    return _FILES.get(category, (category,))


def _download(hub_id: str, category: str) -> Path:
    """The folder with the hub's files of a category. Raises TaskDataError if they cannot be had."""
    import huggingface_hub

    wanted = [name for each in (category, *_OPPOSITES.get(category, ())) for name in _names(each)]
    patterns = [f"{folder}BFCL_v*_{name}.json" for name in wanted for folder in ("", "possible_answer/")]
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, repo_type="dataset", allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise TaskDataError(
            f"cannot load '{hub_id}' from the hub ({' '.join(str(error).split())[:160]}); "
            "give source=PATH of a local file or folder"
        ) from error


def answers_of(file: Path) -> Mapping[str, Any]:
    """The ground truths of a file of questions by id; none if there is no file of them."""
    stem, dot, ending = file.name.partition(".")
    beside = file.with_name(f"{stem}.answer{dot}{ending}")
    folders = (file.parent / "possible_answer", file.parent.parent / "possible_answer")
    found = next((path for path in (beside, *(folder / file.name for folder in folders)) if path.is_file()), None)
    return {row.id("id", default=""): row.values.get("ground_truth") for row in read_jsonl(found)} if found else {}


def _to_task(row: Row, category: str, answers: Mapping[str, Any]) -> Task:
    task_id = row.text("id")
    *before, asked = _messages(row)
    if asked["role"] != "user" or not asked["content"].strip():
        raise row.unusable(f"{task_id} does not end with a question of the user")
    target = _target(row, category, row.values.get("ground_truth", answers.get(task_id)))
    metadata: dict[str, Any] = {"category": category, "tools": _docs(row, task_id, target), "safe_names": True}
    if category in _FILES:
        metadata["language"] = category.replace("simple", "python")
    return Task(
        task_id,
        asked["content"],
        target,
        MappingProxyType({**metadata, "message": NO_FUNCTION, **({"messages": before} if before else {})}),
    )


def _target(row: Row, category: str, truth: Any) -> Any:
    if category.endswith("irrelevance"):
        return []
    if category == "live_relevance":
        return ANY_CALL
    if not isinstance(truth, list) or not truth:
        raise row.error(f"no ground truth for '{row.text('id')}' in the file of answers")
    return truth


def _docs(row: Row, task_id: str, target: Any) -> list[Doc]:
    """The functions of a row that holds a task: they can be shown, and called as the ground truth asks."""
    try:
        docs = read_docs(row.values.get("function"))
        for doc in docs:
            tool_schema(doc)
        why = "" if target == ANY_CALL else fault(asked_calls(target, docs), docs)
    except TaskDataError as error:
        raise row.unusable(f"{task_id} is a bad row: {error}") from error
    names = {safe_name(doc["name"]) for doc in docs}
    if len(names) < len({doc["name"] for doc in docs}):
        why = "two of its functions have one name, but for signs that no tool's name may have"
    if why:
        raise row.unusable(f"{task_id} is a bad row: {why}")
    return docs


def _messages(row: Row) -> list[dict[str, str]]:
    """The one turn of a row: messages with role and content."""
    turns = row.values.get("question")
    messages = turns[0] if isinstance(turns, list) and len(turns) == 1 and isinstance(turns[0], list) else turns
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise row.error("the field 'question' must hold one turn, a list of messages with role and content")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))
