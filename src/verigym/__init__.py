"""Gymnasium environments with verifiable rewards for language models, and the learners that train on them.

Importing verigym registers every environment id, those of plugins too, and loads no torch.
"""

from typing import TYPE_CHECKING, Any

from verigym.envs import registered_ids
from verigym.tasks import plugins

if TYPE_CHECKING:
    from verigym.config import TrainConfig
    from verigym.training import Run, train

__version__ = "0.1.0"
__all__ = ["Run", "TrainConfig", "__version__", "registered_ids", "train"]

_LAZY = {"Run": "verigym.training", "train": "verigym.training", "TrainConfig": "verigym.config"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'verigym' has no attribute '{name}'")


plugins.load()
