"""Means, spreads and differences that are paired by seed."""

import pytest

from tt_ray.statistics import figure, paired_differences, plus_minus, spread


def test_one_seed_has_no_spread() -> None:
    assert spread([3.0]) is None and spread([1.0, 3.0]) == pytest.approx(2**0.5)
    assert plus_minus([3.0], ".1f") == "3.0" and plus_minus([], ".1f") == ""
    assert plus_minus([1.0, 3.0], ".1f", "+") == "+2.0 ± 1.4" and plus_minus([1.0, 3.0], str) == f"2.0 ± {2**0.5}"


def test_differences_are_of_the_same_seed() -> None:
    assert paired_differences({0: 5.0, 1: 7.0, 2: 1.0}, {1: 4.0, 0: 4.0}) == [1.0, 3.0]
    found = figure({0: 5.0, 1: 7.0}, {1: 4.0, 0: 4.0})
    assert found[:3] == (6.0, pytest.approx(2**0.5), 2.0) and found.difference_std == pytest.approx(2**0.5)
    assert figure({0: 5.0}) == (5.0, None, None, None)
