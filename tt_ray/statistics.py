"""Mean, spread, paired differences and their intervals over seeds: what every table of results is made of."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from math import hypot, isfinite, nan, sqrt
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple, TypeVar

Key = TypeVar("Key")
_Z = NormalDist().inv_cdf(0.975)
LEVEL = 0.05
"""Chance of a claim where there is nothing, which all tests here keep to; intervals are of 95 %."""
_ROUNDING = 1e-9
CLAIM_SEEDS = 5
"""Seeds that a claim should have: with 2 an interval is 12.7 standard errors wide on each side, with 5 it is 2.8."""


class Figure(NamedTuple):
    """A quantity over seeds."""

    mean: float
    std: float | None
    """Sample standard deviation; None with one seed."""
    difference: float | None = None
    """Mean of the differences to the baseline with the same seed; None for the baseline."""
    difference_std: float | None = None
    """Sample standard deviation of these differences; None with one seed."""
    difference_low: float | None = None
    """Lower end of the paired t interval of 95 %, over seeds; None with one seed, or
    where all differences are equal, which show no noise."""
    difference_high: float | None = None
    """Upper end."""
    difference_p: float | None = None
    """p of the paired t test, two-sided and not corrected for other arms; None where there is no interval."""
    pairs: int = 0
    """Seeds that both have."""


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None for one value, which has no spread, and NaN where one is no finite number."""
    if len(values) < 2:
        return None
    return stdev(values) if all(map(isfinite, values)) else nan


def paired_differences(values: Mapping[Key, float], baseline: Mapping[Key, float]) -> list[float]:
    """Values less the baseline's of the same key (a seed), for the keys that both have, in the order of `values`."""
    return [value - baseline[key] for key, value in values.items() if key in baseline]


def figure(values: Mapping[Key, float], baseline: Mapping[Key, float] | None = None) -> Figure:
    """Mean, spread and paired difference of values by seed; without `baseline` there is no difference."""
    own = list(values.values())
    gains = [] if baseline is None else paired_differences(values, baseline)
    low, high = t_interval(gains) or (None, None)
    difference = fmean(gains) if gains else None
    return Figure(fmean(own), spread(own), difference, spread(gains), low, high, t_test(gains), len(gains))


def _noise(gains: Sequence[float]) -> float | None:
    """Standard deviation of differences; None where they are equal but for rounding: a test would be sure of all.

    None too where one is no finite number, of which a test can say nothing.
    """
    sd = spread(gains)
    return sd if sd is not None and sd > _ROUNDING * max(map(abs, gains)) else None


def t_interval(gains: Sequence[float]) -> tuple[float, float] | None:
    """95 % t interval of the mean of paired differences; None for fewer than two, or equal ones: they show no noise."""
    sd = _noise(gains)
    if sd is None:
        return None
    from scipy.stats import t  # takes half a second, which a command that only reports progress need not wait for

    half = float(t.ppf(1 - LEVEL / 2, len(gains) - 1)) * sd / sqrt(len(gains))
    return fmean(gains) - half, fmean(gains) + half


def t_test(gains: Sequence[float]) -> float | None:
    """Two-sided p of a paired t test; None where `t_interval` is. Below LEVEL where that is off 0."""
    sd = _noise(gains)
    if sd is None:
        return None
    from scipy.stats import t

    mean = fmean(gains)
    return float(2 * t.sf(abs(mean) / (sd / sqrt(len(gains))), len(gains) - 1))


def holm(ps: Sequence[float]) -> list[float]:
    """p values of several comparisons, corrected: below LEVEL where a difference can be claimed among all of them.

    Holm's step-down procedure (Scandinavian Journal of Statistics 6, 1979): the chance that any of the claims is of a
    difference that is not there is at most LEVEL, however the comparisons depend on each other (here they share the
    baseline's runs).
    """
    found, highest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda each: ps[each])):
        highest = max(highest, min((len(ps) - rank) * ps[place], 1.0))
        found[place] = highest
    return found


def noise_of_best(values: Sequence[Sequence[float]], among: int) -> list[float] | None:
    """Distances from the best of several means up to which each of the others cannot be called worse than it.

    Tukey's and Kramer's range test (Kramer, Biometrics 12, 1956; conservative for unequal numbers of seeds: Hayter,
    Annals of Statistics 12, 1984): the difference of two means over seeds is compared with the studentised range of
    all the means, with the variance within configurations, pooled. Were all configurations equal, any would be called
    worse in at most 5 % of searches. It covers every pair, so it does not matter which of them turns out to be the
    best, nor that some, such as those that a scheduler has ended, are not in `values` but were among the candidates.
    Seeds are the same for all, which makes the variance larger than that of a difference where it makes one: the test
    then says less, not more.

    Args:
        values: One sequence of values over seeds for each configuration, the best mean first.
        among: Number of configurations that were tried, at least `len(values)`.

    Returns:
        One distance for each of `values`, in its order; None where no configuration has two seeds, or where the seeds
        of each agree but for rounding: they show no noise, and the test would be sure of every difference.
    """
    freedom = sum(len(each) - 1 for each in values)
    means = [fmean(each) for each in values]
    squares = sum((value - mean) ** 2 for each, mean in zip(values, means, strict=True) for value in each)
    if not freedom or sqrt(squares / freedom) <= _ROUNDING * max(map(abs, means)):
        return None
    # Two configurations at least: the range of one is 0.
    width = _studentized_range(max(among, 2), freedom)
    first = len(values[0])
    return [width * sqrt(squares / freedom / 2 * (1 / first + 1 / len(each))) for each in values]


@cache
def _studentized_range(count: int, freedom: int) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(1 - LEVEL, count, freedom))


def difference_interval(share: float, other: float, count: int, other_count: int) -> tuple[float, float]:
    """95 % interval of `share - other`, two shares of independent samples.

    Newcombe's hybrid score interval (Statistics in Medicine 17, 1998, method 10), which holds near 0 and 1 too.

    Args:
        share: Between 0 and 1, of `count`.
        other: Between 0 and 1, of `other_count`.
        count: Size of the first sample.
        other_count: Size of the second sample.
    """
    (low, high), (other_low, other_high) = wilson_interval(share, count), wilson_interval(other, other_count)
    difference = share - other
    return difference - hypot(share - low, other_high - other), difference + hypot(high - share, other - other_low)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z * sqrt(share * (1 - share) / count + (_Z / (2 * count)) ** 2) / (1 + _Z**2 / count)
    return middle - half, middle + half


def plus_minus(values: Iterable[float], form: str | Callable[[float], str], sign: str = "") -> str:
    """Mean ± sample standard deviation as text; the mean alone for one value, and nothing for none.

    Args:
        values: One value a seed.
        form: Format of both numbers, such as ".2f", or a function that writes a number.
        sign: "+" shows the sign of a positive mean.
    """
    own = list(values)
    if not own:
        return ""
    mean = fmean(own)
    text = f"{mean:{sign}{form}}" if isinstance(form, str) else form(mean)
    sd = spread(own)
    if sd is None:
        return text
    return f"{text} ± {sd:{form}}" if isinstance(form, str) else f"{text} ± {form(sd)}"
