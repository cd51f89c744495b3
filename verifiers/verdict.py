"""What an answer is worth, and why: submissions, outcomes and verdicts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any


class Outcome(StrEnum):
    """How a verification ended. INFRA_ERROR is our failure; every other one is the submission's."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSEABLE = "unparseable"
    TIMEOUT = "timeout"
    ERROR = "error"
    INFRA_ERROR = "infra_error"


@dataclass(frozen=True, slots=True)
class Submission:
    """What is judged: the final text, the messages that led to it, and the world's final state and event log."""

    text: str
    messages: Sequence[Mapping[str, Any]] = ()
    state: Any = None
    events: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """A reward and the reason for it, in one sentence a person can act on.

    `components` are the named parts of the reward; `details` are for people and logs and never reach the agent.
    An INFRA_ERROR has no reward (NaN): it is masked and counted, never averaged in as a 0.
    Raises ValueError for a reward that is not finite, or for an INFRA_ERROR that carries one.
    """

    reward: float
    outcome: Outcome
    reason: str
    components: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    details: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if (self.outcome is Outcome.INFRA_ERROR) != math.isnan(self.reward) or math.isinf(self.reward):
            raise ValueError(f"a verdict of {self.outcome.value} cannot have the reward {self.reward}")

    def __reduce__(self) -> tuple[Any, ...]:
        # a read-only mapping cannot be pickled or copied; vector environments send verdicts between processes
        return Verdict, (self.reward, self.outcome, self.reason, dict(self.components), dict(self.details))

    @classmethod
    def infra_error(cls, reason: str, **details: Any) -> "Verdict":
        """The verdict of a verification that failed through no fault of the submission."""
        return cls(math.nan, Outcome.INFRA_ERROR, reason, details=details)
