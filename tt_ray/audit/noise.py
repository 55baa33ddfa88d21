"""How many labels are wrong, and which: from out-of-fold probabilities of a model that has learned from these labels.

Confident learning (Northcutt, Jiang and Chuang, 2021, arXiv 1911.00068): with t_j the mean probability of class j over
images labelled j, an image labelled i counts as one of class j where p_j is the largest of all p_k >= t_k. The counts,
scaled to the labels' own, are the confident joint, and what is off its diagonal is its estimate of the noise. It counts
mistakes of the model itself, where classes overlap in what captions say, and takes some wrong labels for right ones:
2 to 3 % of the clean labels of clip art and emoji, 17 to 19 % where 20 % are wrong.

The estimate that is reported leaves mistakes out by looking where the model hardly makes any: at *anchors*, for each
predicted class the `_ANCHORS` of its images with the largest probability. Suppose that a label is wrong as often among
easy images as among hard ones (class-conditional noise, as confident learning supposes too). The true class of an
anchor is the predicted one, so that the share of anchors with another label is the noise: a plain share of images, with
Wilson's interval. No model has seen the labels of its anchors, which are those of another fold. On clip art and emoji
it is 0.2 and 0.7 % for clean labels, 23 and 22 % where 20 % are wrong. Where captions know the classes less well, some
mistakes are left: on Gaussian classes of which models predict 75 %, 3 of 100 anchors. Where errors are more frequent
among hard images, as those of people are, the estimate is too low.

Given the noise e, spread evenly over the C - 1 other classes, probabilities p of *labels* follow from those of true
classes q by p_i = (1 - e) q_i + e / (C - 1) (1 - q_i), so that q_i = (p_i - e / (C - 1)) / (1 - e C / (C - 1)), cut off
at 0, and

    P(label i is right | caption, label) = (1 - e) q_i / p_i

With no noise, no label is wrong, however odd: the list is empty then rather than full of the model's own mistakes.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tt_ray.audit.out_of_fold import Floats, Guesses, Ints
from tt_ray.statistics import wilson_interval

_ANCHORS = 0.2
_SUREST = 0.99
"""No probability of a model that has seen no image is above this."""
_RESAMPLES = 200
_RESAMPLED = 20_000
"""Images of a resample, at most; intervals of more images are scaled by the root of the ratio."""
_FEW = 5
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
    """By anchors."""
    confident: Interval
    """By the confident joint, which counts the model's own mistakes."""
    anchors: int
    """Images that the first is a share of."""
    joint: Ints
    """Confident joint as counts, (given label, likely class), (C, C)."""
    by_class: tuple[Interval | None, ...]
    """Share of anchors predicted as a class that have another label; None without enough of them."""


@dataclass(frozen=True)
class Suspects:
    """Images by falling probability that their label is wrong."""

    rows: Ints
    suggestion: Ints
    """Likeliest other class."""
    wrong: Floats
    """Probability that the label is wrong."""
    right: Floats
    """Probability that the suggestion is right."""
    own: Floats
    """Probability that the captions' model gives to the label."""
    margin: Floats
    """By how much that of the suggestion is larger."""


def estimate_noise(labels: Ints, guesses: Guesses, classes: int) -> Noise:
    """Estimates the share of wrong labels (N,)."""
    likely = confident_classes(labels, guesses, classes)
    anchors = anchor_rows(guesses)
    # A model that has seen next to no image of a class predicts another one for its images, however right their labels.
    anchors = anchors[~_of_few(labels, classes)[anchors]]
    predicted = guesses.classes[anchors, 0]
    share = _share(labels[anchors] != predicted)
    joint = np.bincount(labels * classes + likely, minlength=classes**2).reshape(classes, classes)
    confident = float((likely != labels).mean())
    order = np.argsort(predicted, kind="stable")
    by_class = np.split(anchors[order], np.cumsum(np.bincount(predicted, minlength=classes))[:-1])
    shares = [_share(labels[own] != number) if len(own) >= _FEW else None for number, own in enumerate(by_class)]
    interval = _around(confident, _resampled(labels, guesses, classes))
    return Noise(share, interval, len(anchors), joint, tuple(shares))


def _of_few(labels: Ints, classes: int) -> npt.NDArray[np.bool_]:
    """Which images are of classes too small to say anything of their labels, (N,)."""
    return np.bincount(labels, minlength=classes)[labels] < _FEW


def confident_classes(labels: Ints, guesses: Guesses, classes: int) -> Ints:
    """The class that the confident joint counts each image for, (N,); its label where no class passes its threshold."""
    counts = np.bincount(labels, minlength=classes)
    thresholds = np.bincount(labels, guesses.own, classes) / np.maximum(counts, 1)
    passes = (guesses.shares >= thresholds[guesses.classes]) & (counts[guesses.classes] > 0)
    first = guesses.classes[np.arange(len(labels)), passes.argmax(1)]
    return np.where(passes.any(1), first, labels).astype(np.int64)


def anchor_rows(guesses: Guesses, share: float = _ANCHORS) -> Ints:
    """The images of each predicted class whose probability is among its largest, (n,)."""
    predicted, sure = guesses.classes[:, 0].astype(np.int64), guesses.shares[:, 0]
    order = np.lexsort((-sure, predicted))
    counts = np.bincount(predicted)
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[place < np.ceil(share * counts)[predicted[order]]])


def rank_suspects(labels: Ints, guesses: Guesses, noise: float, classes: int) -> Suspects:
    """All images, by falling probability that their label is wrong."""
    rows = np.arange(len(labels))
    second = (guesses.classes[:, 0] == labels).astype(np.int64) * (guesses.classes.shape[1] > 1)
    suggestion = guesses.classes[rows, second].astype(np.int64)
    theirs = guesses.shares[rows, second]
    each = noise / max(1, classes - 1)
    scale = max(1e-6, 1 - noise - each)
    own, other = (np.clip((part - each) / scale, 0, 1) for part in (guesses.own, theirs))
    tiny = np.finfo(np.float32).tiny
    wrong = np.clip(1 - (1 - noise) * own / np.maximum(guesses.own, tiny), 0, _SUREST)
    right = wrong * np.clip(other / np.maximum(1 - own, 1e-6), 0, 1)
    wrong, right = (np.where(_of_few(labels, classes), 0, part).astype(np.float32) for part in (wrong, right))
    order = np.lexsort((guesses.own - theirs, -wrong))
    return Suspects(
        order, suggestion[order], wrong[order], right[order], guesses.own[order], (theirs - guesses.own)[order]
    )


def _resampled(labels: Ints, guesses: Guesses, classes: int) -> npt.NDArray[np.float64]:
    """Deviations of the confident joint's estimate over resamples of the images, (resamples,)."""
    random = np.random.default_rng(0)
    count = min(len(labels), _RESAMPLED)
    found = np.empty(_RESAMPLES)
    for number in range(_RESAMPLES):
        rows = random.integers(0, len(labels), count)
        part = replace(guesses, classes=guesses.classes[rows], shares=guesses.shares[rows], own=guesses.own[rows])
        found[number] = (confident_classes(labels[rows], part, classes) != labels[rows]).mean()
    return (found - found.mean()) * np.sqrt(count / len(labels))


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
