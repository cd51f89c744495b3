"""Estimates from several episodes of each task, against enumeration and against what is known of a distribution."""

import math
from itertools import combinations, product

import numpy as np
import pytest

from verigym.estimates import majority, mean_over_tasks, paired_difference, pass_at, pass_hat, wilson


@pytest.mark.parametrize(("n", "c"), [(n, c) for n in range(1, 8) for c in range(n + 1)])
def test_pass_at_k_and_pass_hat_k_are_the_shares_of_the_choices_of_k_episodes(n, c):
    episodes = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        chosen = list(combinations(episodes, k))
        assert pass_at(n, c, k) == pytest.approx(np.mean([any(some) for some in chosen]))
        assert pass_hat(n, c, k) == pytest.approx(np.mean([all(some) for some in chosen]))


@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_pass_at_k_is_unbiased(k):
    chances = [math.comb(6, c) * 0.3**c * 0.7 ** (6 - c) for c in range(7)]
    mean = sum(chance * pass_at(6, c, k) for c, chance in enumerate(chances))
    assert mean == pytest.approx(1 - 0.7**k)


def test_pass_at_k_of_many_episodes_is_exact():
    assert pass_at(10_000, 1, 100) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="3 episodes of a task say nothing of 4"):
        pass_at(3, 1, 4)


def test_majority_at_k_is_unbiased_against_all_outcomes():
    """Two right spellings never lead apart: an answer a (right, .5), b (.3) or none (.2), five episodes, k = 3."""
    chances = {"a": 0.5, "b": 0.3, None: 0.2}

    def expected(k, n):
        return sum(
            math.prod(chances[v] for v in votes) * majority(votes, [v == "a" for v in votes], k)
            for votes in product(chances, repeat=n)
        )

    assert expected(3, 5) == pytest.approx(expected(3, 3))
    # by hand: of three votes a leads with aaa, aab, aa-, a--; ab- and its like are ties
    lead = 0.5**3 + 3 * 0.5**2 * 0.3 + 3 * 0.5**2 * 0.2 + 3 * 0.5 * 0.2**2
    assert expected(3, 3) == pytest.approx(lead + 0.5 * 6 * 0.5 * 0.3 * 0.2)


@pytest.mark.parametrize(
    ("votes", "share"),
    [("aab", 1), ("abb", 0), ("ab-", 0.5), ("abc", 1 / 3), ("---", 0), ("a--", 1), ("b--", 0)],
)
def test_a_tie_counts_by_the_share_of_its_answers_that_are_right(votes, share):
    answers = [None if vote == "-" else vote for vote in votes]
    assert majority(answers, [vote == "a" for vote in answers], 3) == pytest.approx(share)


def test_majority_of_many_choices_is_drawn_by_seed():
    votes = ["a", "b"] * 10 + ["a"]
    right = [vote == "a" for vote in votes]
    drawn = [majority(votes, right, 5, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    exact = np.mean([sum(right[i] for i in some) > 2 for some in combinations(range(21), 5)])
    assert drawn == pytest.approx([exact] * 3, abs=0.06)


def test_the_interval_over_tasks_covers_the_mean_as_often_as_it_says():
    """Known by construction: per-task pass rates are uniform, so the mean is .5; 300 sets of 60 tasks."""
    rng = np.random.default_rng(0)
    found = [mean_over_tasks(rng.uniform(size=60).tolist(), seed=n) for n in range(300)]
    covered = np.mean([one.low <= 0.5 <= one.high for one in found])
    assert 0.91 <= covered <= 0.98  # 95 %, with three standard errors of 300 draws and the percentile's own bias
    width = np.mean([one.high - one.low for one in found])
    assert width == pytest.approx(2 * 1.96 * math.sqrt(1 / 12 / 60), rel=0.03)


def test_pairs_of_tasks_are_narrower_than_two_models_apart():
    rng = np.random.default_rng(1)
    hard = rng.uniform(size=200)
    one = (hard + 0.05).tolist()
    found = paired_difference(one, (hard + rng.normal(0, 0.02, 200)).tolist())
    apart = mean_over_tasks(one)
    assert 0.045 < found.low < found.value < found.high < 0.055
    assert found.high - found.low < 0.1 * (apart.high - apart.low)
    with pytest.raises(ValueError, match="2 and 1 tasks are no pairs"):
        paired_difference([1, 0], [1])


def test_an_interval_is_the_same_for_the_same_seed_and_has_a_width_where_all_tasks_agree():
    values = [0.0, 1.0, 0.5, 1.0]
    assert mean_over_tasks(values) == mean_over_tasks(values)
    assert mean_over_tasks([1.0] * 20) == mean_over_tasks([1.0] * 20, seed=5)
    all_right, none_differs = mean_over_tasks([1.0] * 20), paired_difference([1, 0] * 10, [1, 0] * 10)
    assert (all_right.low, all_right.high) == pytest.approx(wilson(20, 20))
    share = wilson(0, 1)[1]  # of one task that says .5, or that one model passes and the other does not
    half, ahead = mean_over_tasks([0.5]), paired_difference([1.0], [0.0])
    assert (half.low, half.high) == pytest.approx((0.5 - share / 2, 0.5 + share / 2))
    assert (ahead.low, ahead.high) == (pytest.approx(1 - 2 * share), 1.0)
    assert (none_differs.low, none_differs.value, none_differs.high) == (-wilson(0, 20)[1], 0, wilson(0, 20)[1])
    with pytest.raises(ValueError, match="no task"):
        mean_over_tasks([])


def test_many_tasks_are_resampled_in_parts():
    values = np.random.default_rng(2).uniform(size=3_000).tolist()
    found = mean_over_tasks(values)
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(1 / 12 / 3_000), rel=0.05)
