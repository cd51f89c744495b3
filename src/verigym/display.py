"""A run on the terminal: progress, the latest figures, and what it waits for."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from verigym.agents.collect import Collector
from verigym.config import TrainConfig


class Display:
    """A live panel on a terminal; one line per step elsewhere."""

    def __init__(self, config: TrainConfig, collector: Collector) -> None:
        self.console, self.collector = Console(), collector
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
        )
        self._steps = self._progress.add_task("steps", total=config.steps)
        self._episodes = self._progress.add_task("episodes", total=config.groups * config.group_size)
        self._latest: dict[str, Any] = {}
        self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=4)
        self._printed = 0.0

    def start(self) -> None:
        if self.console.is_terminal:
            self._live.start()

    def stop(self) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def watch(self, collector: Collector) -> None:
        """Shows what the episodes of this collector do."""
        self.collector = collector

    def say(self, text: str) -> None:
        """Prints a line above the panel."""
        self.console.print(text, markup=False)

    def refresh(self) -> None:
        """Called as episodes end."""
        done, total = self.collector.progress
        self._progress.update(self._episodes, completed=done, total=total or None)

    def update(self, step: int, metrics: dict[str, Any]) -> None:
        """Called with the metrics of a step."""
        self._latest |= metrics
        self._progress.update(self._steps, completed=step)
        if self.console.is_terminal:
            return
        if "eval/pass_rate" in metrics:
            interval = f"[{metrics['eval/low']:.3f}, {metrics['eval/high']:.3f}]"
            self.console.print(
                f"step {step}  held-out pass rate {metrics['eval/pass_rate']:.3f} {interval}", markup=False
            )
        elif step % 10 == 0 or time.monotonic() - self._printed > 10:
            self._printed = time.monotonic()
            self.console.print(f"step {step}  {self._figures()}", markup=False)

    def _figures(self) -> str:
        latest = self._latest
        seconds = sum(latest.get(f"time/{part}", 0.0) for part in ("collect", "update", "sync"))
        parts = [f"reward {latest['reward']:.3f}", f"pass rate {latest['pass_rate']:.3f}"] if "reward" in latest else []
        if seconds:
            parts.append(f"{latest['policy_tokens'] / seconds:,.0f} policy tokens/s")
            parts.append(f"{seconds:.2f} s a step")
        return "  ".join(parts)

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 2))
        table.add_row("now", self._figures() or "starting")
        if "eval/pass_rate" in self._latest:
            table.add_row("held-out", f"pass rate {self._latest['eval/pass_rate']:.3f}")
        waiting = ", ".join(f"{count} for the {what}" for what, count in self.collector.waiting().items() if count)
        table.add_row("waits", waiting or "learner")
        return Group(self._progress, table)
