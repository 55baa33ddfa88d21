"""Metrics of features: how alike two models' are, how they lie on the sphere, how many directions they use.

Pure functions of arrays. Features may be memory maps: they are read in blocks of rows, and sums are taken in float64.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tt_ray.terminal.errors import UserError

Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.floating]
SMALLEST_BATCH = 4
"""Rows below which the unbiased HSIC is not defined."""
_BLOCK = 8192


def linear_cka(x: Floats, y: Floats) -> float:
    """Similarity in [0, 1] of two models' features (n, d1) and (n, d2) of the same images.

    |Y'X|^2 / (|X'X| |Y'Y|), Frobenius norms, columns centred (Kornblith et al., 2019, arXiv 1905.00414, section 3). It
    does not change with rotations and scales of either, and is biased upwards where n is small next to d; see
    `unbiased_cka`. The result is nan for constant features.
    """
    _same_images(x, y)
    mean_x, mean_y = _mean(x), _mean(y)
    cross = np.zeros((x.shape[1], y.shape[1]))
    own_x, own_y = np.zeros((x.shape[1],) * 2), np.zeros((y.shape[1],) * 2)
    for first, second in zip(_blocks(x), _blocks(y), strict=True):
        first, second = first - mean_x, second - mean_y
        cross += first.T @ second
        own_x += first.T @ first
        own_y += second.T @ second
    scale = float(np.linalg.norm(own_x) * np.linalg.norm(own_y))
    return float(np.sum(cross**2)) / scale if scale else float("nan")


def unbiased_cka(x: Floats, y: Floats, batch: int = 256) -> float:
    """`linear_cka` from minibatches by the unbiased HSIC_1 (Nguyen et al., 2021, arXiv 2010.15327, equations 2 and 3).

    Rows are compared in the batches of `shuffled_batches`, and the three terms are averaged over them; the result does
    not depend on the number of rows in expectation and can be slightly below 0. Raises UserError below four rows.
    """
    _same_images(x, y)
    if len(x) < SMALLEST_BATCH or batch < SMALLEST_BATCH:
        raise UserError(f"CKA without bias needs at least {SMALLEST_BATCH} images a batch, but there are {len(x)}")
    terms = np.zeros(3)
    for rows in shuffled_batches(len(x), batch):
        parts = (np.asarray(part[rows], np.float64) for part in (x, y))
        part_x, part_y = (part - part.mean(0) for part in parts)  # the mean HSIC_1 does not see, but rounding does
        gram_x, gram_y = part_x @ part_x.T, part_y @ part_y.T
        terms += [hsic1(gram_x, gram_y), hsic1(gram_x, gram_x), hsic1(gram_y, gram_y)]
    scale = float(np.sqrt(max(terms[1], 0) * max(terms[2], 0)))
    return float(terms[0]) / scale if scale else float("nan")


def shuffled_batches(count: int, batch: int) -> list[npt.NDArray[np.int64]]:
    """Rows 0 to count - 1 at random, the same way each time, in batches of about `batch`, each of them in order.

    HSIC of batches estimates that of all rows only where every batch is a random sample of them. Splits often come
    sorted by class, and consecutive rows then show how alike two models are within a class.
    """
    rows = np.random.default_rng(0).permutation(count)
    return [np.sort(each) for each in np.array_split(rows, max(1, count // batch))]


def hsic1(k: Floats, l: Floats) -> float:  # noqa: E741, as in the paper
    """Unbiased Hilbert-Schmidt independence of two Gram matrices (n, n), n > 3 (Song et al., 2012, theorem 2)."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    both = float(np.sum(k * l))
    apart = float(k.sum() * l.sum()) / ((n - 1) * (n - 2))
    crossed = 2 * float(k.sum(0) @ l.sum(1)) / (n - 2)
    return (both + apart - crossed) / (n * (n - 3))


def alignment(x: Floats, labels: Ints) -> float:
    """Mean squared distance of two features of one class, on the unit sphere; 0 where classes are points, 2 by chance.

    L_align with alpha = 2 (Wang and Isola, 2020, arXiv 2005.10242, section 4.1.1), whose positive pairs are here all
    pairs of different images of a class. Features (n, d), labels (n,). nan where no class has two images.
    """
    x = _unit(x)
    cosines, pairs = 0.0, 0
    for label in np.unique(labels):
        own = x[labels == label]
        cosines += float(np.sum(own.sum(0) ** 2) - np.sum(own**2))
        pairs += len(own) * (len(own) - 1)
    return 2 - 2 * cosines / pairs if pairs else float("nan")


def uniformity(x: Floats) -> float:
    """Log of the mean of exp(-2 squared distance) over pairs of different images, on the unit sphere, (n, d).

    L_uniform with t = 2 (Wang and Isola, 2020, arXiv 2005.10242, section 4.1.2): 0 where all features are one point,
    about -4 where they are spread evenly over a sphere of many dimensions.
    """
    x = _unit(x)
    total = sum(float(np.exp(4 * (block @ x.T - 1)).sum()) for block in _blocks(x)) - len(x)
    return float(np.log(total / (len(x) * (len(x) - 1))))


def _unit(x: Floats) -> npt.NDArray[np.float64]:
    """Rows of length 1; rows of zeros stay."""
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def effective_rank(x: Floats) -> float:
    """How many directions features (n, d) use, 1 to d: exp of the entropy of their normalised singular values.

    Roy and Vetterli, 2007, "The effective rank", equation 2; RankMe (arXiv 2210.02885) ranks models by it. Columns are
    not centred, as in both. The singular values are roots of the eigenvalues of X'X, so those below 1e-7 of the
    largest are lost in rounding; they count for nothing.
    """
    gram = np.zeros((x.shape[1],) * 2)
    for block in _blocks(x):
        gram += block.T @ block
    values = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None))
    values = values[values > 1e-7 * values.max(initial=0)]
    if not len(values):
        return float("nan")
    shares = values / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def _blocks(x: Floats) -> Iterator[npt.NDArray[np.float64]]:
    for start in range(0, len(x), _BLOCK):
        yield np.asarray(x[start : start + _BLOCK], np.float64)


def _mean(x: Floats) -> npt.NDArray[np.float64]:
    total: Any = sum(block.sum(0) for block in _blocks(x))
    return total / len(x)


def _same_images(x: Floats, y: Floats) -> None:
    if len(x) != len(y):
        raise UserError(f"CKA compares features of the same images, but there are {len(x)} and {len(y)}")
