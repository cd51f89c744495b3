"""Where an evaluation keeps what was played, by content: what decides an episode names its file and its row."""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from verigym.agents.episode import Episode
from verigym.tasks.errors import ConfigError, TaskDataError
from verigym.tasks.task import Task
from verigym.verifiers._latex import canonical
from verigym.verifiers.verdict import Outcome, Verdict

_LONGEST_VOTE = 300  # characters of an answer that is read as mathematics


@dataclass(frozen=True, slots=True)
class Result:
    """What is known of one episode of one task; `answer` is its vote, None without one.

    `prompt_tokens` counts what each turn began with, as an endpoint does; `seconds` is the episode's share of the time
    in which it was played beside others.
    """

    task_id: str
    outcome: Outcome
    reason: str
    reward: float | None
    answer: str | None
    prompt_tokens: int
    generated_tokens: int
    seconds: float

    @property
    def passed(self) -> bool:
        return self.outcome is Outcome.CORRECT

    @property
    def judged(self) -> bool:
        return self.outcome is not Outcome.INFRA_ERROR

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Result:
        """That of an episode as it is stored: `Episode.to_json` with what `Cell.add` puts beside it."""
        read, written = row.get("usage") or (sum(turn[0] for turn in row["turns"]), sum(row["mask"]))
        verdict, more = row["verdict"], row["evaluation"]
        outcome, answer = Outcome(verdict["outcome"]), more["answer"]
        reason = str(verdict["reason"])
        return cls(row["task_id"], outcome, reason, row["reward"], answer, read, written, more["seconds"])


def vote_of(verdict: Verdict) -> str | None:
    """The answer that a verifier found, spelled so that equal spellings are equal; None if the verdict names none.

    Of a composite verifier it is that of its first part.
    """
    details = verdict.details
    first = next(iter(details.values()), None)
    if "answer" not in details and isinstance(first, Mapping) and "reason" in first:
        details = first
    answer = details.get("answer")
    if answer is None:
        return None
    text = str(answer)
    return canonical(text) if len(text) <= _LONGEST_VOTE else " ".join(text.split())


class Cell:
    """The episodes of one model on one environment, with one way to sample: a file, and beside it what they are of.

    Rows are of (task, sample); an episode that could not be judged is not kept, and so is played again.
    """

    def __init__(self, folder: Path, content: Mapping[str, Any]) -> None:
        name = name_of(content)
        self.path, self._content = folder / f"{name}.jsonl", folder / f"{name}.json"
        self._content.write_text(json.dumps(content, sort_keys=True, default=str, indent=2) + "\n", encoding="utf-8")
        self.known: dict[tuple[str, int], Result] = {}
        self.unjudged: dict[tuple[str, int], Result] = {}
        self._file = _opened(self.path)
        for row in read_rows(self.path):
            self.known[row["evaluation"]["task"], row["evaluation"]["sample"]] = Result.of_row(row)
        self._last = time.monotonic()

    def start(self) -> None:
        """The seconds of the next episodes count from now."""
        self._last = time.monotonic()

    def add(self, task: str, sample: int, episode: Episode) -> None:
        """Keeps an episode of `task` (see `fingerprint`), which ended now."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        more = {"task": task, "sample": sample, "answer": vote_of(episode.verdict), "seconds": round(seconds, 6)}
        row = episode.to_json() | {"evaluation": more}
        result = Result.of_row(row)
        if not result.judged:
            self.unjudged[task, sample] = result
            return
        self.known[task, sample] = result
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()

    def results(self, wanted: Sequence[tuple[str, int]]) -> list[Result]:
        """Those of these rows, in order, that are there."""
        found = self.unjudged | self.known
        return [found[key] for key in wanted if key in found]

    def rows(self, wanted: Sequence[tuple[str, int]]) -> Iterator[dict[str, Any]]:
        """The episodes of these rows, in order, as they are stored."""
        found = {(row["evaluation"]["task"], row["evaluation"]["sample"]): row for row in read_rows(self.path)}
        return (found[key] for key in wanted if key in found)

    def close(self) -> None:
        self._file.close()


def fingerprint(task: Task | None) -> str:
    """A name of all that a task asks and is judged by; of an environment without tasks the empty one."""
    if task is None:
        return ""
    return name_of([task.id, task.prompt, task.target, dict(task.metadata)])


def name_of(content: Any) -> str:
    """A name that equal plain data share, in whatever order its mappings are."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The stored episodes of a cell. Raises TaskDataError for a line that is none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                Result.of_row(row), row["evaluation"]["task"], row["evaluation"]["sample"]
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                raise TaskDataError(f"{path}:{number}: no episode of an evaluation; remove the line") from error
            yield row


def _opened(path: Path) -> IO[bytes]:
    """The file to append to, without what a kill left of a last line. Raises ConfigError if another one writes it."""
    file = path.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ConfigError(f"'{path}' is being written by another verigym eval; wait for it to end") from error
    file.truncate(_end_of_lines(file))
    return file


def _end_of_lines(file: IO[bytes]) -> int:
    """Where the last whole line ends."""
    position = file.seek(0, 2)
    while position > 0:
        start = max(0, position - (1 << 16))
        file.seek(start)
        found = file.read(position - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        position = start
    return 0
