"""Several verifiers as one reward: the weighted mean of the named parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from verigym.tasks.errors import ConfigError
from verigym.tasks.task import Task
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier, make


class CompositeVerifier(Verifier):
    """The mean of the parts' rewards, weighted, so that a text that satisfies them all earns 1.

    `parts` maps the name of each part to its weight, or to a mapping of `weight` and the options of its verifier:

        make("composite", parts={"math": 1.0, "format": {"weight": 0.1, "require": ["think", "boxed"]}})

    A part's name is that of its verifier, unless the mapping says `verifier`. Only the ratio of the weights
    counts: above, math alone is worth 1 / 1.1. The outcome is that of the first part, and `components` holds the
    reward of each by its name. An INFRA_ERROR of any part is one of the whole.
    Raises ConfigError for parts that are none, and what `make` raises for their names and options.
    """

    def __init__(self, *, parts: Mapping[str, float | Mapping[str, Any]]) -> None:
        if not isinstance(parts, Mapping) or not parts:
            raise ConfigError(f"parts must map the names of verifiers to their weights, not {parts!r}")
        self._weights = {name: _weight(name, part) for name, part in parts.items()}
        self._parts = {name: _made(name, part) for name, part in parts.items()}

    def verify(self, submission: Submission, task: Task) -> Verdict:
        return self._combined([part.verify(submission, task) for part in self._parts.values()])

    def verify_many(self, pairs: Sequence[tuple[Submission, Task]]) -> list[Verdict]:
        """The verdicts in order; each part judges all pairs at once."""
        columns = [part.verify_many(pairs) for part in self._parts.values()]
        return [self._combined(verdicts) for verdicts in zip(*columns, strict=True)]

    def golds(self, task: Task) -> list[str]:
        """The first part's, in the form that all parts ask for."""
        return [self.dress(gold) for gold in next(iter(self._parts.values())).golds(task)]

    def dress(self, gold: str) -> str:
        for part in self._parts.values():
            gold = part.dress(gold)
        return gold

    def feedback(self, submission: Submission, task: Task) -> str | None:
        """That of the first part that has some."""
        told = (part.feedback(submission, task) for part in self._parts.values())
        return next((text for text in told if text is not None), None)

    @property
    def isolated(self) -> bool:
        return all(part.isolated for part in self._parts.values())

    def close(self) -> None:
        for part in self._parts.values():
            part.close()

    def _combined(self, verdicts: Sequence[Verdict]) -> Verdict:
        named = dict(zip(self._parts, verdicts, strict=True))
        details = {name: {"reason": verdict.reason, **verdict.details} for name, verdict in named.items()}
        for name, verdict in named.items():
            if verdict.outcome is Outcome.INFRA_ERROR:
                return Verdict.infra_error(f"{name}: {verdict.reason}", **details)
        total = math.fsum(self._weights[name] * verdict.reward for name, verdict in named.items())
        reward = total / math.fsum(self._weights.values())
        reason = "; ".join(f"{name}: {verdict.reason}" for name, verdict in named.items())
        components = {name: verdict.reward for name, verdict in named.items()}
        return Verdict(reward, verdicts[0].outcome, reason, components, details)


def _weight(name: str, part: Any) -> float:
    weight = part.get("weight") if isinstance(part, Mapping) else part
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ConfigError(f"the weight of part '{name}' must be a number above 0, not {weight!r}")
    return float(weight)


def _made(name: str, part: Any) -> Verifier:
    options = dict(part) if isinstance(part, Mapping) else {}
    options.pop("weight", None)
    return make(str(options.pop("verifier", name)), **options)
