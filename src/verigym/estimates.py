"""What several episodes of each task say of a model: pass@k, pass^k, majority@k, and intervals over tasks."""

# N tasks; of a task n episodes, of which c pass; B resamples of the tasks

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
CHOICES = 1_000
_AT_ONCE = 1 << 20  # numbers that a resampling holds


@dataclass(frozen=True)
class Estimate:
    """A mean over `tasks` tasks and its interval at 95 %."""

    value: float
    low: float
    high: float
    tasks: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


# Of one task.


def pass_at(n: int, c: int, k: int) -> float:
    """pass@k: the chance that of k episodes at least one passes, 1 - C(n - c, k) / C(n, k) (arXiv:2107.03374).

    Unbiased for k <= n. Raises ValueError for a larger k.
    """
    _require(n, k)
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def pass_hat(n: int, c: int, k: int) -> float:
    """pass^k: the chance that k episodes pass, all of them, C(c, k) / C(n, k) (arXiv:2406.12045).

    Unbiased for k <= n. Raises ValueError for a larger k.
    """
    _require(n, k)
    return math.comb(c, k) / math.comb(n, k)


def majority(votes: Sequence[str | None], right: Sequence[bool], k: int, *, seed: int = 0) -> float:
    """majority@k: the chance that the answer which most of k episodes give is right (arXiv:2203.11171).

    `votes` has the answer of each of the n episodes, None for one that has none and does not vote; `right` whether
    it passed. Answers that tie for the lead count by their share: two of which one is right are one half. Without any
    vote it is 0. The mean over all C(n, k) choices of k episodes, or over 1,000 that `seed` draws where there are
    more: unbiased for k <= n. Raises ValueError for a larger k.
    """
    n = len(votes)
    _require(n, k)
    if math.comb(n, k) <= CHOICES:
        chosen: Sequence[Sequence[int]] = list(combinations(range(n), k))
    else:
        rng = np.random.default_rng(seed)
        chosen = [rng.choice(n, k, replace=False).tolist() for _ in range(CHOICES)]
    return math.fsum(_vote(votes, right, members) for members in chosen) / len(chosen)


def _vote(votes: Sequence[str | None], right: Sequence[bool], members: Sequence[int]) -> float:
    """Whether the leading answer of these episodes is right; of several that lead, the share that is."""
    counts = Counter(votes[i] for i in members if votes[i] is not None)
    most = max(counts.values(), default=0)
    leading = [answer for answer, count in counts.items() if count == most]
    if not leading:
        return 0.0
    # episodes with one answer have one verdict; where a verifier looks at more than the answer, their share counts
    shares = [np.mean([right[i] for i in members if votes[i] == answer]) for answer in leading]
    return float(np.mean(shares))


def _require(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"{n} episodes of a task say nothing of {k}")


# Over tasks.


def mean_over_tasks(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of one value per task, as a rule of 0 to 1, with its bootstrap interval over tasks (see `_estimate`).

    Raises ValueError without a task.
    """
    if not values:
        raise ValueError("there is no task to estimate from")
    return _estimate(np.asarray(values, float), 0.0, 1.0, seed)


def paired_difference(values: Sequence[float], others: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of `values` - `others`, shares of 0 to 1 of the same tasks in the same order; tasks are drawn as pairs.

    Its interval is as in `_estimate`. Raises ValueError without a task, or for numbers of tasks that differ.
    """
    if not values or len(values) != len(others):
        raise ValueError(f"{len(values)} and {len(others)} tasks are no pairs")
    return _estimate(np.asarray(values, float) - np.asarray(others, float), -1.0, 1.0, seed)


def _estimate(values: NDArray[np.float64], least: float, most: float, seed: int) -> Estimate:
    """The mean of values (N,) with the percentile bootstrap's interval (Efron 1979).

    Where all tasks have one value, no resample differs. The interval then allows for the share of other tasks that may
    have another one, by Wilson's bound on 0 of N, at `least` or `most`: of all 0 or all 1 it is Wilson's own.
    """
    first = float(values[0])
    if (values == first).all():
        share = wilson(0, len(values))[1]
        low, high = first - share * max(0.0, first - least), first + share * max(0.0, most - first)
        return Estimate(first, low, high, len(values))
    low, high = _percentiles(values, seed)
    return Estimate(float(values.mean()), low, high, len(values))


def _percentiles(values: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of the mean over B resamples of values (N,)."""
    rng, size = np.random.default_rng(seed), len(values)
    step = max(1, _AT_ONCE // size)
    rows = [min(step, RESAMPLES - start) for start in range(0, RESAMPLES, step)]
    means = np.concatenate([values[rng.integers(size, size=(count, size))].mean(axis=1) for count in rows])  # (B,)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def wilson(passed: float, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), at 95 % by default."""
    rate = passed / total
    centre = (rate + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total))
    # At 0 and 1 the bound is the rate itself; rounding must not put it a hair beside.
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return (0.0 if passed == 0 else low), (1.0 if passed == total else high)


def over_tasks(
    counts: Sequence[tuple[int, int]], of_task: Callable[[int, int, int], float], k: int, *, seed: int = 0
) -> Estimate | None:
    """`pass_at` or `pass_hat` over tasks with (n, c) episodes; None if none of them was judged k times.

    A task with fewer than k judged episodes is left out.
    """
    values = [of_task(n, c, k) for n, c in counts if n >= k]
    return mean_over_tasks(values, seed=seed) if values else None
