"""`verigym envs`: the table of environments."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gymnasium as gym

from verigym.envs import registered_ids
from verigym.tasks.plugins import Plugin, origin

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Envs:
    """List the environments, those of each plugin in a table of its own."""

    def run(self) -> int:
        from rich.console import Console

        console, by_plugin = Console(), dict[Plugin | None, list[str]]()
        for env_id in registered_ids():
            by_plugin.setdefault(origin("environment", env_id), []).append(env_id)
        for plugin, ids in by_plugin.items():
            if plugin is not None:
                console.print(f"\n{plugin}", markup=False, highlight=False)
            console.print(_table(ids))
        return 0


def _table(ids: Sequence[str]) -> "Table":
    from rich.table import Table

    table = Table("id", "task set", "split", "turns", "tools")
    for env_id in ids:
        kwargs = gym.spec(env_id).kwargs
        tools = ", ".join(str(tool).rpartition(":")[2] for tool in kwargs.get("tools", ()))
        row = (kwargs.get("task_set", ""), kwargs.get("split", "train"), kwargs.get("max_turns", 1), tools)
        table.add_row(env_id, *map(str, row))
    return table
