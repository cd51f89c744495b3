"""Simulated systems that an agent acts on, and the tools it acts with."""

from verigym.tasks.worlds.scenario import Scenario
from verigym.tasks.worlds.store import Store
from verigym.tasks.worlds.tool import Tool
from verigym.tasks.worlds.user import ScriptedUser
from verigym.tasks.worlds.world import Event, World, register, world_of

__all__ = ["Event", "Scenario", "ScriptedUser", "Store", "Tool", "World", "register", "world_of"]
