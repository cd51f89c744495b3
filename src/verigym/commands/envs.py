"""`verigym envs`: the table of environments."""

from dataclasses import dataclass

import gymnasium as gym

from verigym.envs import registered_ids


@dataclass(frozen=True)
class Envs:
    """List the environments."""

    def run(self) -> int:
        from rich.console import Console
        from rich.table import Table

        table = Table("id", "task set", "split", "turns", "tools")
        for env_id in registered_ids():
            kwargs = gym.spec(env_id).kwargs
            tools = ", ".join(str(tool).rpartition(":")[2] for tool in kwargs.get("tools", ()))
            row = (kwargs.get("task_set", ""), kwargs.get("split", "train"), kwargs.get("max_turns", 1), tools)
            table.add_row(env_id, *map(str, row))
        Console().print(table)
        return 0
