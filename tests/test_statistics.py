"""Means, spreads and differences that are paired by seed."""

import pytest

from tt_ray.statistics import difference_interval, figure, paired_differences, plus_minus, spread


def test_one_seed_has_no_spread() -> None:
    assert spread([3.0]) is None and spread([1.0, 3.0]) == pytest.approx(2**0.5)
    assert plus_minus([3.0], ".1f") == "3.0" and plus_minus([], ".1f") == ""
    assert plus_minus([1.0, 3.0], ".1f", "+") == "+2.0 ± 1.4" and plus_minus([1.0, 3.0], str) == f"2.0 ± {2**0.5}"


def test_differences_are_of_the_same_seed() -> None:
    assert paired_differences({0: 5.0, 1: 7.0, 2: 1.0}, {1: 4.0, 0: 4.0}) == [1.0, 3.0]
    found = figure({0: 5.0, 1: 7.0}, {1: 4.0, 0: 4.0})
    assert found[:3] == (6.0, pytest.approx(2**0.5), 2.0) and found.difference_std == pytest.approx(2**0.5)
    assert figure({0: 5.0}) == (5.0, None, None, None)


def test_the_interval_of_a_difference_of_shares_is_newcombe_s() -> None:
    assert difference_interval(56 / 70, 48 / 80, 70, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5), "his example"
    low, high = difference_interval(1.0, 1.0, 100, 100)
    assert low == pytest.approx(-high) and high > 0.03, "all right is not certain"
    assert difference_interval(0.5, 0.4, 10**6, 10**6) == pytest.approx((0.1 - 0.00137, 0.1 + 0.00137), abs=1e-5)
