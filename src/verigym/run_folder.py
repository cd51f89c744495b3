"""What a run leaves on disk, and how it is found again: configuration, metrics, episodes, checkpoints, plot."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from verigym.agents.episode import Episode
from verigym.agents.learners.batch import Values
from verigym.agents.learners.policy import Columns
from verigym.config import read_recipe
from verigym.tasks.errors import ConfigError, RunError
from verigym.verifiers.sandbox import Sandbox

# Of a step's checkpoint, the folder of the learner's state.
LEARNER = "learner"
_KEPT = 2
_GREY = "#757e8c"


class RunFolder:
    """`runs/<name>/`: config.yaml, metrics.jsonl, episodes/, checkpoints/, reward.png, tensorboard/.

    Where there is a reason for them: sandbox.txt, stalls.txt (`StallWatch`), view.html (`verigym view`), rescored/.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metrics_path, self.config_path = self.path / "metrics.jsonl", self.path / "config.yaml"
        self.episodes_path, self.checkpoints_path = self.path / "episodes", self.path / "checkpoints"

    def refuse_if_taken(self) -> None:
        """Raises ConfigError if the folder holds a run already."""
        if self.config_path.exists():
            raise ConfigError(
                f"'{self.path}' holds a run already; go on with --resume {self.path}, or choose another --run"
            )

    def create(self, config: Mapping[str, Any]) -> None:
        """Makes the folder. Raises ConfigError if that cannot be done."""
        try:
            for folder in (self.path, self.episodes_path, self.checkpoints_path):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make the run folder '{self.path}': {error.strerror}") from error
        self.write_config(config)

    def write_config(self, config: Mapping[str, Any]) -> None:
        _write_atomically(self.config_path, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    def note_sandboxes(self, sandboxes: Sequence[Sandbox]) -> None:
        """Writes which sandboxes the run uses, if any, and why these: `sandbox.txt`."""
        if sandboxes:
            lines = (f"{sandbox.name}: {sandbox.reason}\n" for sandbox in sandboxes)
            _write_atomically(self.path / "sandbox.txt", "".join(lines))

    def read_config(self) -> dict[str, Any]:
        """The configuration of the run here. Raises ConfigError if there is none."""
        if not self.config_path.is_file():
            raise ConfigError(f"no run in '{self.path}': it has no config.yaml")
        return read_recipe(self.config_path)

    # Metrics and episodes.

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Appends a row of metrics."""
        row = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in metrics.items()
        }
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics; a last line that a kill cut short is left out."""
        if not self.metrics_path.exists():
            return []
        rows = []
        for line in self.metrics_path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                rows.append(json.loads(line))
        return rows

    def write_episodes(self, step: int, episodes: Sequence[Episode], columns: Columns | None = None) -> None:
        """Writes every episode of a step, under `learner` with what the learner knew of its policy tokens."""
        rows = (episode.to_json() | _learner_columns((columns or {}).get(episode, {})) for episode in episodes)
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        data = "".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass")
        # mtime=0: the same episodes give the same bytes.
        _write_atomically(self.episodes_path / f"{step:06d}.jsonl.gz", gzip.compress(data, compresslevel=1, mtime=0))

    def episodes(self, step: int) -> Iterator[Episode]:
        """The episodes of a step."""
        with gzip.open(self.episodes_path / f"{step:06d}.jsonl.gz", "rb") as file:
            for line in file:
                yield Episode.from_json(json.loads(line.decode("utf-8", "surrogatepass")))

    def cut(self, step: int) -> None:
        """Takes back what was logged after `step`, so that a resumed run repeats and loses nothing."""
        kept = [row for row in self.metrics() if row["step"] <= step]
        _write_atomically(self.metrics_path, "".join(json.dumps(row) + "\n" for row in kept))
        for path in self.episodes_path.glob("*.jsonl.gz"):
            if int(path.name.split(".")[0]) > step:
                path.unlink()
        self._recover()

    # Checkpoints: ordinary transformers checkpoints; those of steps with the learner's state and the run's beside them.

    def save(self, name: str, write: Callable[[Path], None], state: Mapping[str, Any] | None = None) -> Path:
        """Makes `checkpoints/<name>` of what `write` puts into a folder, as a whole or not at all."""
        target, writing = self.checkpoints_path / name, self.checkpoints_path / f".writing-{name}"
        shutil.rmtree(writing, ignore_errors=True)
        write(writing)
        if state is not None:
            torch.save(dict(state), writing / "state.pt")
        for path in writing.rglob("*"):
            _flush_to_disk(path)
        replaced = self.checkpoints_path / f".writing-old-{name}"
        if target.exists():
            target.rename(replaced)
        writing.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
        return target

    def _recover(self) -> None:
        """Clears what a kill left half written; a checkpoint that was being replaced is put back."""
        for path in self.checkpoints_path.glob(".writing-old-*"):
            target = self.checkpoints_path / path.name.removeprefix(".writing-old-")
            if not target.exists():
                path.rename(target)
        for path in self.checkpoints_path.glob(".writing-*"):
            shutil.rmtree(path)

    def save_step(self, step: int, write: Callable[[Path], None], state: Mapping[str, Any]) -> Path:
        """Makes the checkpoint of a step, with the plain values in `state`, and drops all but the last ones."""
        path = self.save(f"{step:06d}", write, state)
        for old in self._steps()[:-_KEPT]:
            shutil.rmtree(old)
        return path

    def latest(self) -> Path:
        """The newest checkpoint of a step. Raises RunError if there is none."""
        self._recover()
        steps = self._steps()
        if not steps:
            raise RunError(f"'{self.path}' has no checkpoint to go on from")
        return steps[-1]

    def has_checkpoint(self) -> bool:
        """Whether a run can go on from here."""
        self._recover()
        return bool(self._steps())

    def _steps(self) -> list[Path]:
        return sorted(path for path in self.checkpoints_path.glob("[0-9]*") if (path / "state.pt").is_file())

    def plot(self) -> Path:
        """Draws reward.png: reward and pass rate of training, pass rate of evaluations."""
        from matplotlib.figure import Figure

        rows = self.metrics()
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for name, label, style, color in (
            ("reward", "training reward", "-", "#4a7be0"),
            ("pass_rate", "training pass rate", ":", "#d9742b"),
            ("eval/pass_rate", "held-out pass rate", "o-", "#2f9e62"),
        ):
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label, color=color, markersize=4)
        # No background, and a grey that reads on white and on black.
        axes.set_title(self.path.name, color=_GREY, loc="left", fontweight="bold")
        axes.set_xlabel("step", color=_GREY)
        axes.tick_params(colors=_GREY)
        axes.grid(color=_GREY, alpha=0.25)
        axes.spines[:].set_visible(False)
        if axes.has_data():
            figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=_GREY)
        path = self.path / "reward.png"
        figure.savefig(path, dpi=150, transparent=True)
        return path


def _learner_columns(columns: Mapping[str, Values]) -> dict[str, Any]:
    rounded = {
        name: [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
        for name, values in columns.items()
    }
    return {"learner": rounded} if rounded else {}


def _write_atomically(path: Path, data: str | bytes) -> None:
    writing = path.with_name(f".writing-{path.name}")
    writing.write_bytes(data.encode() if isinstance(data, str) else data)
    writing.replace(path)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
