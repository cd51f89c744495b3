"""The Gymnasium side: text environments and their ids.

Light on purpose: classes and functions are imported on first use, the ids on import.
"""

from typing import TYPE_CHECKING, Any

from verigym.envs.registration import register, registered_ids

if TYPE_CHECKING:
    from verigym.envs.conformance import assert_conforms
    from verigym.envs.question import QuestionEnv
    from verigym.envs.text_env import Budget, Reply, TextEnv
    from verigym.envs.vector import ThreadVectorEnv
    from verigym.envs.world import WorldEnv

__all__ = [
    "Budget",
    "QuestionEnv",
    "Reply",
    "TextEnv",
    "ThreadVectorEnv",
    "WorldEnv",
    "assert_conforms",
    "register",
    "registered_ids",
]

_LAZY = {
    "Budget": "text_env",
    "QuestionEnv": "question",
    "Reply": "text_env",
    "TextEnv": "text_env",
    "ThreadVectorEnv": "vector",
    "WorldEnv": "world",
    "assert_conforms": "conformance",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"verigym.envs.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'verigym.envs' has no attribute '{name}'")
