"""How much captions say besides the class: the directions that embeddings use, with and without the class means."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tt_ray.audit.out_of_fold import Embedded, draw
from tt_ray.logistic.design import read_blocks

_ROWS = 100_000
"""Images that are looked at, at most; stratified."""


@dataclass(frozen=True)
class Directions:
    """The spectrum of the covariance of embeddings."""

    effective: float
    """Effective dimension, the participation ratio (sum of eigenvalues)^2 / sum of their squares: 1 to D."""
    within: float
    """The same within classes, once the class means are projected out."""
    left: float
    """Share of the variance that lies within classes: 0 where captions of a class are all alike."""
    of: int
    """Images that were looked at."""


def directions(data: Embedded) -> Directions:
    """Measures the embeddings of images, with the class of each as `data.labels` says."""
    rows = draw(data.labels, np.arange(len(data)), _ROWS)
    labels, dim = data.labels[rows], data.table.shape[1]
    shift = np.asarray(data.table[data.rows[rows[0]]], np.float32)  # near the mean: sums of squares keep their digits
    second, sums = np.zeros((dim, dim)), np.zeros((data.classes, dim))
    for place, block in read_blocks(data.table, data.rows[rows], 2**23):
        block = block - shift
        second += block.T @ block
        order = np.argsort(labels[place], kind="stable")
        own, starts = np.unique(labels[place][order], return_index=True)
        sums[own] += np.add.reduceat(block[order], starts, 0, dtype=np.float64)
    counts = np.bincount(labels, minlength=data.classes)
    used = counts > 0
    mean = sums.sum(0) / len(rows)
    total = second - len(rows) * np.outer(mean, mean)
    offsets = (sums[used] / counts[used, None] - mean) * np.sqrt(counts[used, None])
    inside = total - offsets.T @ offsets
    # Unbiased: class means of few images take a part of the variance within classes with them.
    free = max(1, len(rows) - int(used.sum()))
    spread = np.trace(total) / max(1, len(rows) - 1)
    left = np.trace(inside) / free / spread if spread > 0 else 0.0
    return Directions(_participation(total), _participation(inside), float(np.clip(left, 0, 1)), len(rows))


def _participation(matrix: npt.NDArray[np.float64]) -> float:
    """(sum of eigenvalues)^2 / sum of their squares, which needs no eigenvalues."""
    squares = float(np.sum(matrix**2))
    return float(np.trace(matrix) ** 2 / squares) if squares > 0 else 0.0
