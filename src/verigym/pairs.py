"""Where offline learners get their data: files of preferences, stored episodes, environments played now."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from verigym.agents.episode import Episode, derive_seed
from verigym.tasks._rows import Row, is_unicode, read_file
from verigym.tasks.errors import ConfigError, TaskDataError
from verigym.verifiers.verdict import Outcome

Message = Mapping[str, Any]
T = TypeVar("T")

_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt and two ways in which the conversation went on; each ends with the assistant's turn.

    `where` is the file and row, or the task, for error messages. `opening` is what was asked first, where the prompt
    goes on from there with turns of an episode that was forked.
    """

    prompt: Sequence[Message]
    chosen: Sequence[Message]
    rejected: Sequence[Message]
    where: str
    opening: Sequence[Message] = ()

    @property
    def question(self) -> str:
        """A name of what was asked."""
        return question(self.opening or self.prompt)


def question(prompt: Sequence[Message]) -> str:
    """The same name for the same words: tasks are told apart, and split, by what is asked."""
    said = [[message["role"], message["content"]] for message in prompt]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


# Files of preferences.


def read_preferences(path: str) -> list[Preference]:
    """The rows of a JSONL or Parquet file, in the forms that preference data sets have:

        {"prompt": "6 * 7?", "chosen": "42", "rejected": "41"}
        {"prompt": [{"role": "user", "content": "6 * 7?"}], "chosen": [{"role": "assistant", ...}], "rejected": [...]}
        {"chosen": [whole conversation], "rejected": [whole conversation]}

    In the last, the prompt is what both begin with. Raises TaskDataError, with file and row, for any other.
    """
    found = [_preference(row) for row in read_file(Path(path).expanduser())]
    if not found:
        raise TaskDataError(f"{path}: the file has no rows")
    return found


def _preference(row: Row) -> Preference:
    chosen, rejected = (_messages(row, name, "assistant") for name in ("chosen", "rejected"))
    prompt = _messages(row, "prompt", "user") if row.values.get("prompt") is not None else []
    whole = [side[0]["role"] != "assistant" for side in (chosen, rejected)]
    if any(whole):
        if not all(whole):
            raise row.error("one of 'chosen' and 'rejected' begins with the prompt, the other does not")
        common = _common(chosen, rejected)
        said = prompt and [message["content"] for message in prompt]
        if said and said[-1] not in [message["content"] for message in chosen[:common]]:
            raise row.error("the field 'prompt' is not what 'chosen' and 'rejected' begin with")
        prompt, chosen, rejected = chosen[:common], chosen[common:], rejected[common:]
    if not prompt:
        raise row.error("there is no prompt: give 'prompt', or whole conversations that begin with the same messages")
    if prompt[-1]["role"] == "assistant":
        raise row.error("the prompt ends with a turn of the assistant; an answer follows a user or a tool")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not side or side[0]["role"] != "assistant" or side[-1]["role"] != "assistant":
            raise row.error(f"after the prompt, '{name}' must begin and end with a turn of the assistant")
    if chosen == rejected:
        raise row.error("'chosen' and 'rejected' are the same: a tie teaches nothing")
    return Preference(prompt, chosen, rejected, f"{row.file}: row {row.number}")


def _messages(row: Row, name: str, role: str) -> list[Message]:
    """A field that is a text, said by `role`, or a list of messages."""
    value = row.values.get(name)
    if isinstance(value, str) or name not in row.values:
        return [{"role": role, "content": row.text(name)}]
    if not isinstance(value, list) or not value:
        raise row.error(f"the field '{name}' must be text or a list of messages, not {type(value).__name__}")
    return [_message(row, name, item) for item in value]


def _message(row: Row, name: str, item: Any) -> Message:
    if not isinstance(item, dict) or item.get("role") not in _ROLES or not isinstance(item.get("content"), str):
        roles = ", ".join(_ROLES)
        raise row.error(f"a message of '{name}' has a role ({roles}) and a content that is text, not {str(item)[:80]}")
    if item.get("tool_calls"):
        raise row.error(f"a message of '{name}' has tool_calls; write calls into its content, in canonical syntax")
    if not is_unicode(item["content"]):
        raise row.error(f"a message of '{name}' is not Unicode")
    return {"role": item["role"], "content": item["content"]}


def _common(one: Sequence[Message], other: Sequence[Message]) -> int:
    """How many messages both begin with, before the turn in which they part."""
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    return same


# Stored episodes.


def read_episodes(places: Iterable[str]) -> list[Episode]:
    """The episodes in run folders, in the order of their steps, and in JSONL files. Raises TaskDataError."""
    files = [file for place in places for file in episode_files(Path(place).expanduser())]
    found = [episode for file in files for episode in stored_episodes(file)]
    if not found:
        raise TaskDataError(f"no episodes in {', '.join(map(str, places))}")
    return found


def episode_files(place: Path) -> list[Path]:
    """The files of episodes in a folder, in order; a file is its own. Raises TaskDataError for a folder without one."""
    if not place.is_dir():
        return [place]
    folder = place / "episodes"
    files = sorted([*folder.glob("*.jsonl.gz"), *folder.glob("*.jsonl")])
    if not files:
        raise TaskDataError(f"'{place}' is no run with episodes: it has no episodes/*.jsonl.gz and no episodes/*.jsonl")
    return files


def stored_episodes(file: Path) -> Iterator[Episode]:
    """The episodes in a file, in order. Raises TaskDataError, with file and row, for what is none."""
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    yield Episode.from_json(json.loads(line.decode("utf-8", "surrogatepass")))
                except (KeyError, TypeError, ValueError) as error:
                    what = " ".join(str(error).split())[:160]
                    raise TaskDataError(
                        f"{file}: row {number} is no episode ({type(error).__name__}: {what}); "
                        "give a run folder, or what verigym eval wrote to its --folder or --output"
                    ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise TaskDataError(f"cannot read '{file}': {getattr(error, 'strerror', None) or error}") from error


def asked(episode: Episode) -> list[Message]:
    """The messages before the agent's first turn; an environment may open with examples of such turns."""
    turns = [index for index, message in enumerate(episode.messages) if message["role"] == "assistant"]
    return list(episode.messages[: turns[-len(episode.turns)]])


def opening(episode: Episode) -> list[Message]:
    """The messages before the first turn of all; those that a fork begins with are turns of the agent too."""
    turns = [index for index, message in enumerate(episode.messages) if message["role"] == "assistant"]
    return list(episode.messages[: turns[-len(episode.turns) - (episode.forked_turn or 0)]])


def as_preference(chosen: Episode, rejected: Episode) -> Preference:
    """Two episodes of one task as messages, up to the agent's last turn."""
    prompt = asked(chosen)
    better, worse = (_to_last_turn(episode.messages)[len(prompt) :] for episode in (chosen, rejected))
    return Preference(prompt, better, worse, f"task {chosen.task_id} of {chosen.env_id}", opening(chosen))


def _to_last_turn(messages: Sequence[Message]) -> Sequence[Message]:
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return messages[: last + 1]


def match(episodes: Sequence[Episode], per_task: int, seed: int) -> list[tuple[Episode, Episode]]:
    """Pairs of a right and a wrong episode of one task, at most `per_task`, in which each serves about equally often.

    Wrong is every verdict but CORRECT; an episode that could not be judged, or that has no turn, is in no pair, and
    neither is one whose words are another's. Of tasks that are always right, or always wrong, there are none.
    """
    pairs = []
    for name, group in _by_question(episodes).items():
        told_apart = _distinct(group, lambda episode: [message["content"] for message in episode.messages])
        right, wrong = (
            [e for e in told_apart if (e.verdict.outcome is Outcome.CORRECT) is is_right] for is_right in (True, False)
        )
        if right and wrong:
            right, wrong = (_shuffled(side, derive_seed(seed, "pairs", name)) for side in (right, wrong))
            count = min(per_task, max(len(right), len(wrong)))
            pairs += [(right[i % len(right)], wrong[i % len(wrong)]) for i in range(count)]
    return pairs


def right_episodes(episodes: Sequence[Episode], per_task: int, seed: int) -> list[Episode]:
    """The right episodes that ended by themselves, each sequence of tokens once, at most `per_task` of one task.

    As in Yuan et al. 2023 (arXiv:2308.01825). One that a budget cut would teach to go on without end.
    """
    right = [e for e in episodes if e.verdict.outcome is Outcome.CORRECT and e.terminated]
    kept = []
    told_apart = _distinct(right, lambda episode: episode.token_ids.tolist())
    for name, group in _by_question(told_apart, opening).items():
        kept += _shuffled(group, derive_seed(seed, "right", name))[:per_task]
    return kept


def _by_question(
    episodes: Sequence[Episode], prompt: Callable[[Episode], list[Message]] = asked
) -> dict[str, list[Episode]]:
    """Judged episodes with a turn, by environment, task and what was asked: `asked`, or `opening`."""
    groups: dict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        if episode.verdict.outcome is not Outcome.INFRA_ERROR and episode.turns:
            groups[f"{episode.env_id} {episode.task_id} {question(prompt(episode))}"].append(episode)
    return groups


def _distinct(items: Sequence[T], content: Callable[[T], Any]) -> list[T]:
    """The first of those with the same content."""
    found: dict[str, T] = {}
    for item in items:
        found.setdefault(json.dumps(content(item)), item)
    return list(found.values())


def _shuffled(items: Sequence[T], seed: int) -> list[T]:
    return [items[i] for i in np.random.default_rng(seed).permutation(len(items))]


def split(items: Sequence[T], questions: Sequence[str], share: float, seed: int) -> tuple[list[T], list[T]]:
    """Items to learn from and items held out: no question is on both sides, and each side has at least one.

    Raises ConfigError if there are fewer than two questions.
    """
    known = sorted(set(questions), key=lambda name: derive_seed(seed, "held out", name))
    if len(known) < 2:
        raise ConfigError(
            f"pairs of {len(known)} different prompts: at least two are needed, one to learn from and one to hold out"
        )
    held = set(known[: min(len(known) - 1, max(1, round(share * len(known))))])
    sides: tuple[list[T], list[T]] = ([], [])
    for item, name in zip(items, questions, strict=True):
        sides[name in held].append(item)
    return sides
