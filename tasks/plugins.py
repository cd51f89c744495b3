"""Packages that add names of their own: finds and loads them, and tells who registered what and who is left out.

A distribution names in the entry point group `verigym.plugins` a module that registers on import, or a function
("module:function") that registers when it is called. `import verigym` loads them all, in every process.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from verigym.tasks.errors import ConfigError, UnknownNameError, VerigymError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "verigym.plugins"

_LOG = logging.getLogger("verigym.plugins")


@dataclass(frozen=True, slots=True)
class Plugin:
    """An entry point, and the distribution that it comes from, such as "dials 0.1.0"."""

    name: str
    module: str
    distribution: str

    def __str__(self) -> str:
        return f"plugin '{self.name}' of {self.distribution}"


_plugins: list[Plugin] = []
_failed: dict[Plugin, str] = {}
_claims: dict[tuple[str, str], tuple[Plugin, MutableMapping[str, Any]]] = {}


def load() -> None:
    """Loads the plugins. One that fails is left out with all that it has registered, and a warning says so."""
    from importlib.metadata import entry_points

    found = {_plugin(entry): entry for entry in entry_points(group=GROUP)}
    _plugins.extend(found)
    for plugin, entry in found.items():
        try:
            loaded = entry.load()
            if entry.attr:
                loaded()
        except (Exception, SystemExit) as error:  # whatever a plugin does wrong, verigym is there
            _leave_out(plugin, error)


def claim(kind: str, name: str, table: MutableMapping[str, Any]) -> None:
    """Notes that `name` is registered in `table` by the plugin whose code is calling, if one is.

    Raises ConfigError if the name is somebody else's: only a script may register a name again.
    """
    plugin = _registering()
    if plugin is None:
        return
    owner = origin(kind, name)
    if name in table and owner != plugin:
        raise ConfigError(f"the {kind} '{name}' is taken already" + (f" by the {owner}" if owner else ""))
    _claims[kind, name] = plugin, table


def origin(kind: str, name: str) -> Plugin | None:
    """The plugin that registered this name, None if it was none."""
    return _claims[kind, name][0] if (kind, name) in _claims else None


def look_up(kind: str, name: str, table: MutableMapping[str, Any]) -> Any:
    """What is registered as `name`; a "module:attribute" is imported.

    Raises UnknownNameError for a name that is not there, ConfigError for one whose module cannot be imported.
    """
    if name not in table:
        raise unknown(kind, name, table)
    found = table[name]
    if not isinstance(found, str):
        return found
    module, _, attribute = found.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the {kind} '{name}' ({found}) cannot be imported: {_one_line(error)}") from error


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not registered. It names the plugins that are left out: one of them may have it."""
    left_out = "".join(f"; the {plugin} is left out: {why}" for plugin, why in _failed.items())
    return UnknownNameError(f"{UnknownNameError.of(kind, name, known)}{left_out}")


def _plugin(entry: EntryPoint) -> Plugin:
    distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"
    return Plugin(entry.name, entry.module, distribution)


def _leave_out(plugin: Plugin, error: BaseException) -> None:
    for kind, name in [claimed for claimed, (owner, _) in _claims.items() if owner == plugin]:
        _, table = _claims.pop((kind, name))
        table.pop(name, None)
    _failed[plugin] = _one_line(error)
    early = plugin.module.partition(".")[0]
    if getattr(getattr(sys.modules.get(early), "__spec__", None), "_initializing", False):
        _failed[plugin] += f" ('{early}' is being imported and imports verigym: let it register on import)"
    _LOG.warning("verigym: the %s is left out: %s", plugin, _failed[plugin])


def _registering() -> Plugin | None:
    """The plugin whose code has called `register`, which has called `claim`: the innermost of those that run."""
    frame = sys._getframe(3) if _plugins else None
    while frame is not None:
        caller = str(frame.f_globals.get("__name__"))
        package = caller.partition(".")[0]
        if package == "verigym":
            return None  # a module of ours that the plugin is the first to import
        same = [plugin for plugin in _plugins if plugin.module.partition(".")[0] == package]
        if same:
            own = [plugin for plugin in same if f"{caller}.".startswith(f"{plugin.module}.")]
            return max(own, key=lambda plugin: len(plugin.module), default=same[0])
        frame = frame.f_back
    return None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, VerigymError) else f"{type(error).__name__}: {text}"
