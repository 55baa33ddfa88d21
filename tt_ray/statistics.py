"""Mean, spread and paired differences of a quantity over seeds: what every table of results is made of."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import hypot, sqrt
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple, TypeVar

Key = TypeVar("Key")
_Z = NormalDist().inv_cdf(0.975)


class Figure(NamedTuple):
    """A quantity over seeds."""

    mean: float
    std: float | None
    """Sample standard deviation; None with one seed."""
    difference: float | None = None
    """Mean of the differences to the baseline with the same seed; None for the baseline."""
    difference_std: float | None = None
    """Sample standard deviation of these differences; None with one seed."""


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None for one value, which has no spread."""
    return stdev(values) if len(values) > 1 else None


def paired_differences(values: Mapping[Key, float], baseline: Mapping[Key, float]) -> list[float]:
    """Values less the baseline's of the same key (a seed), for the keys that both have, in the order of `values`."""
    return [value - baseline[key] for key, value in values.items() if key in baseline]


def figure(values: Mapping[Key, float], baseline: Mapping[Key, float] | None = None) -> Figure:
    """Mean, spread and paired difference of values by seed; without `baseline` there is no difference."""
    own = list(values.values())
    gains = [] if baseline is None else paired_differences(values, baseline)
    return Figure(fmean(own), spread(own), fmean(gains) if gains else None, spread(gains))


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
