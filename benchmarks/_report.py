"""What the benchmarks of learning share: jobs in processes of their own, Markdown tables, and sections of the docs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1] / "docs"


class Jobs:
    """Jobs of a benchmark, each in a process of its own and with a JSON file for what it found.

    A job whose file is there is not done again, so that a benchmark that was cut off goes on. Raises SystemExit if
    the folder holds a benchmark of other settings.
    """

    def __init__(self, script: str, output: Path, settings: dict[str, Any]) -> None:
        self.script, self.output = script, output
        output.mkdir(parents=True, exist_ok=True)
        known, text = output / "settings.json", json.dumps(settings, indent=1, default=str) + "\n"
        if known.exists() and known.read_text() != text:
            raise SystemExit(f"'{output}' holds a benchmark of other settings; choose another --output")
        known.write_text(text)

    def path(self, job: str) -> Path:
        return self.output / f"{job}.json"

    def run(self, job: str) -> Any:
        """What the job found, now or before."""
        path = self.path(job)
        if not path.exists():
            started = time.monotonic()
            subprocess.run([sys.executable, self.script, *sys.argv[1:], "--job", job], check=True)
            print(f"{job}: {time.monotonic() - started:.0f} s", flush=True)
        return json.loads(path.read_text())

    def write(self, job: str, found: Any) -> None:
        """Keeps what a job found, as a whole or not at all."""
        writing = self.output / f".writing-{job}"
        writing.write_text(json.dumps(found, indent=1) + "\n")
        writing.replace(self.path(job))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table; the first is the head."""
    head, *body = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def paragraph(text: str) -> str:
    """A text in lines as long as those of the docs."""
    return textwrap.fill(text, 128, break_long_words=False, break_on_hyphens=False)


def spread(values: Iterable[float], form: Callable[[float], str]) -> str:
    """A mean and, of several that differ, the lowest and the highest."""
    numbers = list(values)
    mean, low, high = (form(value) for value in (sum(numbers) / len(numbers), min(numbers), max(numbers)))
    return mean if low == high else f"{mean} ({low} to {high})"


def new_figure(columns: int, rows: int = 1, *, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A figure on white, which is as readable on a dark page, and its panels."""
    figure = Figure(figsize=(4.2 * columns, height * rows), layout="constrained", facecolor="white")
    panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def write_docs(section: str, text: str, pictures: Sequence[Path]) -> None:
    """Puts the text between the section's marks, on whichever page has them, and its pictures into docs/learners/."""
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    for page in sorted(DOCS.rglob("*.md")):
        before, mark, rest = page.read_text(encoding="utf-8").partition(begin)
        _, last, after = rest.partition(end)
        if mark and last:
            break
    else:
        raise SystemExit(f"no page under {DOCS} has the marks '{begin}' and '{end}'")
    for picture in pictures:
        shutil.copy(picture, DOCS / "learners")
    page.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}", encoding="utf-8")
