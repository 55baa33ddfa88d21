"""Random numbers as a pure function of integers: the same on every worker, in every process, in any order."""

from typing import Any

import numpy as np
import numpy.typing as npt

_ALL = 2**64 - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_SHIFTS = 30, 27, 31


def uniform(rows: npt.ArrayLike, columns: int, *keys: int) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), shape (len(rows), columns), a function of each row's number and `keys` alone.

    SplitMix64 (Steele, Lea and Flood, 2014, doi 10.1145/2714064.2660195) used as a hash: keys, row and column are
    folded in one after the other.
    """
    first = 0
    for key in keys:
        first = _mix_one(first + key)
    state = _mix(np.uint64(first) + np.asarray(rows).astype(np.uint64)[:, None])
    state = _mix(state + np.arange(columns, dtype=np.uint64)[None, :])
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seed_of(*keys: int) -> int:
    """A 32-bit seed for libraries that take one, a function of `keys`."""
    return int(uniform([0], 1, *keys)[0, 0] * 2**32)


def place_in_class(labels: npt.NDArray[np.int64], rank: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """How many rows of the same class come before each row in the order of `rank`, (N,): what stratified draws need.

    Args:
        labels: Class of each row, (N,).
        rank: Numbers to order the rows of a class by, such as `uniform`'s, (N,).
    """
    order = np.lexsort((rank, labels))
    counts = np.bincount(labels)
    first = np.cumsum(counts) - counts
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels)) - first[labels[order]]
    return place


def _mix_one(state: int) -> int:
    """`_mix` of one number, which takes less time than an array of one."""
    state = (state + _GOLDEN) & _ALL
    state = ((state ^ (state >> _SHIFTS[0])) * _FIRST) & _ALL
    state = ((state ^ (state >> _SHIFTS[1])) * _SECOND) & _ALL
    return state ^ (state >> _SHIFTS[2])


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    first, second, third = (np.uint64(shift) for shift in _SHIFTS)
    # Arrays of whole numbers wrap around without a warning.
    state = state + np.uint64(_GOLDEN)
    state = (state ^ (state >> first)) * np.uint64(_FIRST)
    state = (state ^ (state >> second)) * np.uint64(_SECOND)
    return state ^ (state >> third)
