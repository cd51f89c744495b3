"""What was played: the exact tokens of an episode, whose they are, and what they earned."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verigym.verifiers.verdict import Outcome, Verdict


@dataclass(frozen=True, slots=True)
class Plan:
    """An episode to play: which environment (its index in a mixture), task and group, and its two seeds.

    Members of a group share `seed`, so they start from one state, and differ in `sampling_seed`.
    """

    env: int
    task_id: str
    group_id: int
    seed: int
    sampling_seed: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the agent: its tokens are `token_ids[start:end]` of the episode."""

    start: int
    end: int
    reward: float
    stop_reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """An episode as the learner sees it.

    `token_ids` (T,) exactly as fed and sampled; `mask` (T,) 1 on the policy's own tokens; `logprobs` (T,) of the
    sampler in nats and `versions` (T,) of its weights, 0 and -1 where the mask is 0. Nothing is rebuilt from text.
    """

    env_id: str
    task_id: str
    group_id: int
    seed: int
    token_ids: NDArray[np.int64]
    mask: NDArray[np.bool_]
    logprobs: NDArray[np.float32]
    versions: NDArray[np.int64]
    turns: tuple[Turn, ...]
    messages: tuple[Mapping[str, Any], ...]
    terminated: bool
    truncated: bool
    verdict: Verdict

    @property
    def reward(self) -> float:
        """The return: the sum of the turns' rewards; NaN if the episode could not be judged."""
        return math.nan if self.verdict.outcome is Outcome.INFRA_ERROR else sum(turn.reward for turn in self.turns)

    @property
    def num_policy_tokens(self) -> int:
        return int(self.mask.sum())

    def to_json(self) -> dict[str, Any]:
        """Plain data, from which `from_json` makes the same episode."""
        verdict = self.verdict
        return {
            "env_id": self.env_id,
            "task_id": self.task_id,
            "group_id": self.group_id,
            "seed": self.seed,
            "reward": None if math.isnan(self.reward) else self.reward,
            "token_ids": self.token_ids.tolist(),
            "mask": self.mask.astype(int).tolist(),
            "logprobs": [float(f"{value:.9g}") for value in self.logprobs.tolist()],
            "versions": self.versions.tolist(),
            "turns": [[turn.start, turn.end, turn.reward, turn.stop_reason] for turn in self.turns],
            "messages": [dict(message) for message in self.messages],
            "terminated": self.terminated,
            "truncated": self.truncated,
            "verdict": {
                "reward": None if math.isnan(verdict.reward) else verdict.reward,
                "outcome": verdict.outcome.value,
                "reason": verdict.reason,
                "components": dict(verdict.components),
            },
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Episode:
        """The episode that `to_json` wrote (a verdict's details are not kept)."""
        verdict = row["verdict"]
        reward = math.nan if verdict["reward"] is None else verdict["reward"]
        return cls(
            env_id=row["env_id"],
            task_id=row["task_id"],
            group_id=row["group_id"],
            seed=row["seed"],
            token_ids=np.array(row["token_ids"], np.int64),
            mask=np.array(row["mask"], np.bool_),
            logprobs=np.array(row["logprobs"], np.float32),
            versions=np.array(row["versions"], np.int64),
            turns=tuple(Turn(*turn) for turn in row["turns"]),
            messages=tuple(row["messages"]),
            terminated=row["terminated"],
            truncated=row["truncated"],
            verdict=Verdict(reward, Outcome(verdict["outcome"]), verdict["reason"], verdict["components"]),
        )


def derive_seed(*parts: int | str) -> int:
    """A seed of 63 bits that depends on every part: nothing here draws from global random state."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def mean_reward(episodes: Sequence[Episode]) -> float:
    """Mean return of the episodes that could be judged; NaN if there is none."""
    rewards = [episode.reward for episode in episodes if not math.isnan(episode.reward)]
    return float(np.mean(rewards)) if rewards else math.nan
