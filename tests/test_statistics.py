"""Means, spreads and differences that are paired by seed."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from tt_ray.statistics import (
    LEVEL,
    difference_interval,
    figure,
    holm,
    noise_of_best,
    paired_differences,
    plus_minus,
    spread,
    t_interval,
    t_test,
)


def test_one_seed_has_no_spread() -> None:
    assert spread([3.0]) is None and spread([1.0, 3.0]) == pytest.approx(2**0.5)
    assert plus_minus([3.0], ".1f") == "3.0" and plus_minus([], ".1f") == ""
    assert plus_minus([1.0, 3.0], ".1f", "+") == "+2.0 ± 1.4" and plus_minus([1.0, 3.0], str) == f"2.0 ± {2**0.5}"


def test_differences_are_of_the_same_seed() -> None:
    assert paired_differences({0: 5.0, 1: 7.0, 2: 1.0}, {1: 4.0, 0: 4.0}) == [1.0, 3.0]
    found = figure({0: 5.0, 1: 7.0}, {1: 4.0, 0: 4.0})
    assert found[:3] == (6.0, pytest.approx(2**0.5), 2.0) and found.difference_std == pytest.approx(2**0.5)
    assert figure({0: 5.0}) == (5.0, None, None, None, None, None, None, 0)
    alone = figure({0: 5.0, 1: 7.0}, {1: 4.0})
    assert (alone.difference, alone.difference_std, alone.difference_low, alone.pairs) == (3.0, None, None, 1)


def test_intervals_and_p_are_those_of_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    for count in (2, 3, 5, 9):
        ours, base = rng.normal(0.5, 1, (2, count))
        expected = stats.ttest_rel(ours, base)
        found = figure(dict(enumerate(ours)), dict(enumerate(base)))
        assert found.difference_low is not None and found.pairs == count
        assert (found.difference_low, found.difference_high) == pytest.approx(tuple(expected.confidence_interval()))
        assert found.difference_p == pytest.approx(expected.pvalue)
        excludes = not found.difference_low <= 0 <= (found.difference_high or 0.0)
        assert excludes == (expected.pvalue < LEVEL)
    assert t_interval([1.0]) is None and t_test([1.0]) is None


@pytest.mark.parametrize("gains", [[2.0, 2.0], [0.0, 0.0, 0.0], [-1.5] * 5, [61.2 - 60.1, 45.3 - 44.2, 5.3 - 4.2]])
def test_equal_differences_show_no_noise_and_no_certainty(gains: list[float]) -> None:
    """An interval without width and a p of 0 would claim what two seeds cannot know."""
    assert t_interval(gains) is None and t_test(gains) is None
    assert t_interval([*gains, gains[0] + 0.01]) is not None


@pytest.mark.parametrize("first", [[50.0, 50.0], [0.1 + 0.2, 0.3], [0.0, 0.0]])
def test_configurations_whose_seeds_agree_cannot_be_called_worse(first: list[float]) -> None:
    assert noise_of_best([first, [-1.0, -1.0]], 12) is None
    assert noise_of_best([first, [-1.0, -1.1]], 12) is not None


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_what_is_no_number_has_no_spread_no_interval_and_no_p(lost: float) -> None:
    """A training that diverged has a loss of NaN, and is in a table all the same."""
    for values in ([lost, 1.0], [1.0, 2.0, lost], [lost, lost]):
        assert math.isnan(spread(values) or 0.0) and plus_minus(values, ".1f").endswith(" ± nan")
        assert t_interval(values) is None and t_test(values) is None
        found = figure(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0))
        assert (found.difference_low, found.difference_p, found.pairs) == (None, None, len(values))


def test_p_values_are_corrected_as_holm_s_paper_says() -> None:
    assert holm([]) == [] and holm([0.03]) == [0.03]
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_arms_that_are_alike_are_rarely_told_apart() -> None:
    """Four arms over five seeds share their baseline: without the correction one of them differs in some 13 %."""
    rng = np.random.default_rng(1)
    gains = rng.normal(size=(1500, 4, 5)) - rng.normal(size=(1500, 1, 5))
    ps: np.ndarray = stats.ttest_1samp(gains, 0, axis=2)[1]
    assert np.mean(ps.min(1) < LEVEL) > 0.1
    assert np.mean([min(holm(row)) < LEVEL for row in ps]) < LEVEL + 3 * (LEVEL / 1500) ** 0.5


def called_worse(values: Sequence[np.ndarray], among: int) -> list[bool]:
    """Of each configuration, the best first."""
    values = sorted(values, key=lambda each: -each.mean())
    distances = noise_of_best([each.tolist() for each in values], among)
    assert distances is not None
    return [values[0].mean() - each.mean() > noise for each, noise in zip(values, distances, strict=True)]


SEARCHES = 1500
TOLERANCE = 3 * (LEVEL * (1 - LEVEL) / SEARCHES) ** 0.5
"""Three standard errors of a share of the searches."""


@pytest.mark.parametrize("seeds", [(2,) * 12, (2,) * 3, (5,) * 4, (3,) * 40, (1, 2, 3, 4, 2, 2), (1, 1, 1, 1, 6)])
def test_equal_configurations_are_rarely_called_worse_than_the_best(seeds: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    found = [any(called_worse([rng.normal(70, 2, n) for n in seeds], len(seeds))) for _ in range(SEARCHES)]
    assert np.mean(found) <= LEVEL + TOLERANCE
    if len(set(seeds)) == 1:
        assert np.mean(found) >= LEVEL - TOLERANCE, "exact for equal numbers of seeds: no power is lost"


def test_two_standard_errors_would_call_some_of_them_worse_in_most_searches() -> None:
    """What the range test is for."""
    values = np.random.default_rng(3).normal(size=(SEARCHES, 12, 2))
    means, pooled = values.mean(2), values.var(2, ddof=1).mean(1)
    assert np.mean(means.max(1) - means.min(1) > 2 * np.sqrt(pooled)) > 0.6


@pytest.mark.parametrize("tie", [0.0, 0.9])
def test_configurations_that_outlive_a_scheduler_are_rarely_called_worse(tie: float) -> None:
    """A third of those at each rung go on, the first one without a rival; `tie` is how far the rung tells the end."""
    early, late = np.random.default_rng(4).normal(size=(2, SEARCHES, 12, 2))
    last, rung = tie * early + (1 - tie**2) ** 0.5 * late, early.mean(2)
    alive = np.stack([rung[:, i] >= np.percentile(rung[:, : i + 1], 200 / 3, axis=1) for i in range(12)], 1)
    found = [any(called_worse(list(values[lives]), 12)) for values, lives in zip(last, alive, strict=True)]
    assert np.mean(found) <= LEVEL + TOLERANCE


def test_seeds_that_all_share_do_no_harm() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(size=(SEARCHES, 12, 3)) + rng.normal(0, 2, (SEARCHES, 1, 3))
    assert np.mean([any(called_worse(list(each), 12)) for each in values]) <= LEVEL + TOLERANCE


def test_what_is_worse_by_far_is_called_so() -> None:
    rng = np.random.default_rng(6)
    offsets = np.array([0.0] * 9 + [-10.0] * 3)[:, None]
    found = np.array([called_worse(list(rng.normal(size=(12, 2)) + offsets), 12) for _ in range(200)])
    assert found[:, 9:].mean() > 0.99 and found[:, :9].mean() < 0.02


def test_one_seed_shows_no_noise() -> None:
    assert noise_of_best([[1.0], [2.0]], 2) is None and noise_of_best([], 0) is None
    assert noise_of_best([[3.0, 1.0]], 1) is not None


def test_the_interval_of_a_difference_of_shares_is_newcombe_s() -> None:
    assert difference_interval(56 / 70, 48 / 80, 70, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5), "his example"
    low, high = difference_interval(1.0, 1.0, 100, 100)
    assert low == pytest.approx(-high) and high > 0.03, "all right is not certain"
    assert difference_interval(0.5, 0.4, 10**6, 10**6) == pytest.approx((0.1 - 0.00137, 0.1 + 0.00137), abs=1e-5)
