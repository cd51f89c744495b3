"""What was played: the exact tokens of an episode, whose they are, and what they earned."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verigym.verifiers.verdict import Outcome, Verdict


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Where a fork begins: before turn `turn` of another episode, with its tokens and its environment's snapshot."""

    turn: int
    token_ids: NDArray[np.int64]
    snapshot: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """An episode to play: which environment (its index in a mixture), task and group, and its two seeds.

    Members of a group share `seed`, so they start from one state, and differ in `sampling_seed`. A fork has a `start`.
    """

    env: int
    task_id: str
    group_id: int
    seed: int
    sampling_seed: int
    start: Start | None = None


class Truncation(StrEnum):
    """What ended an episode before its task did."""

    TOKENS = "tokens"  # a turn or the episode used up its budget of tokens
    TURNS = "turns"  # the episode used up its turns
    CONTEXT = "context"  # the conversation fills the model's context
    ENVIRONMENT = "environment"  # the environment cut the episode and did not say why
    FAILURE = "failure"  # the environment or its verifier failed: the episode is not judged


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the agent: its tokens are `token_ids[start:end]` of the episode, and it had room for `limit`."""

    start: int
    end: int
    reward: float
    stop_reason: str
    limit: int


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """An episode as the learner sees it.

    `token_ids` (T,) exactly as fed and sampled; `mask` (T,) 1 on the policy's own tokens; `logprobs` (T,) of the
    sampler in nats and `versions` (T,) of its weights, 0 and -1 where the mask is 0. Nothing is rebuilt from text.
    A fork begins with the tokens of another episode, up to the turn `forked_turn` of that one; the mask is 0 on them.
    `snapshots` are the environment's before each turn, where they were asked for. `usage` has the prompt and generated
    tokens of all turns as an endpoint counts them, whose model's own tokens are not known; None with tokens.
    `sampling_seed`, the plan's, tells the members of a group, and forks, apart; None in a run's files of old.
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
    truncation: Truncation | None
    verdict: Verdict
    forked_turn: int | None = None
    snapshots: tuple[Mapping[str, Any], ...] = ()
    usage: tuple[int, int] | None = None
    sampling_seed: int | None = None

    @property
    def truncated(self) -> bool:
        return self.truncation is not None

    @property
    def terminated(self) -> bool:
        return self.truncation is None

    @property
    def overlong(self) -> bool:
        """Whether tokens ran out: the budget's or the model's context."""
        return self.truncation in (Truncation.TOKENS, Truncation.CONTEXT)

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
            "sampling_seed": self.sampling_seed,
            "forked_turn": self.forked_turn,
            "reward": None if math.isnan(self.reward) else self.reward,
            "token_ids": self.token_ids.tolist(),
            "mask": self.mask.astype(int).tolist(),
            "logprobs": [float(f"{value:.9g}") for value in self.logprobs.tolist()],
            "versions": self.versions.tolist(),
            "turns": [[turn.start, turn.end, turn.reward, turn.stop_reason, turn.limit] for turn in self.turns],
            "messages": [dict(message) for message in self.messages],
            "terminated": self.terminated,
            "truncation": self.truncation,
            "verdict": {
                "reward": None if math.isnan(verdict.reward) else verdict.reward,
                "outcome": verdict.outcome.value,
                "reason": verdict.reason,
                "components": dict(verdict.components),
            },
        } | ({"usage": list(self.usage)} if self.usage else {})

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Episode:
        """The episode that `to_json` wrote (a verdict's details and the snapshots are not kept)."""
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
            truncation=Truncation(row["truncation"]) if row["truncation"] else None,
            verdict=Verdict(reward, Outcome(verdict["outcome"]), verdict["reason"], verdict["components"]),
            forked_turn=row.get("forked_turn"),  # stored episodes of old know no forks
            usage=(row["usage"][0], row["usage"][1]) if "usage" in row else None,
            sampling_seed=row.get("sampling_seed"),
        )


def derive_seed(*parts: int | str) -> int:
    """A seed of 63 bits that depends on every part: nothing here draws from global random state."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def mean_reward(episodes: Sequence[Episode]) -> float:
    """Mean return of the episodes that could be judged; NaN if there is none."""
    rewards = [episode.reward for episode in episodes if not math.isnan(episode.reward)]
    return float(np.mean(rewards)) if rewards else math.nan
