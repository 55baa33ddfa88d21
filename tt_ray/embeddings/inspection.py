"""Figures on a store's embeddings: norms, effective rank, duplicates, classes of nearest embeddings, and a plot."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tt_ray.embeddings.build import Show
from tt_ray.embeddings.store import EmbeddingStore
from tt_ray.terminal.errors import UserError

NEIGHBOURS = 10
_BLOCK = 8192
# Similarities that are held at a time: 80 MB for a sample of 20,000.
_QUERIES = 1024
_COLOURS = 10

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """Rows of a store, drawn at random without repetition."""

    rows: Ints
    """Rows of the store, rising, (n,)."""
    centred: Floats
    """Their embeddings less the store's mean, as the alignment loss sees them, (n, D)."""
    units: Floats
    """These, divided by their lengths, (n, D)."""
    groups: Ints
    """Numbers that rows share when their embeddings are equal, bit for bit, (n,)."""
    labels: Ints | None
    """Class numbers, (n,); None without labels."""
    classes: tuple[str, ...]
    """Names of the classes that the sample has, in the order of their numbers."""


@dataclass(frozen=True)
class Report:
    """The figures that `inspect` measures."""

    norms: tuple[float, ...]
    """Length of the sample's embeddings as stored: minimum, quartiles, maximum."""
    effective_rank: float
    """exp of the entropy of the covariance's normalised eigenvalues (Roy and Vetterli, 2007), between 1 and D."""
    axes: npt.NDArray[np.float64]
    """Eigenvectors of the covariance, by falling eigenvalue, (D, D)."""
    duplicates: int
    """Embeddings, of all, that an earlier row has already, bit for bit."""
    knn: float | None
    """Share of the sample whose class is that of most of its 10 nearest others; None without labels."""
    knn_distinct: float | None
    """The same among other embeddings alone: equal captions may well be of the same thing."""
    chance: float | None
    """Share of the sample that has the most frequent class."""


def draw_sample(store: EmbeddingStore, labels: pa.StringArray | None, size: int, seed: int = 0) -> Sample:
    """Draws rows at random.

    Args:
        store: The store.
        labels: One per row, null where there is none; rows without one are not drawn.
        size: Most rows to draw, at least 3.
        seed: Seed of the draw.

    Raises:
        UserError: `size` is below 3.
    """
    if size < 3:
        raise UserError(f"--sample is {size}, but must be at least 3")
    known = np.arange(len(store)) if labels is None else np.flatnonzero(labels.is_valid().to_numpy(False))
    chosen = np.random.default_rng(seed).choice(len(known), min(size, len(known)), replace=False)
    rows = known[np.sort(chosen)]
    stored = store.embeddings[rows]
    centred = stored.astype(np.float32) - store.mean
    groups = np.unique(stored.view(f"V{stored.shape[1] * stored.itemsize}")[:, 0], return_inverse=True)[1]
    units = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    if labels is None:
        return Sample(rows, centred, units, groups, None, ())
    encoded = labels.take(pa.array(rows)).dictionary_encode()
    numbers = encoded.indices.to_numpy().astype(np.int64)
    return Sample(rows, centred, units, groups, numbers, tuple(encoded.dictionary.to_pylist()))


def inspect(store: EmbeddingStore, sample: Sample, show: Show) -> Report:
    """Measures a store; the whole of it is read once, for duplicates, all other figures are those of the sample."""
    lengths = np.linalg.norm(sample.centred + store.mean, axis=1)
    norms = tuple(float(value) for value in np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1]))
    rest = sample.centred - sample.centred.mean(0)
    variance, axes = np.linalg.eigh((rest.T @ rest).astype(np.float64))
    share = np.maximum(variance, 0) / max(variance.clip(0).sum(), 1e-30)
    entropy = -(share * np.log(np.maximum(share, 1e-30))).sum()
    knn = knn_distinct = chance = None
    if sample.labels is not None:
        knn = knn_distinct = _knn_accuracy(sample, np.arange(len(sample.rows)), show)
        if sample.groups.max() < len(sample.rows) - 1:
            knn_distinct = _knn_accuracy(sample, sample.groups, show)
        chance = float(np.bincount(sample.labels).max() / len(sample.labels))
    return Report(
        norms, float(np.exp(entropy)), axes[:, ::-1], count_duplicates(store, show), knn, knn_distinct, chance
    )


def count_duplicates(store: EmbeddingStore, show: Show) -> int:
    """Counts embeddings that an earlier row has already, by hashes: of 10^7 stores of 10^6 rows one errs."""
    hashes = np.empty(len(store), np.int64)
    for start in range(0, len(store), _BLOCK):
        block = np.ascontiguousarray(store.embeddings[start : start + _BLOCK])
        hashes[start : start + len(block)] = [hash(row.tobytes()) for row in block]
        show("looking for duplicates", start + len(block), len(store))
    return len(hashes) - len(np.unique(hashes))


def nearest(units: Floats, groups: Ints, queries: Ints, count: int) -> tuple[Ints, Floats]:
    """Finds for rows `queries` the `count` rows of other groups with the largest cosines.

    Returns:
        Rows and cosines, both (len(queries), count). Where other groups have fewer rows, others fill the places, with
        cosines of minus infinity.
    """
    similarity = units[queries] @ units.T
    similarity[groups[queries][:, None] == groups] = -np.inf
    found = np.argpartition(similarity, -count, axis=1)[:, -count:]
    values = np.take_along_axis(similarity, found, 1)
    order = (-values).argsort(1, kind="stable")
    return np.take_along_axis(found, order, 1), np.take_along_axis(values, order, 1)


def _knn_accuracy(sample: Sample, groups: Ints, show: Show) -> float:
    """Each row's class by vote of its nearest of other groups; of tied classes the one with the larger cosines."""
    assert sample.labels is not None
    labels = sample.labels
    count, right = min(NEIGHBOURS, len(labels) - 1), 0
    for start in range(0, len(labels), _QUERIES):
        queries = np.arange(start, min(start + _QUERIES, len(labels)))
        found, cosines = nearest(sample.units, groups, queries, count)
        votes = np.zeros((len(queries), len(sample.classes)), np.float32)
        weights = np.where(np.isfinite(cosines), 1 + cosines / 1000, 0)
        np.add.at(votes, (np.arange(len(queries))[:, None], labels[found]), weights)
        right += int(((votes.argmax(1) == labels[queries]) & (votes.max(1) > 0)).sum())
        show("finding nearest embeddings", start + len(queries), len(labels))
    return right / len(labels)


def plot(sample: Sample, report: Report, title: str, path: Path) -> None:
    """A PNG of the sample on the first two principal components; the ten most frequent classes have colours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = sample.centred @ report.axes[:, :2].astype(np.float32)
    figure = Figure(figsize=(7, 6), dpi=150)
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    labels = np.zeros(len(points), np.int64) if sample.labels is None else sample.labels
    coloured = np.bincount(labels).argsort(kind="stable")[::-1][:_COLOURS] if sample.labels is not None else []
    rest = ~np.isin(labels, coloured)
    axis.scatter(*points[rest].T, s=3, c="lightgrey", label="other classes" if len(coloured) and rest.any() else None)
    for number, colour in zip(coloured, range(_COLOURS), strict=False):
        axis.scatter(*points[labels == number].T, s=3, color=f"C{colour}", label=sample.classes[number])
    if len(coloured):
        axis.legend(markerscale=4, fontsize="small")
    axis.set(title=title, xlabel="first principal component", ylabel="second principal component")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", bbox_inches="tight")
