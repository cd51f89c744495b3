"""What the commands that play with a model share: environments from `--env`, `--option key=value` pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from verigym.tasks.errors import ConfigError


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
