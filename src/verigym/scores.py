"""The figures of an evaluation: how often a model passes, what its majority says, what it costs, and who is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from verigym.estimates import Estimate, majority, mean_over_tasks, over_tasks, paired_difference, pass_at, pass_hat
from verigym.results import Result
from verigym.tasks.errors import RunError
from verigym.verifiers.verdict import Outcome

LEAST_MAJORITY = 3  # of two episodes, a majority is one that agrees or a tie


@dataclass(frozen=True)
class Cost:
    """Tokens and seconds of the episodes that were judged; each also per episode."""

    episodes: int
    prompt_tokens: int
    generated_tokens: int
    seconds: float

    def per_episode(self) -> tuple[float, float, float]:
        """Prompt tokens, generated tokens and seconds of one episode, on average."""
        return tuple(total / self.episodes for total in (self.prompt_tokens, self.generated_tokens, self.seconds))  # type: ignore[return-value]


@dataclass(frozen=True)
class Scores:
    """What a model reached on an environment, each a mean over tasks with its interval at 95 %.

    `pass_at[1]` is the mean share of a task's episodes that pass: avg@n, and pass^1 too. `pass_hat` and `majority`
    begin where they say something else, at 2 and 3; without `majority`, `no_majority` says why.
    """

    tasks: int
    samples: int
    infra_errors: int
    pass_at: Mapping[int, Estimate]
    pass_hat: Mapping[int, Estimate]
    majority: Mapping[int, Estimate]
    no_majority: str
    reward: Estimate
    cost: Cost


def ladder(samples: int) -> list[int]:
    """The k of which pass@k is told: 1, 2, 4, ... and all samples."""
    return sorted({2**n for n in range(samples.bit_length())} | {samples})


def score(groups: Sequence[Sequence[Result]], samples: int) -> Scores:
    """The scores of the results of each task, `samples` of which were asked for.

    Results that could not be judged are counted and left out. Raises RunError if there are no others.
    """
    everything = [result for group in groups for result in group]
    judged = [[result for result in group if result.judged] for group in groups]
    judged = [group for group in judged if group]
    if not judged:
        reason = everything[0].reason if everything else "there were none"
        raise RunError(f"no episode of {len(everything)} could be judged: {reason}")
    counts = [(len(group), sum(result.passed for result in group)) for group in judged]
    kept = [result for group in judged for result in group]
    why = _no_majority(kept, samples)
    ks = ladder(samples)
    return Scores(
        tasks=len(judged),
        samples=samples,
        infra_errors=len(everything) - len(kept),
        pass_at=_by_k(ks, lambda k: over_tasks(counts, pass_at, k)),
        pass_hat=_by_k(ks[1:], lambda k: over_tasks(counts, pass_hat, k)),
        majority={} if why else _by_k([k for k in ks if k >= LEAST_MAJORITY], lambda k: _majority(judged, k)),
        no_majority=why,
        reward=mean_over_tasks([math.fsum(r.reward or 0.0 for r in group) / len(group) for group in judged]),
        cost=Cost(
            len(kept),
            sum(result.prompt_tokens for result in kept),
            sum(result.generated_tokens for result in kept),
            math.fsum(result.seconds for result in kept),
        ),
    )


def difference(groups: Sequence[Sequence[Result]], others: Sequence[Sequence[Result]]) -> Estimate | None:
    """pass@1 of `groups` less that of `others`, on the tasks that both were judged on; None if there are none."""
    pairs = [(_rate(mine), _rate(theirs)) for mine, theirs in zip(groups, others, strict=True)]
    both = [(mine, theirs) for mine, theirs in pairs if mine is not None and theirs is not None]
    return paired_difference(*zip(*both, strict=True)) if both else None


def _rate(group: Sequence[Result]) -> float | None:
    passed = [result.passed for result in group if result.judged]
    return sum(passed) / len(passed) if passed else None


def _by_k(ks: Sequence[int], of: Callable[[int], Estimate | None]) -> dict[int, Estimate]:
    found = {k: of(k) for k in ks}
    return {k: estimate for k, estimate in found.items() if estimate is not None}


def _majority(judged: Sequence[Sequence[Result]], k: int) -> Estimate | None:
    values = [
        majority([result.answer for result in group], [result.passed for result in group], k)
        for group in judged
        if len(group) >= k
    ]
    return mean_over_tasks(values) if values else None


def _no_majority(judged: Sequence[Result], samples: int) -> str:
    """Why there is no majority; empty if there is one."""
    if samples < LEAST_MAJORITY:
        return f"a majority needs {LEAST_MAJORITY} samples of a task"
    answered = [result for result in judged if result.outcome in (Outcome.CORRECT, Outcome.WRONG)]
    if not answered:
        return "no episode has an answer to vote on"
    if any(result.answer is None for result in answered):
        return "the verdicts name no answer to vote on"
    return ""
