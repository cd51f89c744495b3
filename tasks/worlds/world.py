"""A simulated system: its state, the tools that read or change it, and the log of what was done."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from types import MethodType
from typing import Any, ClassVar, Self

from verigym.tasks.activity import doing
from verigym.tasks.errors import TaskDataError, UnknownNameError
from verigym.tasks.plugins import claim, look_up
from verigym.tasks.task import Task
from verigym.tasks.worlds.store import Place, Store, Tables, Touched
from verigym.tasks.worlds.tool import Tool, failure


@dataclass(frozen=True, slots=True)
class Event:
    """One call, what it gave, whether it failed, what it wrote, which records it read, and which line it answers.

    `named` are the fields that it updated, even to what they were.
    """

    name: str
    arguments: Mapping[str, Any]
    result: str
    failed: bool
    touched: tuple[Touched, ...] = ()
    seen: tuple[Place, ...] = ()
    line: int = 0
    named: tuple[Touched, ...] = ()


class World:
    """Tools over a `Store`: every public method of a subclass is one, as `Tool.from_function` takes it.

    A tool reads and writes `self.store` and nothing else, returns a text or plain data, and raises ValueError for
    what the agent did wrong: then nothing of the call stays but its event. `offered` names the tools that there are,
    if not all; `_last` those that end all, if they succeed: an environment runs nothing after them. A subclass with a
    coroutine function, a public static or class method, or a tool that is named like a part of this class, raises
    TypeError.
    """

    _last: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        for name, function in vars(cls).items():
            if not name.startswith("_") and name in {*vars(World), "store", "events", "offered", "line"}:
                raise TypeError(f"{cls.__name__}: no tool can be named '{name}', which is a part of every world")
            if not name.startswith("_") and isinstance(function, staticmethod | classmethod):
                raise TypeError(f"{cls.__name__}: '{name}' must be a plain method, as it is a tool of one world")
            if inspect.iscoroutinefunction(function):
                raise TypeError(f"{cls.__name__}: '{name}' must be written with def, as a world waits for nothing")

    def __init__(self, state: Tables, offered: Collection[str] | None = None) -> None:
        self.store = Store(state)
        self.events: list[Event] = []
        self.line = 0  # of the user's, which the calls are an answer to
        self.offered: tuple[str, ...] = ()
        self.offer(self.tools() if offered is None else offered)

    def offer(self, names: Collection[str]) -> None:
        """Offers further tools from now on. Raises UnknownNameError for one that there is not."""
        for name in names:
            if name not in self.tools():
                raise UnknownNameError.of(f"tool of {type(self).__name__} named", str(name), self.tools())
        wanted = {*self.offered, *names}
        self.offered = tuple(name for name in self.tools() if name in wanted)

    @classmethod
    @cache
    def tools(cls) -> Mapping[str, Tool]:
        """All tools by name, in the order of their definition, those of base classes first."""
        found = {}
        for kind in reversed(cls.__mro__[: cls.__mro__.index(World)]):
            for name, function in vars(kind).items():
                if callable(function) and not name.startswith("_"):
                    found[name] = Tool.from_function(MethodType(function, cls))  # whom it is bound to does not matter
        return found

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """The JSON schemas of the tools that are offered."""
        return [self.tools()[name].schema for name in self.offered]

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        """What the agent reads of a call: its result, or "error: ..." with what is wrong and expected."""
        before, self.store = self.store, self.store.fork()
        try:
            result, failed = self._result(name, arguments), False
        except ValueError as error:
            result, failed = failure(name, error), True
        done = self.store
        if failed:
            self.store = before
        touched, named = ((), ()) if failed else (done.touched, done.named)
        self.events.append(Event(name, arguments, result, failed, touched, done.seen, self.line, named))
        return result

    @property
    def ended(self) -> bool:
        """Whether a call was made that ends all."""
        return any(event.name in self._last and not event.failed for event in self.events)

    def fork(self) -> Self:
        """A world of its own with the same state and an empty log."""
        other = type(self)({}, self.offered)
        other.store, other.line = self.store.fork(), self.line
        return other

    def _result(self, name: str, arguments: dict[str, Any]) -> str:
        if name not in self.offered:
            raise ValueError(str(UnknownNameError.of("tool", name, self.offered)))
        problem = self.tools()[name].problem(arguments)
        if problem:
            raise ValueError(problem)
        with doing("tool", name):
            result = getattr(self, name)(**arguments)
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)


_REGISTRY: dict[str, str | type[World]] = {}


def register(name: str, world: str | type[World]) -> None:
    """Makes tasks with the metadata `{"world": name}` play in `world`, a class or its "module:attribute"."""
    claim("world", name, _REGISTRY)
    _REGISTRY[name] = world


def world_of(task: Task) -> World:
    """A fresh world as a task finds it: `metadata["world"]` names it, `["state"]` has its tables.

    `["tools"]`, if it is there, names the tools that are offered. Raises TaskDataError for a task without a world,
    UnknownNameError for a world that is not registered.
    """
    name, state = task.metadata.get("world"), task.metadata.get("state")
    if not isinstance(name, str) or not isinstance(state, Mapping):
        raise TaskDataError(f'task {task.id} needs metadata such as {{"world": "desk", "state": {{"orders": {{}}}}}}')
    world: type[World] = look_up("world", name, _REGISTRY)
    return world(state, task.metadata.get("tools"))


register("desk", "verigym.tasks.worlds.desk:Desk")
register("bfcl", "verigym.tasks.worlds.bfcl:Services")
for domain in ("Retail", "Airline"):
    register(f"tau_{domain.lower()}", f"verigym.tasks.worlds.tau:{domain}")
    register(f"tau2_{domain.lower()}", f"verigym.tasks.worlds.tau:{domain}2")
