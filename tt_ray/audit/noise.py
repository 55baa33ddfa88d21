"""How many labels are wrong: from out-of-fold probabilities of a model that has learned from these labels.

Confident learning (Northcutt, Jiang and Chuang, 2021, arXiv 1911.00068): with t_j the mean probability of class j over
images labelled j, an image labelled i counts as one of class j where p_j is the largest of all p_k >= t_k. The counts,
scaled to the labels' own, are the confident joint, and what is off its diagonal is its estimate of the noise. It counts
mistakes of the model itself, where classes overlap in what captions say, and takes some wrong labels for right ones.

The estimate that is reported leaves mistakes out by looking where the model hardly makes any: at *anchors*, for each
predicted class the `_ANCHORS` of its images of which the model is surest. Suppose that a label is wrong as often among
easy images as among hard ones (class-conditional noise, as confident learning supposes too). Were the true class of an
anchor always the predicted one, the share of anchors with another label would be the noise: a plain share of images,
with Wilson's interval.

- Sureness is compared within images of a fold that are predicted as the same class. A model is surer of a class the
  fewer wrong labels the *other* folds have there, so that across folds the surest images are those of the folds with
  the most wrong labels: 31 for 20 % in 1,000 images of 100 classes that never overlap.
- Models that saw few images of a class are wrong about anchors, too. Let them be mistaken among anchors at most k times
  as often as among all, k = `_MISTAKES` / n up to `_MOST`, with n the images of a class that a model saw with a label
  that it finds right. All labels that it does not predict, the share D, are wrong or its mistakes, so that of a share a
  of anchors at least (a - k D) / (1 - k) are wrong labels: the lower end, and with k / 2 the estimate.
- D itself is an upper bound: no classifier that has not seen a label predicts more of them than are right. (As long as
  no class's labels are wrong more often than right.)

`python -m benchmarks.audit_intervals` measures coverage; docs/audit.md has it. To fall back on the confident joint,
which counts all images, where anchors are few, helped with few Gaussian classes (60 images of 3) and hurt on clip art
and emoji, and nothing that was tried told one from the other: the page shows both. Where errors are more frequent among
hard images, as those of people are, the estimate is too low.

Anchors also show whose labels the wrong ones are (`Noise.spread`): each other class's, or the next one's. As there may
be fewer anchors than pairs of classes, their counts c count as far as they differ from an even spread by more than
chance: with X the sum of (c - expected)^2 / expected over its d degrees of freedom, by the share 1 - d / X, as James
and Stein shrink means.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import logit

from tt_ray.audit.out_of_fold import Floats, Guesses, Ints
from tt_ray.statistics import wilson_interval

_ANCHORS = 0.2
_MISTAKES, _MOST = 4.0, 0.8
"""Of mistakes among anchors, as parts of those among all images: drawn from simulations (docs/audit.md)."""
_RESAMPLES = 200
_RESAMPLED = 20_000
"""Images of a resample, at most; intervals of more images are scaled by the root of the ratio."""
FEW = 5
"""Images of a class below which nothing is said of its labels."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval over images."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Noise:
    """Estimates of the share of wrong labels."""

    share: Interval
    """By anchors, less what may be mistakes of the model."""
    confident: Interval
    """By the confident joint, which counts the model's own mistakes."""
    anchors: int
    """Images that the first is a share of."""
    joint: Ints
    """Confident joint as counts, (given label, likely class), (C, C)."""
    by_class: tuple[Interval | None, ...]
    """Share of anchors predicted as a class that have another label; None without enough of them."""
    spread: Floats
    """What the wrong labels of a true class (row) are, by class, (C, C): rows sum to 1, the diagonal is 0."""


def estimate_noise(labels: Ints, guesses: Guesses, classes: int) -> Noise:
    """Estimates the share of wrong labels (N,)."""
    # A model that has seen next to no image of a class predicts another one for its images, however right their labels.
    few = of_few(labels, classes)
    likely, confident = labels.copy(), Interval(0.0, 0.0, 1.0)
    if not few.all():
        own, judged = labels[~few], _rows_of(guesses, np.flatnonzero(~few))
        likely[~few] = confident_classes(own, judged, classes)
        confident = _around(float((likely != labels)[~few].mean()), _resampled(own, judged, classes))
    anchors = anchor_rows(guesses, classes)
    anchors = anchors[~few[anchors]]
    predicted = guesses.classes[anchors, 0].astype(np.int64)
    share = _share(labels[anchors] != predicted)
    if len(anchors):
        missed = _share((guesses.classes[:, 0] != labels)[~few])
        seen = guesses.fitted * (1 - missed.value) / max(1, len(np.unique(labels)))
        # From one image of a class down, mistakes among anchors become as frequent as among all.
        share = _without_mistakes(share, missed, min(_MOST, _MISTAKES / max(seen, 1)) + (1 - _MOST) * max(0, 1 - seen))
    joint = np.bincount(labels * classes + likely, minlength=classes**2).reshape(classes, classes)
    order = np.argsort(predicted, kind="stable")
    by_class = np.split(anchors[order], np.cumsum(np.bincount(predicted, minlength=classes))[:-1])
    shares = [_share(labels[own] != number) if len(own) >= FEW else None for number, own in enumerate(by_class)]
    spread = spread_of(predicted, labels[anchors], classes)
    return Noise(share, confident, len(anchors), joint, tuple(shares), spread)


def _without_mistakes(share: Interval, missed: Interval, part: float) -> Interval:
    """The share of wrong labels, of the share of anchors with another label than predicted.

    Args:
        share: Of anchors.
        missed: Of all images.
        part: How often at most the model is mistaken among anchors, as a part of how often it is among all.
    """

    def less(value: float, part: float, most: float) -> float:
        return float(np.clip((value - part * missed.value) / (1 - part), 0, most))

    # The bound is an estimate, too: its own lower end bounds that of the share.
    low = less(share.low, part, missed.low)
    return Interval(less(share.value, part / 2, missed.value), low, min(share.high, missed.high))


def spread_of(true: Ints, given: Ints, classes: int) -> Floats:
    """What the wrong labels of each class are, (C, C), from images of known class (n,) and their labels.

    Evenly any other class, as far as the images do not show otherwise.
    """
    wrong, others = true != given, max(1, classes - 1)
    pair, counts = np.unique(true[wrong] * classes + given[wrong], return_counts=True)
    row, column = np.divmod(pair, classes)
    total = np.bincount(row, counts, classes)
    # The sum of (c - expected)^2 / expected over all pairs, of those alone that were seen: others add what is expected.
    excess = float((counts**2 * others / total[row]).sum() - counts.sum())
    chance = np.count_nonzero(total) * (classes - 2)
    trust = max(0.0, 1 - chance / excess) if excess > 0 else 0.0
    spread = np.full((classes, classes), 1 / others, np.float32)
    spread[total > 0] *= 1 - trust
    spread[row, column] += trust * counts / total[row]
    np.fill_diagonal(spread, 0)
    return spread


def of_few(labels: Ints, classes: int) -> npt.NDArray[np.bool_]:
    """Which images are of classes too small to say anything of their labels, (N,)."""
    return np.bincount(labels, minlength=classes)[labels] < FEW


def confident_classes(labels: Ints, guesses: Guesses, classes: int) -> Ints:
    """The class that the confident joint counts each image for, (N,); its label where no class passes its threshold."""
    counts = np.bincount(labels, minlength=classes)
    thresholds = np.bincount(labels, guesses.own, classes) / np.maximum(counts, 1)
    passes = (guesses.shares >= thresholds[guesses.classes]) & (counts[guesses.classes] > 0)
    first = guesses.classes[np.arange(len(labels)), passes.argmax(1)]
    return np.where(passes.any(1), first, labels).astype(np.int64)


def anchor_rows(guesses: Guesses, classes: int, share: float = _ANCHORS) -> Ints:
    """The images of each predicted class of which the model is surest, next to others of their fold, (n,)."""
    predicted = guesses.classes[:, 0].astype(np.int64)
    odds = logit(np.clip(guesses.shares[:, 0].astype(np.float64), 1e-6, 1 - 1e-6))
    group = np.unique(guesses.fold * classes + predicted, return_inverse=True)[1]
    sure = odds - (np.bincount(group, odds) / np.bincount(group))[group]
    order = np.lexsort((-sure, predicted))
    counts = np.bincount(predicted)
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[place < np.ceil(share * counts)[predicted[order]]])


def _resampled(labels: Ints, guesses: Guesses, classes: int) -> npt.NDArray[np.float64]:
    """Deviations of the confident joint's estimate over resamples of the images, (resamples,)."""
    random = np.random.default_rng(0)
    count = min(len(labels), _RESAMPLED)
    found = np.empty(_RESAMPLES)
    for number in range(_RESAMPLES):
        rows = random.integers(0, len(labels), count)
        found[number] = (confident_classes(labels[rows], _rows_of(guesses, rows), classes) != labels[rows]).mean()
    return (found - found.mean()) * np.sqrt(count / len(labels))


def _rows_of(guesses: Guesses, rows: Ints) -> Guesses:
    """The guesses of some images."""
    parts = (guesses.classes, guesses.shares, guesses.own, guesses.fold)
    classes, shares, own, fold = (part[rows] for part in parts)
    return replace(guesses, classes=classes, shares=shares, own=own, fold=fold)


def _around(value: float, deviations: npt.NDArray[np.float64]) -> Interval:
    low, high = np.quantile(deviations, [0.025, 0.975])
    return Interval(value, float(np.clip(value + low, 0, 1)), float(np.clip(value + high, 0, 1)))


def _share(wrong: npt.NDArray[np.bool_]) -> Interval:
    """A share with Wilson's interval, which holds near 0 too; of nothing, it may be any."""
    if not len(wrong):
        return Interval(0.0, 0.0, 1.0)
    share = float(wrong.mean())
    low, high = wilson_interval(share, len(wrong))
    return Interval(share, max(0.0, low), min(1.0, high))
