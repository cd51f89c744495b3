"""What commands share: types of common options, and how `--env ID` and `--option key=value` are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import tyro
import yaml

from verigym.tasks.errors import ConfigError

Source = Annotated[str | None, tyro.conf.arg(metavar="SOURCE", help_behavior_hint="(default: its public hub id)")]
Split = Annotated[str | None, tyro.conf.arg(metavar="SPLIT", help_behavior_hint="(default: the environment's)")]
Limit = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: all)")]
Options = Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")]
"""Types of fields that several commands have; the hint says what None stands for."""


def take(arguments: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    """The values of every `name VALUE` or `name=VALUE`, and the other arguments."""
    values, rest, waiting = [], [], iter(arguments)
    for argument in waiting:
        if argument == name:
            value = next(waiting, None)
            if value is None:
                raise ConfigError(f"{name} needs a value")
            values.append(value)
        elif argument.startswith(f"{name}="):
            values.append(argument.removeprefix(f"{name}="))
        else:
            rest.append(argument)
    return values, rest


def key_values(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs; a value is read as YAML, so that 3 is a number and x is text. Raises ConfigError."""
    found = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise ConfigError(f"an option is written key=value, not '{pair}'")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            if value.lstrip()[:1] in ("{", "[", "'", '"'):
                raise ConfigError(f"the value of '{key}' is not YAML: {' '.join(str(error).split())[:200]}") from error
            found[key] = value
    return found
