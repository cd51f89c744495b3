"""What environments share: how their keyword arguments are read, and how long replies are cut."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from verigym import tasks as task_sets
from verigym.tasks.errors import ConfigError, UnknownNameError
from verigym.tasks.task import Task, TaskSet
from verigym.tasks.worlds.simulated import Player
from verigym.tasks.worlds.tool import Tool

Demonstrate = Callable[[Task, np.random.Generator], list[str]]


def load_tasks(
    env: type[Any], task_set: TaskSet | str, split: str, source: str | None, options: Mapping[str, Any]
) -> TaskSet:
    """The task set of an environment, loaded if it is a name. Raises UnknownNameError for an option nobody knows."""
    if not isinstance(task_set, TaskSet | str):
        raise ConfigError(f"task_set must be a TaskSet or the name of one, not {task_set!r}")
    own = set(inspect.signature(env.__init__).parameters) - {"self", "task_set", "task_options"}
    known = own | set(task_sets.options(task_set) if isinstance(task_set, str) else ())
    for name in options:
        if name not in known:
            raise UnknownNameError.of("environment option", name, known)
    if isinstance(task_set, str):
        return task_sets.load(task_set, split=split, source=source, **options)
    if source is not None:
        raise ConfigError("a TaskSet is given, so there is nothing to load: leave source out")
    return task_set


def chance_of(chance: float | str, options: Mapping[str, Any]) -> float | Callable[[], float]:
    """A number as it is; a path as the function that it names, given those of the options that it takes."""
    if not isinstance(chance, str):
        return chance
    function = resolve(chance)
    taken = inspect.signature(function).parameters
    return partial(function, **{name: value for name, value in options.items() if name in taken})


def resolve(path: str) -> Callable[..., Any]:
    """The function, or the Tool, that "module:attribute" names. Raises ConfigError."""
    module, _, attribute = path.partition(":")
    try:
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"'{path}' must name a function as module:attribute ({error})") from error
    if not callable(function) and not isinstance(function, Tool):
        raise ConfigError(f"'{path}' is not a function")
    return function  # type: ignore[no-any-return]


def player(name: str, given: Player | str | None) -> Player | None:
    """Who plays with the agent: one with an Agent's `act`, or what "module:function" makes. Raises ConfigError."""
    made = resolve(given)() if isinstance(given, str) else given
    if made is not None and not callable(getattr(made, "act", None)):
        raise ConfigError(f"{name} must be an Agent, which has a method act(messages, tools), not {made!r}")
    return made


def positive(name: str, value: Any) -> int:
    """`value`, if it is a whole number of at least 1. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, not {value!r}")
    return value


def shortened(reply: str, limit: int) -> str:
    """A tool's reply of at most `limit` characters, and a note of what was cut; `?` for what is no Unicode."""
    shown = reply[:limit].encode(errors="replace").decode()
    return shown if len(reply) <= limit else f"{shown}\n... (cut: {len(reply)} characters)"
