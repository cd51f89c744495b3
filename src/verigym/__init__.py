"""Gymnasium environments with verifiable rewards for language models, and the learners that train on them.

Importing verigym registers every environment id, those of plugins too, and loads no torch.
"""

from typing import TYPE_CHECKING, Any

from verigym.envs import registered_ids
from verigym.tasks import plugins

if TYPE_CHECKING:
    from verigym.agents.learners.config import GRPOConfig, PPOConfig
    from verigym.config import SFTConfig, TrainConfig
    from verigym.envs.mixture import EnvSpec
    from verigym.supervised import sft
    from verigym.training import Run, train

__version__ = "0.1.0"
__all__ = [
    "EnvSpec",
    "GRPOConfig",
    "PPOConfig",
    "Run",
    "SFTConfig",
    "TrainConfig",
    "__version__",
    "registered_ids",
    "sft",
    "train",
]

_LAZY = {
    "EnvSpec": "verigym.envs.mixture",
    "GRPOConfig": "verigym.agents.learners.config",
    "PPOConfig": "verigym.agents.learners.config",
    "Run": "verigym.training",
    "SFTConfig": "verigym.config",
    "TrainConfig": "verigym.config",
    "sft": "verigym.supervised",
    "train": "verigym.training",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'verigym' has no attribute '{name}'")


plugins.load()
