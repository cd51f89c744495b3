"""What the page shows of a run folder, which may be live: read again only where it changed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from verigym.tasks.errors import ConfigError
from verigym.view.episodes import INDEX, StepEpisodes, read_step
from verigym.view.tokens import TokenTexts

# Of INDEX: few different texts, which are written once.
_NAMED = ("env", "task", "outcome", "truncation")


class RunReader:
    """A run folder as plain data for the page. Raises ConfigError for a folder that holds no run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ConfigError(f"no run in '{path}': there is no such folder")
        if not (self.path / "config.yaml").is_file():
            raise ConfigError(f"no run in '{path}': it has no config.yaml")
        self._steps: dict[Path, tuple[tuple[int, int], StepEpisodes]] = {}
        self._texts = TokenTexts(self.path)

    def signature(self) -> str:
        """Changes whenever the files that the page shows do."""
        files = [self.path / "metrics.jsonl", *self._files()]
        return json.dumps([(path.name, *_stamp(path)) for path in files if path.exists()])

    def data(self) -> dict[str, Any]:
        """All but the episodes themselves, which the page asks for by chunk."""
        steps = list(self._read())
        series, note = self._series()
        token_ids = frozenset[int]().union(*(step.token_ids for step in steps))
        texts = self._texts.of(token_ids)
        notes = [note, *(step.note for step in steps), self._texts.note if steps else ""]
        return {
            "name": self.path.resolve().name,
            "config": self._config(),
            "series": series,
            "index": _columns([row for step in steps for row in step.rows]),
            "texts": texts,
            "notes": [note for note in notes if note],
        }

    def chunks(self) -> Iterator[tuple[str, bytes]]:
        """Name and gzip-compressed JSON of every chunk of episodes."""
        for path in self._files():
            step = self._read_file(path)
            yield from ((f"{step.step}.{number}", chunk) for number, chunk in enumerate(step.chunks))

    def chunk(self, name: str) -> bytes | None:
        """One chunk by its name; None if there is none such."""
        step, _, number = name.partition(".")
        path = self.path / "episodes" / f"{int(step):06d}.jsonl.gz"
        chunks = read_step(path).chunks if path.exists() else []
        return chunks[int(number)] if int(number) < len(chunks) else None

    def _files(self) -> list[Path]:
        found = (self.path / "episodes").glob("*.jsonl.gz")
        return sorted(path for path in found if path.name.removesuffix(".jsonl.gz").isdecimal())

    def _read(self) -> Iterator[StepEpisodes]:
        """Every step, without its chunks."""
        for path in self._files():
            if path not in self._steps or self._steps[path][0] != _stamp(path):
                self._read_file(path)
            yield self._steps[path][1]

    def _read_file(self, path: Path) -> StepEpisodes:
        """A step; all but its chunks, which are many, is kept for as long as the file stays as it is."""
        stamp, step = _stamp(path), read_step(path)
        self._steps[path] = (stamp, replace(step, chunks=[]))
        return step

    def _config(self) -> dict[str, Any]:
        text = (self.path / "config.yaml").read_text(encoding="utf-8", errors="replace")
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError:
            values = None
        known = values if isinstance(values, dict) else {}
        return {"text": text, "model": str(known.get("model", "")), "learner": str(known.get("learner", ""))}

    def _series(self) -> tuple[dict[str, list[list[Any]]], str]:
        """Steps and values of each metric by name, and what is wrong with the file."""
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        series: dict[str, list[list[Any]]] = {}
        wrong = 0
        for line in lines:
            try:
                row = json.loads(line)
                step = int(row["step"])
            except (ValueError, KeyError, TypeError):
                wrong += 1
                continue
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                    steps, values = series.setdefault(name, [[], []])
                    steps.append(step)
                    values.append(value if isinstance(value, int) else float(f"{value:.6g}"))
        return series, f"metrics.jsonl: {wrong} of its lines cannot be read and are left out" if wrong else ""


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _columns(rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    """The index by column; of the columns in _NAMED, numbers into `names`."""
    columns: dict[str, Any] = {name: list(column) for name, column in zip(INDEX, zip(*rows, strict=True), strict=False)}
    columns = {name: columns.get(name, []) for name in INDEX}
    names = {}
    for name in _NAMED:
        numbers: dict[str, int] = {}
        columns[name] = [numbers.setdefault(text, len(numbers)) for text in columns[name]]
        names[name] = list(numbers)
    return {**columns, "names": names}
