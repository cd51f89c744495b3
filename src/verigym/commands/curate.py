"""`verigym curate ID --output FILE`: chooses the tasks that are worth training on, with a report on the others."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from verigym import tasks
from verigym.cli import parse_options
from verigym.commands._arguments import Limit, Options, Source, Split, key_values
from verigym.curation import Curated, Difficulty, curate
from verigym.envs.mixture import EnvSpec
from verigym.tasks.curated import write
from verigym.tasks.curation import NEAR, NGRAM
from verigym.tasks.errors import ConfigError
from verigym.tasks.task import Task


@dataclass(frozen=True)
class Curate:
    """Choose the tasks of an environment that are worth training on, and write them as Parquet.

    Left out are tasks whose gold answer fails or that policies pass which know nothing, duplicates and near duplicates,
    those that are in evaluation sets, and with --model those that are too hard or too easy for it. FILE.report.jsonl
    has a line for each task that is left out and for each likeness that was found.
    """

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")]
    """The environment, such as verigym/GSM8K-v0."""
    output: Annotated[str, tyro.conf.arg(metavar="FILE")]
    """The Parquet file to write; it is read by task_set="curated" and source=FILE."""
    source: Source = None
    """Where the data is read from: a hub id, a file or a folder."""
    split: Split = None
    """The split of the tasks."""
    option: Options = ()
    """A keyword argument of the environment, such as level=3."""
    tasks: Limit = None
    """The first so many tasks."""
    against: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME[:SPLIT][=SOURCE]")] = ()
    """A task set to keep away from, such as gsm8k:test or math500=data/math500 (default split: test)."""
    near: float = NEAR
    """Jaccard similarity, of runs of 3 words, from which texts are near duplicates."""
    ngram: int = NGRAM
    """Words in a row that a task must not share with an evaluation set."""
    model: Annotated[
        str | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="(default: difficulty does not matter)")
    ] = None
    """Checkpoint whose pass rates decide."""
    samples: int = 8
    """Episodes of each task."""
    low: float = 0.1
    """The lowest pass rate that is kept."""
    high: float = 0.9
    """The highest pass rate that is kept."""
    temperature: float = 1.0
    """Sampling temperature."""
    max_new_tokens: int = 1024
    """Tokens per turn where the environment sets no budget."""
    seed: int = 0
    """Seed of episodes and sampling."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model lives."""
    json: bool = False
    """Print what was left out at each stage, and all that decided, as JSON."""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Curate:
        """Its switch is a flag: `--json`."""
        return parse_options(cls, "curate", arguments, flags=True)  # type: ignore[no-any-return]

    def run(self) -> int:
        if not self.output.endswith(".parquet"):
            raise ConfigError(f"the output is a Parquet file: name it {self.output}.parquet")
        if not Path(self.output).parent.is_dir():
            raise ConfigError(f"cannot write '{self.output}': there is no folder '{Path(self.output).parent}'")
        if self.tasks is not None and self.tasks < 1:
            raise ConfigError(f"tasks must be at least 1, not {self.tasks}")
        kwargs = key_values(self.option)
        kwargs |= {name: value for name, value in (("source", self.source), ("split", self.split)) if value is not None}
        found = self._curate(EnvSpec(self.env, kwargs=kwargs))
        write(self.output, found.tasks, found.provenance, found.rates)
        report = f"{self.output.removesuffix('.parquet')}.report.jsonl"
        _write_report(report, found)
        if self.json:
            print(json.dumps({"output": self.output, "report": report, **found.provenance}, indent=1))
        else:
            print(f"wrote {self.output} ({len(found.tasks):,} tasks) and {report}")
        return 0

    def _curate(self, spec: EnvSpec) -> Curated:
        """Chooses, and says how far it has come: on standard error where standard output is for JSON."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
            bar = bars.add_task("starting", total=None)

            def on_stage(stage: str, left: int) -> None:
                print(f"{left:8,} tasks are left after: {stage}", file=sys.stderr if self.json else sys.stdout)
                bars.update(bar, description=f"{left:,} tasks after: {stage}", completed=0, total=None)

            return curate(
                spec,
                limit=self.tasks,
                against=dict(map(_evaluation, self.against)),
                near=self.near,
                ngram=self.ngram,
                difficulty=self._difficulty(),
                on_stage=on_stage,
                on_progress=lambda what, done, total: bars.update(bar, description=what, completed=done, total=total),
            )

    def _difficulty(self) -> Difficulty | None:
        if self.model is None:
            return None
        return Difficulty(
            self.model,
            self.samples,
            self.low,
            self.high,
            self.temperature,
            self.max_new_tokens,
            self.seed,
            self.device,
        )


def _evaluation(text: str) -> tuple[str, Sequence[Task]]:
    """The name and the tasks of NAME[:SPLIT][=SOURCE]."""
    name, _, source = text.partition("=")
    task_set, _, split = name.partition(":")
    loaded = tasks.load(task_set, split=split or "test", source=source or None)
    return f"{loaded.name}/{loaded.split}", loaded


def _write_report(path: str, found: Curated) -> None:
    lines = [{"dropped": each.task_id, "stage": each.stage, "why": each.why} for each in found.dropped]
    hits = [{"hit": hit.pop("task_id"), **hit} for hit in map(asdict, found.hits)]
    try:
        Path(path).write_text("".join(json.dumps(line) + "\n" for line in [*lines, *hits]), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write '{path}': {error.strerror}") from error
