"""The Gymnasium side: text environments and their ids.

Light on purpose: `TextEnv` and `QuestionEnv` are imported on first use, the ids on import.
"""

from typing import TYPE_CHECKING, Any

from verigym.envs.registration import register, registered_ids

if TYPE_CHECKING:
    from verigym.envs.question import QuestionEnv
    from verigym.envs.text_env import Budget, Reply, TextEnv

__all__ = ["Budget", "QuestionEnv", "Reply", "TextEnv", "register", "registered_ids"]

_LAZY = {"QuestionEnv": "question", "Budget": "text_env", "Reply": "text_env", "TextEnv": "text_env"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"verigym.envs.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'verigym.envs' has no attribute '{name}'")
