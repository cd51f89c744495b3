"""`verigym envs`: the table of environments."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from verigym.cli import parse_options
from verigym.envs import registered_ids
from verigym.tasks.plugins import Plugin, origin

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Envs:
    """List the environments, those of each plugin in a table of its own."""

    json: bool = False
    """Print them as a JSON list."""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> "Envs":
        """Its switch is a flag: `--json`."""
        return parse_options(cls, "envs", arguments, flags=True)  # type: ignore[no-any-return]

    def run(self) -> int:
        if self.json:
            rows = [_row(env_id) | {"plugin": _text(origin("environment", env_id))} for env_id in registered_ids()]
            print(json.dumps(rows, indent=1))
            return 0
        from rich.console import Console

        console, by_plugin = Console(), dict[Plugin | None, list[str]]()
        for env_id in registered_ids():
            by_plugin.setdefault(origin("environment", env_id), []).append(env_id)
        for plugin, ids in by_plugin.items():
            if plugin is not None:
                console.print(f"\n{plugin}", markup=False, highlight=False)
            console.print(_table(ids))
        return 0


def _row(env_id: str) -> dict[str, Any]:
    kwargs = gym.spec(env_id).kwargs
    return {
        "id": env_id,
        "task_set": str(kwargs.get("task_set", "")),
        "split": str(kwargs.get("split", "train")),
        "turns": kwargs.get("max_turns", 1),
        "tools": [str(tool).rpartition(":")[2] for tool in kwargs.get("tools", ())],
    }


def _text(plugin: Plugin | None) -> str | None:
    return None if plugin is None else str(plugin)


def _table(ids: Sequence[str]) -> "Table":
    from rich.table import Table

    table = Table("id", "task set", "split", "turns", "tools")
    for row in map(_row, ids):
        table.add_row(*(", ".join(value) if isinstance(value, list) else str(value) for value in row.values()))
    return table
