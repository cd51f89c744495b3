"""What is asked: one task, and an ordered, fingerprinted set of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, overload

from verigym.tasks.errors import TaskDataError, UnknownNameError


@dataclass(frozen=True, slots=True)
class Task:
    """One question and what a right answer is.

    `id` is stable and unique in its set; `prompt` is what the agent reads; `target` is the gold answer and
    never reaches the agent; `metadata` is for people, curation and verifiers.
    """

    id: str
    prompt: str
    target: Any = field(hash=False)
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), hash=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # a read-only mapping cannot be pickled or copied
        return _make_task, (self.id, self.prompt, self.target, dict(self.metadata))

    def content_hash(self) -> str:
        """Hex SHA-256 of prompt and target: equal for equal questions, whatever their ids."""
        content = json.dumps([self.prompt, self.target], sort_keys=True, default=str, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def _make_task(task_id: str, prompt: str, target: Any, metadata: dict[str, Any]) -> Task:
    return Task(task_id, prompt, target, MappingProxyType(metadata))


class TaskSet(Sequence[Task]):
    """An ordered set of tasks with a name, a split and a fingerprint of its content.

    `left_out` has a sentence for each row of the source that holds no task.
    Raises TaskDataError if two tasks share an id.
    """

    def __init__(self, tasks: Sequence[Task], *, name: str, split: str, left_out: Sequence[str] = ()) -> None:
        self.name, self.split, self.left_out = name, split, tuple(left_out)
        self._tasks = tuple(tasks)
        self._index = {task.id: i for i, task in enumerate(self._tasks)}
        if len(self._index) != len(self._tasks):
            seen: set[str] = set()
            twice = next(task.id for task in self._tasks if task.id in seen or seen.add(task.id))  # type: ignore[func-returns-value]
            raise TaskDataError(f"{name}/{split}: task id '{twice}' occurs twice; ids must be unique in a set")

    def __len__(self) -> int:
        return len(self._tasks)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> TaskSet: ...
    def __getitem__(self, index: int | slice) -> Task | TaskSet:
        if isinstance(index, slice):
            return TaskSet([self[i] for i in range(*index.indices(len(self)))], name=self.name, split=self.split)
        return self._tasks[index]

    def __iter__(self) -> Iterator[Task]:
        return (self[i] for i in range(len(self)))

    @property
    def ids(self) -> list[str]:
        """The tasks' ids, in order; no task is made for it."""
        return list(self._index)

    def get(self, task_id: str) -> Task:
        """The task with this id. Raises UnknownNameError."""
        if task_id not in self._index:
            raise UnknownNameError.of(f"task in {self.name}/{self.split} with id", task_id, list(self._index)[:200])
        return self._tasks[self._index[task_id]]

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change when any task's id or content, or their order, changes."""
        digest = hashlib.sha256()
        for task in self:
            digest.update(f"{task.id}\0{task.content_hash()}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        return f"TaskSet({self.name}/{self.split}, {len(self)} tasks)"


class GeneratedTaskSet(TaskSet):
    """A task set that is a pure function of (seed, index): `make(index)` gives the task at `index`.

    Ids are `<prefix>/<index>`, so that a task can be found again without making the others.
    """

    def __init__(self, make: Callable[[int], Task], *, size: int, name: str, split: str, prefix: str) -> None:
        super().__init__((), name=name, split=split)
        self._make, self._size, self._prefix = make, size, prefix

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> TaskSet: ...
    def __getitem__(self, index: int | slice) -> Task | TaskSet:
        if isinstance(index, slice):
            return super().__getitem__(index)
        if not -self._size <= index < self._size:
            raise IndexError(f"{self!r} has no index {index}")
        return self._make(index % self._size)

    @property
    def ids(self) -> list[str]:
        return [f"{self._prefix}/{index}" for index in range(self._size)]

    def get(self, task_id: str) -> Task:
        head, _, number = task_id.rpartition("/")
        # at most as many digits as the last index has: no conversion of a number of a million digits
        well_formed = len(number) <= len(str(self._size)) and number.isascii() and number.isdigit()
        if head == self._prefix and well_formed and int(number) < self._size and str(int(number)) == number:
            return self[int(number)]
        raise UnknownNameError(
            f"no task '{task_id[:200]}' in {self.name}/{self.split}; "
            f"ids are {self._prefix}/0 to {self._prefix}/{self._size - 1}"
        )
