"""How well scores predict preferences: accuracy, calibration, and what length alone would predict."""

# P pairs

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verigym.agents.learners.pairs import Pair
from verigym.estimates import wilson

_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Of P pairs, each with the predicted probability sigmoid(margin) that the chosen answer is the better one.

    `accuracy`: share ranked right, a tie counting half, with Wilson's interval at 95 %. `ece`: expected calibration
    error over ten bins of confidence from .5 to 1 (Guo et al. 2017, arXiv:1706.04599): mean distance between the
    confidence in the preferred answer and how often it is the chosen one. `brier`: mean squared error of the
    probability, .25 for a coin. `log_loss`: nats, .693 for a coin. `longer`: share of pairs whose chosen answer has
    more tokens: what a model that only counts them would get, or 1 minus that.
    """

    pairs: int
    accuracy: float
    low: float
    high: float
    ece: float
    brier: float
    log_loss: float
    margin: float
    longer: float


def calibration(pairs: Sequence[Pair], margins: NDArray[np.float64]) -> Calibration:
    """That of the score of each chosen answer less that of its rejected one: `margins` (P,)."""
    right = (np.sign(margins) + 1) / 2
    low, high = wilson(round(float(right.sum())), len(pairs))
    lengths = [np.sign(len(pair.chosen.token_ids) - len(pair.rejected.token_ids)) for pair in pairs]
    return Calibration(
        pairs=len(pairs),
        accuracy=float(right.mean()),
        low=low,
        high=high,
        ece=expected_calibration_error(_sigmoid(np.abs(margins)), right),
        brier=float(np.mean(_sigmoid(-margins) ** 2)),
        log_loss=float(np.mean(np.logaddexp(0, -margins))),
        margin=float(margins.mean()),
        longer=float((np.mean(lengths) + 1) / 2),
    )


def expected_calibration_error(confidence: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Mean over P predictions of |confidence - share right| of their bin; confidence (P,) lies in [.5, 1]."""
    bins = np.minimum(((confidence - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    gaps = [abs(float((confidence - right)[bins == number].sum())) for number in range(_BINS)]
    return sum(gaps) / len(confidence)


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-np.logaddexp(0, -values))  # type: ignore[no-any-return]
