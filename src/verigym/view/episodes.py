"""The episodes of a step as the page shows them, read as far as their file goes."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verigym.tasks.canonical import parse_turn

CHUNK_BYTES = 1 << 20  # of plain JSON, which the page unpacks when it shows the first episode in it
# What the page knows of every episode at once.
INDEX = ("step", "number", "chunk", "env", "task", "group", "reward", "outcome", "truncation", "turns", "tokens")


@dataclass(frozen=True)
class StepEpisodes:
    """What `episodes/<step>.jsonl.gz` holds: a row of INDEX for each episode, and the episodes in chunks of JSON."""

    step: int
    rows: list[tuple[Any, ...]]
    chunks: list[bytes]
    token_ids: frozenset[int]
    note: str


@dataclass(frozen=True)
class _Episode:
    facts: tuple[Any, ...]  # those of INDEX from `env` on
    text: bytes
    token_ids: list[int]


def read_step(path: Path) -> StepEpisodes:
    """Reads a file of episodes; one that is cut short or has lines that are no episodes says so in `note`."""
    step = int(path.name.split(".")[0])
    data, whole = _decompress(path)
    *lines, rest = data.split(b"\n")
    read = [_episode(line) for line in lines]
    episodes = [episode for episode in read if episode is not None]
    numbers = _chunk_numbers([len(episode.text) for episode in episodes])
    chunks: dict[int, list[bytes]] = {}
    for episode, number in zip(episodes, numbers, strict=True):
        chunks.setdefault(number, []).append(episode.text)
    name, wrong = f"episodes/{path.name}", len(read) - len(episodes)
    notes = [f"{name} is cut short: {len(episodes)} of its episodes could be read"] if rest or not whole else []
    notes += [f"{name}: {wrong} of its lines hold no episode"] if wrong else []
    return StepEpisodes(
        step,
        [(step, place, numbers[place], *episode.facts) for place, episode in enumerate(episodes)],
        [gzip.compress(b"[" + b",".join(texts) + b"]", 6, mtime=0) for texts in chunks.values()],
        frozenset(token for episode in episodes for token in episode.token_ids),
        "; ".join(notes),
    )


def _episode(line: bytes) -> _Episode | None:
    """The episode of a line; None if it holds none."""
    try:
        row = json.loads(line.decode("utf-8", "replace"))
        return _Episode(_facts(row), _packed(_shown(row)), row["token_ids"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _chunk_numbers(sizes: Sequence[int]) -> list[int]:
    """The chunk of each episode, in order: one is closed before it grows beyond CHUNK_BYTES."""
    numbers: list[int] = []
    number, filled = 0, 0
    for size in sizes:
        if filled and filled + size > CHUNK_BYTES:
            number, filled = number + 1, 0
        filled += size
        numbers.append(number)
    return numbers


def _decompress(path: Path) -> tuple[bytes, bool]:
    """What can be unpacked of a gzip file of one member, and whether that is all of it."""
    unpacker, packed, parts = zlib.decompressobj(wbits=31), path.read_bytes(), list[bytes]()
    try:
        for start in range(0, len(packed), 4096):  # in pieces: what precedes a broken one is kept
            parts.append(unpacker.decompress(packed[start : start + 4096]))
    except zlib.error:
        return b"".join(parts), False
    return b"".join(parts), unpacker.eof


def _facts(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (
        str(row["env_id"]),
        str(row["task_id"]),
        row["group_id"],
        _finite(row["reward"]),
        str(row["verdict"]["outcome"]),
        row["truncation"] or "",
        len(row["turns"]),
        sum(row["mask"]),
    )


def _shown(row: Mapping[str, Any]) -> Any:
    """An episode for the page: turns of the agent are taken apart."""
    names = ("forked_turn", "token_ids", "mask", "logprobs", "versions", "turns", "verdict")
    shown = {name: row.get(name) for name in names} | {"learner": row.get("learner", {})}
    shown["messages"] = [_message(message) for message in row["messages"]]
    shown["seed"] = str(row["seed"])  # more digits than a browser's numbers have
    sampling_seed = row.get("sampling_seed")
    shown["sampling_seed"] = None if sampling_seed is None else str(sampling_seed)
    return shown


def _packed(shown: Any) -> bytes:
    try:
        return json.dumps(shown, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:
        return json.dumps(_finite(shown), separators=(",", ":"), allow_nan=False).encode()


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    if message["role"] != "assistant":
        return dict(message)
    return {**message, "turn": asdict(parse_turn(message["content"]))}


def _finite(value: Any) -> Any:
    """The same data, null where a number is none that JSON has."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(inner) for inner in value]
    return value
