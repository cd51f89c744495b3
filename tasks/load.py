"""The table of task sets by name, and `load`, which makes one."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

from verigym.tasks._cache import read_once
from verigym.tasks.errors import ConfigError, UnknownNameError
from verigym.tasks.plugins import claim, look_up
from verigym.tasks.task import TaskSet

Factory = Callable[..., TaskSet]

_REGISTRY: dict[str, str | Factory] = {}


def register(name: str, factory: str | Factory) -> None:
    """Makes `load(name)` call `factory`, a callable or "module:attribute" that is imported on first use.

    The factory takes `split` by keyword, `source` if the set is read from data, and its options by name; it
    checks its own splits. A name that is registered again is replaced; a plugin may replace only its own.
    """
    claim("task set", name, _REGISTRY)
    _REGISTRY[name] = factory


def registered() -> list[str]:
    """The names that `load` takes."""
    return sorted(_REGISTRY)


def options(name: str) -> list[str]:
    """The options of the task set `name`, other than `split` and `source`. Raises UnknownNameError."""
    return [option for option in _parameters(_factory(name)) if option not in ("split", "source")]


def load(name: str, split: str = "train", source: str | os.PathLike[str] | None = None, **options: Any) -> TaskSet:
    """The task set registered as `name`.

    `source` is where a data set is read from (default: its public hub id): a hub id ("org/name"), a file
    (JSONL, JSONL.gz, Parquet; taken whole, whatever the split) or a folder. What exists on disk is a path;
    so is what ends like a data file, begins with `.`, `/` or `~`, or has not exactly one slash. Of a folder,
    its data files whose name holds the split's name as a word are read (`train.jsonl.gz`,
    `test_first_half.jsonl`, `train-00000-of-00002.parquet`), sorted and one after the other; they lie in the
    folder itself, or else in its `data/`, or else in the subfolder named as the hub's configuration. A set
    with a single split takes all data files where none is named after any split.

    `options` are the set's own, such as `level` and `seed` of a generated one; `options(name)` lists them.
    What is read from a source is kept, as task sets do not change: the same call gives the same object until a
    file of the source changes.

    Raises UnknownNameError for a wrong name, split or option, and for a source given to a generated set;
    ConfigError for an option's value; TaskDataError for a source that is missing or holds a bad row.
    """
    factory = _factory(name)
    known = _parameters(factory)
    own = [option for option in known if option not in ("split", "source")]
    for option in options:
        if option not in own:
            raise UnknownNameError.of(f"option of task set '{name}' named", option, own)
    if "source" not in known and source is None:
        return factory(split=split, **options)
    if "source" not in known:
        raise UnknownNameError(
            f"task set '{name}' is generated and takes no source; its options: {', '.join(own) or 'none'}"
        )
    if source is not None and not isinstance(source, str | os.PathLike):
        raise ConfigError(f"source must be a hub id or a path, not {source!r}")
    return read_once(factory, split, None if source is None else os.fspath(source), options)


def _factory(name: str) -> Factory:
    factory: Factory = look_up("task set", str(name), _REGISTRY)
    assert callable(factory), f"{name}: {factory!r} is not a function"
    return factory


def _parameters(factory: Factory) -> list[str]:
    """The names that can be given to `factory` by keyword."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, parameter in inspect.signature(factory).parameters.items() if parameter.kind in kinds]


register("gsm8k", "verigym.tasks.gsm8k:load")
register("math500", "verigym.tasks.math500:load")
register("math", "verigym.tasks.math:load")
register("svamp", "verigym.tasks.svamp:load")
register("gsm_hard", "verigym.tasks.gsm_hard:load")
register("aqua", "verigym.tasks.aqua:load")
register("olympiadbench", "verigym.tasks.olympiadbench:load")
register("college_math", "verigym.tasks.college_math:load")
register("arithmetic", "verigym.tasks.arithmetic:load")
register("calculator", "verigym.tasks.calculator:load")
register("countdown", "verigym.tasks.countdown:load")
register("reasoning_gym", "verigym.tasks.reasoning_gym:load")
register("humaneval", "verigym.tasks.humaneval:load")
register("humanevalplus", "verigym.tasks.humanevalplus:load")
register("mbpp", "verigym.tasks.mbpp:load")
register("mbpp_sanitized", "verigym.tasks.mbpp:load_sanitized")
register("mbppplus", "verigym.tasks.mbppplus:load")
register("code_contests", "verigym.tasks.code_contests:load")
register("livecodebench", "verigym.tasks.livecodebench:load")
register("apps", "verigym.tasks.apps:load")
register("tiny_code", "verigym.tasks.tiny_code:load")
register("desk", "verigym.tasks.desk:load")
register("tau_retail", "verigym.tasks.tau:load_retail")
register("tau_airline", "verigym.tasks.tau:load_airline")
register("bfcl", "verigym.tasks.bfcl:load")
register("bfcl_multi_turn", "verigym.tasks.bfcl_multi_turn:load")
register("custom", "verigym.tasks.custom:load")
register("curated", "verigym.tasks.curated:load")
