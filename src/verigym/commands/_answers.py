"""The rows of `verigym verify`: read and checked, then judged by a verifier or in an environment."""

from __future__ import annotations

import gzip
import json
import math
import os
import queue
import shutil
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, cast

from verigym.envs.text_env import TextEnv
from verigym.tasks.errors import TaskDataError, UnknownNameError, VerifierInputError
from verigym.tasks.task import Task
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier

_CHUNK_ROWS = 256
_CHUNK_CHARACTERS = 16 << 20  # so that rows of many megabytes are not held by the hundred
_THREADS = min(4, os.cpu_count() or 1)
_NOT_ENDED = "the completion ends before the task does: the environment waits for turn {}"


@dataclass(frozen=True, slots=True)
class Answer:
    """One row: its id, the task, and the turns of the completion."""

    id: str | int
    task: Task
    turns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """What is written of a verdict; the reward of an INFRA_ERROR is None."""

    id: str | int
    reward: float | None
    outcome: Outcome
    reason: str


class AnswerFile:
    """A JSONL file, gzipped or not, that is read twice: to check every row, and to judge them.

    `to_answer` makes a row of its fields and raises TaskDataError or VerifierInputError. Errors name file and line.
    """

    def __init__(self, path: str, to_answer: Callable[[Mapping[str, Any]], Answer]) -> None:
        self.path, self._to_answer = path, to_answer
        try:
            self._raw = cast(IO[bytes], open(path, "rb"))  # noqa: SIM115 - closed by __exit__
            if not self._raw.seekable():  # a pipe can be read only once
                copy = cast(IO[bytes], tempfile.TemporaryFile())  # noqa: SIM115
                with self._raw:
                    shutil.copyfileobj(self._raw, copy)
                self._raw = copy
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise TaskDataError(f"cannot read '{path}': {reason}") from error

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def check(self) -> int:
        """Reads all rows; their number. Raises TaskDataError for the first bad row, or if there is none."""
        count = sum(1 for _ in self.rows())
        if not count:
            raise TaskDataError(f"{self.path}: the file has no rows")
        return count

    def rows(self) -> Iterator[Answer]:
        """The rows from the first on; blank lines are none."""
        for number, line in self._lines():
            try:
                yield self._to_answer(_fields(line))
            except (TaskDataError, VerifierInputError, UnknownNameError) as error:
                raise TaskDataError(f"{self.path}:{number}: {error}") from error

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        try:
            self._raw.seek(0)
            zipped = self._raw.read(2) == b"\x1f\x8b"
            self._raw.seek(0)
            lines = cast(IO[bytes], gzip.GzipFile(fileobj=self._raw)) if zipped else self._raw
            for number, line in enumerate(lines, start=1):
                text = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()
                if text:
                    yield number, text
        except (OSError, EOFError, zlib.error) as error:
            raise TaskDataError(f"cannot read '{self.path}': {' '.join(str(error).split())}") from error


def _fields(line: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TaskDataError(f"the line is not JSON in UTF-8 ({str(error)[:160]})") from error
    if not isinstance(fields, dict):
        raise TaskDataError(f"the line must be a JSON object, not {_kind(fields)}")
    return fields


def _field(fields: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """The value of a field that must be there, of one of these types."""
    if name not in fields:
        found = ", ".join(list(fields)[:10])[:200] or "none"
        raise TaskDataError(f"the field '{name}' is missing (fields found: {found})")
    value = fields[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(_NAMES[kind] for kind in kinds)
        raise TaskDataError(f"the field '{name}' must be {expected}, not {_kind(value)}")
    return value


_NAMES: dict[type, str] = {
    str: "text",
    int: "a whole number",
    list: "a list",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    type(None): "null",
}


def _kind(value: Any) -> str:
    return _NAMES.get(type(value), type(value).__name__)


class Judge(ABC):
    """Makes answers of rows, and verdicts of answers."""

    @abstractmethod
    def row(self, fields: Mapping[str, Any]) -> Answer:
        """The answer in a row. Raises TaskDataError, VerifierInputError or UnknownNameError for a bad one."""

    @abstractmethod
    def judge(self, answers: Iterator[Answer]) -> Iterator[Judged]:
        """The verdicts, in order; few answers are held at a time."""

    @abstractmethod
    def close(self) -> None:
        """Frees what the judge holds."""


class VerifierJudge(Judge):
    """Rows with a target of their own."""

    def __init__(self, verifier: Verifier) -> None:
        self.verifier = verifier

    def row(self, fields: Mapping[str, Any]) -> Answer:
        answer_id, completion = _field(fields, "id", str, int), _field(fields, "completion", str)
        _field(fields, "target", str, int, float, list, dict, bool, type(None))
        prompt = _field({"prompt": "", **fields}, "prompt", str, type(None)) or ""
        metadata = _field({"metadata": {}, **fields}, "metadata", dict)
        if "tools" in fields:
            metadata = {**metadata, "tools": _field(fields, "tools", list)}
        task = Task(str(answer_id), prompt, fields["target"], metadata)
        self.verifier.golds(task)  # refuses a target that cannot be judged against
        return Answer(answer_id, task, (completion,))

    def judge(self, answers: Iterator[Answer]) -> Iterator[Judged]:
        for chunk in _chunks(answers):
            verdicts = self.verifier.verify_many([(Submission(answer.turns[0]), answer.task) for answer in chunk])
            for answer, verdict in zip(chunk, verdicts, strict=True):
                yield _judged(answer, verdict, verdict.reward)

    def close(self) -> None:
        self.verifier.close()


class EnvironmentJudge(Judge):
    """Rows with the id of an environment's task, whose completions are played in it."""

    def __init__(self, make: Callable[[], TextEnv]) -> None:
        self._make, self._env = make, make()
        self._free: queue.SimpleQueue[TextEnv] = queue.SimpleQueue()
        self._free.put(self._env)
        for _ in range(_THREADS - 1):
            self._free.put(make())

    def row(self, fields: Mapping[str, Any]) -> Answer:
        answer_id, task_id = _field(fields, "id", str, int), _field(fields, "task", str)
        completion = _field(fields, "completion", str, list)
        turns = [completion] if isinstance(completion, str) else completion
        for turn in turns:
            if not isinstance(turn, str):
                raise TaskDataError(f"a turn in the list 'completion' must be text, not {_kind(turn)}")
        return Answer(answer_id, self._env.tasks.get(task_id), tuple(turns))

    def judge(self, answers: Iterator[Answer]) -> Iterator[Judged]:
        with ThreadPoolExecutor(_THREADS) as threads:
            for chunk in _chunks(answers):
                yield from threads.map(self._play, chunk)

    def _play(self, answer: Answer) -> Judged:
        env = self._free.get()
        try:
            judged = _played(env, answer)
        except Exception as error:  # an environment's own code may raise anything; it costs its own row only
            env.close()
            env = self._make()
            # not the error's text: it may hold anything, the target too
            judged = _judged(answer, Verdict.infra_error(f"the environment failed: {type(error).__name__}"), math.nan)
        self._free.put(env)
        return judged

    def close(self) -> None:
        while not self._free.empty():
            self._free.get().close()


def _chunks(answers: Iterator[Answer]) -> Iterator[list[Answer]]:
    """The answers in lists of bounded length and size."""
    chunk: list[Answer] = []
    characters = 0
    for answer in answers:
        chunk.append(answer)
        characters += sum(map(len, answer.turns))
        if len(chunk) == _CHUNK_ROWS or characters > _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _played(env: TextEnv, answer: Answer) -> Judged:
    env.reset(seed=0, options={"task": answer.task.id})
    total = 0.0
    for played, turn in enumerate(answer.turns, start=1):
        _, reward, terminated, truncated, info = env.step(turn)
        total += reward
        if terminated or truncated:
            return _judged(answer, info["verdict"], total, unplayed=len(answer.turns) - played)
    return Judged(answer.id, 0.0, Outcome.UNPARSEABLE, _NOT_ENDED.format(len(answer.turns) + 1))


def _judged(answer: Answer, verdict: Verdict, reward: float, unplayed: int = 0) -> Judged:
    reason = verdict.reason + (f" (turns not played after the end of the task: {unplayed})" if unplayed else "")
    return Judged(answer.id, None if math.isnan(reward) else float(reward), verdict.outcome, reason)
