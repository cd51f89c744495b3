"""A task as it is played: its world, its user, and what the world was whenever the user went on."""

from __future__ import annotations

from collections.abc import Mapping

from verigym.tasks.errors import TaskDataError
from verigym.tasks.task import Task
from verigym.tasks.worlds.customer import Customer
from verigym.tasks.worlds.simulated import Player, SimulatedUser
from verigym.tasks.worlds.store import Changes
from verigym.tasks.worlds.user import ScriptedUser
from verigym.tasks.worlds.world import world_of


class Scenario:
    """A fresh world and a fresh user, made from a task's metadata.

    The user is `metadata["user"]`: lines, see ScriptedUser, or the script of a Customer; without it the prompt is all
    that there is to say. The tools that a line names, `{"tools": [name, ...]}`, are offered from then on. A `player`
    plays the user instead, see SimulatedUser, from `metadata["instruction"]`.
    Raises what `world_of` raises, and TaskDataError for a player without an instruction.
    """

    def __init__(self, task: Task, player: Player | None = None) -> None:
        self.world = world_of(task)
        self.user = _user(task, player)
        self._states: list[Changes] = []

    def hear(self, message: str) -> tuple[str, bool]:
        """What the user says to a message, and whether it was the last word."""
        before = self.user.answered
        said, final = self.user.reply(message)
        if self.user.answered > before and not final:
            self._states.append(self.world.store.changes())
            self.world.line = self.user.answered
            if isinstance(self.user, ScriptedUser):
                self.world.offer(self.user.line.get("tools", ()))
        return said, final

    @property
    def states(self) -> list[Changes]:
        """What differed from the world's start each time that the user went on to a new line, and what differs now."""
        return [*self._states, self.world.store.changes()]


def _user(task: Task, player: Player | None) -> ScriptedUser | Customer | SimulatedUser:
    script, instruction = task.metadata.get("user"), task.metadata.get("instruction")
    if player is not None:
        if not isinstance(instruction, str):
            raise TaskDataError(f"task {task.id} has no instruction for who plays its user; leave the option user out")
        return SimulatedUser(player, instruction)
    return Customer(script) if isinstance(script, Mapping) else ScriptedUser(script or [{"says": task.prompt}])
