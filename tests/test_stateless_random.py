"""Numbers by hash: uniform, independent, and a function of row, column and keys alone."""

import subprocess
import sys

import numpy as np
import pytest

from tt_ray.stateless_random import seed_of, uniform

N = 20_000


@pytest.mark.parametrize("keys", [(), (0,), (1, 2, 3)])
def test_numbers_are_uniform(keys: tuple[int, ...]) -> None:
    numbers = uniform(np.arange(N), 3, *keys)
    assert numbers.shape == (N, 3) and numbers.dtype == np.float64
    assert numbers.min() >= 0 and numbers.max() < 1
    for column in numbers.T:
        counts = np.histogram(column, bins=50, range=(0, 1))[0]
        # Chi-square with 49 degrees of freedom: 101 has a probability of 2e-5.
        assert ((counts - N / 50) ** 2 / (N / 50)).sum() < 101
        # Kolmogorov-Smirnov: 2.4 / sqrt(N) has a probability of 2e-5.
        assert np.abs(np.sort(column) - (np.arange(N) + 0.5) / N).max() < 2.4 / np.sqrt(N)


def test_rows_columns_and_keys_are_uncorrelated() -> None:
    one, other = uniform(np.arange(N), 4, 7), uniform(np.arange(N), 4, 8)
    pairs = [(one[:, 0], one[:, 1]), (one[:, 2], one[:, 3]), (one[:-1, 0], one[1:, 0]), (one[:, 0], other[:, 0])]
    pairs.append((one[1:, 0], one[:-1, 1]))
    for a, b in pairs:
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.3 / np.sqrt(N)


@pytest.mark.parametrize("rows", [[5], [9, 5, 2], list(range(100)), [5, 5, 5]])
def test_a_row_does_not_depend_on_its_batch(rows: list[int]) -> None:
    numbers = uniform(rows, 6, 1, 2)
    assert np.array_equal(numbers[rows.index(5)], uniform([5], 6, 1, 2)[0])
    assert np.array_equal(numbers, np.concatenate([uniform([row], 6, 1, 2) for row in rows]))


def test_more_columns_leave_the_first_ones() -> None:
    assert np.array_equal(uniform([3, 4], 9, 1)[:, :2], uniform([3, 4], 2, 1))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint64])
def test_the_type_of_row_numbers_does_not_matter(dtype: type) -> None:
    assert np.array_equal(uniform(np.arange(10, dtype=dtype), 2, 1), uniform(list(range(10)), 2, 1))


def test_keys_of_any_size_order_and_number_differ() -> None:
    keys = [(), (0,), (1,), (-1,), (0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2**32,), (2**63,), (2**64 - 2,)]
    first = [float(uniform([0], 1, *key)[0, 0]) for key in keys]
    seeds = [seed_of(*key) for key in keys]
    assert len(set(first)) == len(keys) == len(set(seeds))
    many = {seed_of(seed, step) for seed in range(30) for step in range(100)}
    assert len(many) >= 2998, "3000 numbers of 32 bits collide once in a thousand times"


def test_seeds_are_32_bit_integers() -> None:
    seeds = [seed_of(key) for key in range(2000)]
    assert all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds)
    assert max(seeds) > 2**32 * 0.99 and min(seeds) < 2**32 * 0.01


def test_no_generator_is_touched_and_other_processes_agree() -> None:
    np.random.seed(0)
    before = repr(np.random.get_state())
    code = (
        "from tt_ray.stateless_random import uniform, seed_of; print(uniform([3, 9], 2, 4, 5).tolist(), seed_of(6, 7))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == f"{uniform([3, 9], 2, 4, 5).tolist()} {seed_of(6, 7)}"
    assert repr(np.random.get_state()) == before


def test_numbers_stay_what_they_are() -> None:
    """SplitMix64 written with Python's integers; a change would change every augmentation and every built-in image."""

    def mix(state: int) -> int:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        return state ^ state >> 31

    def number(row: int, column: int, *keys: int) -> float:
        state = 0
        for value in (*keys, row, column):
            state = mix((state + value) % 2**64)
        return (state >> 11) / 2**53

    expected = [[number(row, column, 11, -3) for column in range(3)] for row in (0, 1, 2**40)]
    assert uniform([0, 1, 2**40], 3, 11, -3).tolist() == expected
