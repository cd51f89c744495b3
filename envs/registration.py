"""The table of environment ids. Importing it registers them with Gymnasium and loads nothing heavy."""

from typing import Any

import gymnasium as gym

BOXED = "Put your final answer in \\boxed{}."
QUESTION = "verigym.envs.question:QuestionEnv"

_IDS: list[str] = []


def register(env_id: str, *, entry_point: str = QUESTION, kwargs: dict[str, Any]) -> None:
    """Registers one id. `gym.make(id, **overrides)` replaces any of `kwargs`."""
    # PassiveEnvChecker would warn about every text space that is not its own Text; check_env covers it.
    gym.register(env_id, entry_point=entry_point, kwargs=kwargs, disable_env_checker=True)
    if env_id not in _IDS:
        _IDS.append(env_id)


def registered_ids() -> list[str]:
    """The ids that verigym and its plugins have registered."""
    return list(_IDS)


register(
    "verigym/GSM8K-v0",
    kwargs={"task_set": "gsm8k", "instructions": BOXED, "max_tokens_per_turn": 1024, "chance": 0.02},
)
register(
    "verigym/MATH500-v0",
    kwargs={
        "task_set": "math500",
        "split": "test",
        "instructions": BOXED,
        "max_tokens_per_turn": 4096,
        "chance": 0.04,
    },
)
register(
    "verigym/Arithmetic-v0",
    kwargs={
        "task_set": "arithmetic",
        "instructions": BOXED,
        "max_tokens_per_turn": 256,
        "chance": "verigym.tasks.arithmetic:chance",
    },
)
register(
    "verigym/Calculator-v0",
    kwargs={
        "task_set": "calculator",
        "instructions": BOXED,
        "tools": ("verigym.tasks.calculator:calculator",),
        "demonstrate": "verigym.tasks.calculator:demonstrate",
        "max_turns": 4,
        "max_tokens_per_turn": 256,
    },
)
