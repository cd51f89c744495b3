"""What the commands that need a text environment share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verigym.envs.mixture import EnvSpec
from verigym.envs.text_env import TextEnv
from verigym.tasks.errors import ConfigError


def text_env(env_id: str, kwargs: Mapping[str, Any], *, source: str | None, split: str | None) -> TextEnv:
    """A new environment. Raises ConfigError for one that is no TextEnv, UnknownNameError for a wrong name."""
    named = {name: value for name, value in (("source", source), ("split", split)) if value is not None}
    for name in named:
        if name in kwargs:
            raise ConfigError(f"{name} is given twice: as --{name} and as --option")
    env = EnvSpec(env_id, kwargs={**kwargs, **named}).make().unwrapped
    if not isinstance(env, TextEnv):
        raise ConfigError(f"'{env_id}' is no text environment; `verigym envs` lists those that are")
    return env
