"""What a worker does for GEM: plays one of its environments. Imports nothing of verigym."""

from __future__ import annotations

from typing import Any

import gem
import gem.envs  # registers the ids
from gem.envs.registration import ENV_REGISTRY
from gem.utils.constants import TERMINAL_STATE


def describe(spec: dict[str, Any]) -> dict[str, Any]:
    """{} for an environment that can be made; which there are, for a name that none has."""
    if spec["game"] not in ENV_REGISTRY:
        return {"names": list(ENV_REGISTRY)}
    Session(spec, 0, 0).close()
    return {}


class Session:
    """An episode of an environment; `seed` decides its task."""

    def __init__(self, spec: dict[str, Any], seed: int, index: int) -> None:
        self._env = gem.make(spec["game"], **spec["options"])
        self._seed = seed % 2**31

    def opening(self) -> dict[str, Any]:
        observation, info = self._env.reset(seed=self._seed)
        text = _shown(observation, info)
        return {"text": text, "prompt": text}

    def move(self, move: dict[str, Any]) -> dict[str, Any]:
        """Plays the agent's turn."""
        observation, reward, terminated, truncated, info = self._env.step(move["text"])
        if not (terminated or truncated):
            return {"text": _shown(observation, info), "reward": float(reward)}
        text = "" if observation == TERMINAL_STATE else str(observation)
        return {"over": True, "text": text, "reward": float(reward), "reason": text or "the environment ended"}

    def close(self) -> None:
        """Ends what the environment started."""
        if hasattr(self._env, "close"):
            self._env.close()


def _shown(observation: Any, info: dict[str, Any]) -> str:
    """What the agent reads: GEM's wrappers put the suffix after the observation, and so do we."""
    return "\n".join(filter(None, [str(observation).strip(), str(info.get("suffix") or "").strip()]))
