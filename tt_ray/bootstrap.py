"""Paired bootstrap over test images: how far the difference of two models may be due to which images were drawn."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Shares = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
METRICS = ("top1", "mean_per_class")
"""Metrics that are averages over images, or over classes of averages over their images."""
RESAMPLES = 2000
# Numbers held at a time: 32 MB of counts.
_BLOCK = 4_000_000


class Interval(NamedTuple):
    """Interval of a difference, in points of per cent."""

    low: float
    high: float
    differing: int
    """Test images on which the two models are not right equally often."""


def share_right(labels: Ints, predictions: Ints) -> Shares:
    """How often each image was named right, in [0, 1], (n,), of predictions (draws, n) for labels (n,)."""
    return (predictions == labels).mean(0)


def metric_of(metric: str, labels: Ints, shares: Shares) -> float:
    """The metric in per cent of shares (n,); mean_per_class is over the classes that the labels have."""
    if metric == "top1":
        return 100 * float(shares.mean())
    classes = np.unique(labels, return_inverse=True)[1]
    return 100 * float((np.bincount(classes, shares) / np.bincount(classes)).mean())


def paired_interval(
    metric: str, labels: Ints, baseline: Shares, model: Shares, seed: int, level: float = 0.95
) -> Interval:
    """Percentile interval (Efron and Tibshirani, 1993, chapter 13) of metric(model) - metric(baseline).

    Every resample draws n of the n test images with replacement, the same ones for both models (shares (n,), averaged
    over seeds and draws beforehand), and computes its metric; a class that a resample misses does not count in its
    mean over classes. So it covers the sampling of test images, not the variance between training runs.

    Images of one class (for top1: any) with one difference are interchangeable: their number in a resample is
    multinomial, which makes the cost independent of n. Exact, not an approximation.
    """
    differences = (model - baseline)[None]
    found = _resampled(metric, labels, differences, np.ones((RESAMPLES, 1)), np.random.default_rng(seed))
    low, high = _ends(found, level)
    return Interval(low, high, int((np.round(differences, 9) != 0).sum()))


class Paired(NamedTuple):
    """Two arms' right answers on the test images of one task, seed by seed."""

    metric: str
    labels: Ints
    """(n,)."""
    differences: Shares
    """Share right of an arm less that of the baseline with the same seed, (seeds, n)."""


def average_interval(tasks: Sequence[Paired], seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the average over tasks of metric(arm) - metric(baseline), in points of per cent.

    Every resample draws as many seeds with replacement as there are, the same ones for all tasks, and each task's
    images as `paired_interval` does. It covers the drawing of test images, and that of seeds so far as so few of them
    show it: for seeds alone, a t interval is the better one.
    """
    rng, seeds = np.random.default_rng(seed), len(tasks[0].differences)
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    return _ends(np.mean([_resampled(*task, weights, rng) for task in tasks], 0), level)


def _ends(found: Shares, level: float) -> tuple[float, float]:
    low, high = 100 * np.quantile(found, [(1 - level) / 2, (1 + level) / 2]) + 0.0
    return float(low), float(high)


def _resampled(metric: str, labels: Ints, differences: Shares, weights: Shares, rng: np.random.Generator) -> Shares:
    """The metric's difference in every resample, (R,), of differences (S, n) and the seeds' weights (R, S)."""
    groups = np.unique(labels, return_inverse=True)[1] if metric == "mean_per_class" else np.zeros(len(labels), int)
    values, which = np.unique(np.round(differences, 9), axis=1, return_inverse=True)
    count = values.shape[1]
    cells, counts = np.unique(groups * count + which.reshape(-1), return_counts=True)
    values = values[:, cells % count]
    starts = np.flatnonzero(np.diff(cells // count, prepend=-1))
    found: list[Shares] = []
    step = max(_BLOCK // len(cells), 1)
    for start in range(0, RESAMPLES, step):
        own = weights[start : start + step]
        drawn = rng.multinomial(len(labels), counts / len(labels), size=len(own))
        images = np.add.reduceat(drawn, starts, axis=1)
        sums = np.add.reduceat(drawn * (own @ values), starts, axis=1)
        found.append((sums / np.maximum(images, 1)).sum(1) / (images > 0).sum(1))
    return np.concatenate(found)
