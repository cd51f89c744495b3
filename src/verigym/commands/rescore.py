"""`verigym rescore RUN --verifier NAME`: judges stored episodes with another verifier, and tells who agrees."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from verigym import __version__, verifiers
from verigym.cli import parse_options
from verigym.commands._arguments import Limit, Options, key_values
from verigym.tasks.errors import ConfigError

if TYPE_CHECKING:
    from verigym.rescoring import Agreement

LISTED = 20


@dataclass(frozen=True)
class Rescore:
    """Judge the episodes of a run with another verifier; no model is needed.

    The stored turns are played again in the run's environments, so that worlds and tools are as they were. The new
    verdicts are written beside the episodes, into RUN/rescored; what is stored stays as it is. The exit status is 1 if
    an episode could not be judged.
    """

    run_folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder, or that of verigym eval --folder."""
    verifier: Annotated[str, tyro.conf.arg(metavar="NAME")]
    """The verifier, such as math or rubric."""
    option: Options = ()
    """An option of the verifier, such as extract=latex; may be repeated."""
    limit: Limit = None
    """The first so many episodes."""
    json: bool = False
    """Print the figures and the changed episodes as JSON, and nothing else on standard output."""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Rescore:
        """Its switch is a flag: `--json`."""
        return parse_options(cls, "rescore", arguments, flags=True)  # type: ignore[no-any-return]

    def run(self) -> int:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit must be at least 1, not {self.limit}")
        options = key_values(self.option)
        with contextlib.closing(verifiers.make(self.verifier, **options)) as verifier:
            target = self._target(options)
            found = self._rescore(verifier, target)
        (target / "verifier.json").write_text(
            json.dumps({"verigym": __version__, "verifier": self.verifier, "options": options}, indent=2) + "\n",
            encoding="utf-8",
        )
        if self.json:
            print(json.dumps(self._plain(found, options, target), indent=2))
        else:
            _show(found, self.verifier, target)
        return 1 if found.unjudged else 0

    def _target(self, options: dict[str, Any]) -> Path:
        """Where the verdicts of this verifier with these options are written."""
        digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()[:8]
        name = f"{self.verifier}-{digest}" if options else self.verifier
        return Path(self.run_folder).expanduser() / "rescored" / name

    def _rescore(self, verifier: verifiers.Verifier, target: Path) -> Agreement:
        """Writes the verdicts, all of them or none."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from verigym.rescoring import Agreement, rescore

        console, found = Console(stderr=True), Agreement()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
            bar = bars.add_task("episodes", total=self.limit)
            judged = rescore(
                self.run_folder, verifier, limit=self.limit, on_progress=lambda done: bars.update(bar, completed=done)
            )
            first = next(judged, None)
            if first is None:
                raise ConfigError(f"no episodes in '{self.run_folder}'")
            writing = target / ".writing-verdicts.jsonl"
            try:
                target.mkdir(parents=True, exist_ok=True)
                with writing.open("w", encoding="utf-8") as file:
                    for one in chain([first], judged):
                        found.add(one)
                        file.write(json.dumps(one.to_json()) + "\n")
                writing.replace(target / "verdicts.jsonl")
            except OSError as error:
                raise ConfigError(f"cannot write into '{target}': {error.strerror}") from error
            finally:
                writing.unlink(missing_ok=True)
        return found

    def _plain(self, found: Agreement, options: dict[str, Any], target: Path) -> dict[str, Any]:
        counts: dict[str, dict[str, int]] = {}
        for (old, new), count in sorted(found.counts.items()):
            counts.setdefault(old.value, {})[new.value] = count
        old_reward, new_reward = found.rewards or (None, None)
        return {
            "verifier": self.verifier,
            "options": options,
            "episodes": found.episodes,
            "kept": found.kept,
            "not_judged": found.unjudged,
            "agreement": found.agreement,
            "reward": {"old": old_reward, "new": new_reward},
            "counts": counts,
            "changed": [one.to_json() for one in found.changed],
            "file": str(target / "verdicts.jsonl"),
        }


def _show(found: Agreement, verifier: str, target: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from verigym.verifiers.verdict import Outcome

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    news = [outcome for outcome in Outcome if any(new is outcome for _, new in found.counts)]
    table = Table("then", *(f"{verifier}: {new.value}" for new in news), title="episodes by outcome")
    for old in Outcome:
        row = [found.counts[old, new] for new in news]
        if any(row):
            table.add_row(old.value, *(f"{count:,}" for count in row))
    console.print(table)
    if found.agreement is not None and found.rewards is not None:
        then, now = found.rewards
        console.print(
            f"{found.agreement:.1%} of {found.episodes:,} episodes pass both times or neither; "
            f"mean reward {then:.3f}, now {now:.3f}",
            highlight=False,
        )
    if found.kept:
        console.print(f"{found.kept:,} episodes ended before a verifier was asked; they keep their verdicts")
    for one in found.changed[:LISTED]:
        console.print(
            f"{one.file}:{one.row} task {one.task_id}: {one.old.outcome.value}, now {one.new.outcome.value}: "
            f"{one.new.reason}",
            markup=False,
            highlight=False,
        )
    if len(found.changed) > LISTED:
        console.print(f"and {len(found.changed) - LISTED:,} more that changed")
    console.print(f"{target}: verdicts.jsonl", markup=False, highlight=False)
