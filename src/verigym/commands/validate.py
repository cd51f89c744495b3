"""`verigym validate`: whether an environment's rewards can be trusted."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from verigym.cli import parse_options
from verigym.commands._arguments import Limit, Options, Source, Split, key_values
from verigym.commands._environment import text_env
from verigym.envs.text_env import TextEnv
from verigym.envs.validation import GoldFailure, Validation, validate

LISTED = 50


@dataclass(frozen=True)
class Validate:
    """Verify an environment's gold answers, and measure what policies earn that know nothing.

    Every gold answer must earn full reward, and no null policy more than chance + 0.02: exit status 0. If that
    does not hold it is 1, for wrong input 2.
    """

    id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")]
    """The environment, such as verigym/GSM8K-v0."""
    source: Source = None
    """Where the data is read from: a hub id, a file or a folder."""
    split: Split = None
    """The split of the tasks."""
    limit: Limit = None
    """Verify so many gold answers, spread evenly over the set."""
    option: Options = ()
    """A keyword argument of the environment as key=value, such as level=3."""
    json: bool = False
    """Print the findings as one JSON object."""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Validate:
        """Its switch is a flag: `--json`."""
        return parse_options(cls, "validate", arguments, flags=True)  # type: ignore[no-any-return]

    def run(self) -> int:
        """Prints the findings; returns the exit status."""
        env = text_env(self.id, key_values(self.option), source=self.source, split=self.split)
        started = time.perf_counter()
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("gold answers")
            found = validate(
                env,
                limit=self.limit,
                on_progress=lambda done, total: progress.update(bar, completed=done, total=total),
            )
        env.close()
        if self.json:
            print(json.dumps(_plain(self.id, env, found), indent=1))
        else:
            _show(self.id, env, found, time.perf_counter() - started)
        return 0 if found.ok else 1


def _plain(env_id: str, env: TextEnv, found: Validation) -> dict[str, object]:
    """The findings as JSON; the reward of a null policy that could not be judged is null."""
    rewards = {name: None if math.isnan(reward) else reward for name, reward in found.null_rewards.items()}
    source = {"env": env_id, "task_set": env.tasks.name, "split": env.tasks.split, "left_out": list(env.tasks.left_out)}
    judged = {"null_rewards": rewards, "limit": found.limit, "earning": found.earning, "valid": found.ok}
    return {**source, **asdict(found), **judged}


def _show(env_id: str, env: TextEnv, found: Validation, seconds: float) -> None:
    console = Console(soft_wrap=True, highlight=False)
    verified = found.golds - len(found.failures)
    console.print(f"{env_id}, {env.tasks.name}/{env.tasks.split}: {verified} of {found.golds} gold answers verify")
    if found.unnamed:
        console.print(f"{found.unnamed} tasks name no gold answer: only their verifier knows one")
    for line in env.tasks.left_out:
        console.print(f"left out: {escape(line)}")
    if found.failures:
        console.print(_table(("task", "outcome", "reason"), map(_row, found.failures[:LISTED])))
    if len(found.failures) > LISTED:
        console.print(f"and {len(found.failures) - LISTED} more")
    rows = [
        (name, f"{reward:.4f}", "too much" if name in found.earning else "ok")
        for name, reward in found.null_rewards.items()
    ]
    console.print(_table(("null policy", "mean reward", f"at most {found.limit:.4f}"), rows))
    judged = "valid" if found.ok else "NOT VALID"
    console.print(f"{judged}: chance {found.chance:.4f}, null policies on {found.played} tasks, {seconds:.1f} s")


def _row(failure: GoldFailure) -> tuple[str, str, str]:
    return escape(failure.task_id), failure.outcome, escape(failure.reason)


def _table(columns: Iterable[str], rows: Iterable[tuple[str, str, str]]) -> Table:
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    return table
