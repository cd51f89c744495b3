"""A task as it is played: its world, its user, and what the world was whenever the user went on."""

from __future__ import annotations

from verigym.tasks.task import Task
from verigym.tasks.worlds.store import Changes
from verigym.tasks.worlds.user import ScriptedUser
from verigym.tasks.worlds.world import world_of


class Scenario:
    """A fresh world and a fresh user, made from a task's metadata.

    The user's lines are `metadata["user"]`, see ScriptedUser; without them the prompt is all that there is to say. The
    tools that a line names, `{"tools": [name, ...]}`, are offered from then on.
    Raises what `world_of` raises.
    """

    def __init__(self, task: Task) -> None:
        self.world = world_of(task)
        self.user = ScriptedUser(task.metadata.get("user") or [{"says": task.prompt}])
        self._states: list[Changes] = []

    def hear(self, message: str) -> tuple[str, bool]:
        """What the user says to a message, and whether it was the last word."""
        before = self.user.answered
        said, final = self.user.reply(message)
        if self.user.answered > before and not final:
            self._states.append(self.world.store.changes())
            self.world.line = self.user.answered
            self.world.offer(self.user.line.get("tools", ()))
        return said, final

    @property
    def states(self) -> list[Changes]:
        """What differed from the world's start each time that the user went on to a new line, and what differs now."""
        return [*self._states, self.world.store.changes()]
