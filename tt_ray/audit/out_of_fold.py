"""Labels as captions see them: class probabilities of every image by models that were fitted without it.

Multinomial logistic regression on the captions' embeddings, cross-validated, with the solver of `tt_ray.logistic`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tt_ray.logistic.design import Design, Moments, moments, read_blocks
from tt_ray.logistic.solver import Solver, predict
from tt_ray.stateless_random import place_in_class, uniform
from tt_ray.terminal.errors import UserError

FOLDS = 5
KEPT = 16
"""Likeliest classes that are kept of each image: all probabilities of ImageNet's images and classes would take 5 GB."""
_STRENGTHS = tuple(float(value) for value in np.logspace(-4, 0, 9))
"""Values of C, from strong to weak: for standardised features the best one lay between 1e-4 and 1e-1."""
_WORK = 1e10
"""Products in a pass over the fitted rows, at most: a second or two on a core; of more rows a sample is fitted."""
_BYTES = 2**30
_TOLERANCE, _ABOVE = 1.0, 1e-4
"""Fits end when the objective is within this share of its minimum, whatever its gradient: labels are to be judged, not
weights to be kept."""
_ITERATIONS = 200
_TO_CHOOSE = 20_000
"""Rows on which C is chosen, at most."""
_TO_SHUFFLE = 4000
"""Rows that shuffled captions are tried on, at most."""
_SHUFFLED, _SHUFFLES = 500, 20
"""Predictions from shuffled captions that are aimed at, and shuffles, at most."""
_PERFECT = 0.02
"""Log loss below which a weaker penalty has nothing to improve."""
_CHUNK = 2**24
_COPIES = 10
"""Images with the same caption that count as copies of one; captions of more say what many images have in common."""
_FOLD_KEY, _DRAW_KEY, _SHUFFLE_KEY = 0xA0D1, 0xA0D2, 0xA0D3

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Show = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Embedded:
    """Images by the embeddings of their captions."""

    table: npt.NDArray[Any]
    """Embeddings of either precision, memory-mapped, (rows of the store, D)."""
    rows: Ints
    """Row of each image, (N,)."""
    labels: Ints
    """Class numbers, (N,)."""
    classes: int

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Guesses:
    """The likeliest classes of N images, out of fold."""

    classes: npt.NDArray[np.int32]
    """Class numbers by falling probability, (N, K)."""
    shares: Floats
    """Their probabilities, (N, K)."""
    own: Floats
    """Probability of the given label, (N,)."""
    fold: Ints
    """Fold of each image, (N,): those of one were predicted by the same model."""
    strength: float
    """C of all fits."""
    folds: int
    fitted: int
    """Images that a model was fitted on, of those outside its fold."""
    shuffled: float
    """Share of images whose label a model predicts that was fitted on the captions of other images."""


def out_of_fold(data: Embedded, groups: Ints, show: Show) -> Guesses:
    """Fits one model for each fold, on images outside it, and has it predict the fold.

    C is chosen by the log loss of the first fold, once for all: one number, chosen on a fifth of the images, does not
    fit their labels. Where a pass over all images would take longer than about a second, models are fitted on a
    stratified sample, and two folds are enough.

    Args:
        data: The images.
        groups: Numbers of groups that stay in one fold, (N,), such as those of `copies`.
        show: Called after each fold.
    """
    most = _most_rows(data)
    folds = FOLDS if len(data) * (FOLDS - 1) / FOLDS <= most else 2
    fold = _folds(data.labels, groups, folds)
    kept = min(KEPT, data.classes)
    found = Guesses(
        np.empty((len(data), kept), np.int32), np.empty((len(data), kept), np.float32), np.empty(len(data), np.float32),
        fold, 0.0, folds, 0, 0.0,
    )  # fmt: skip
    strength, fitted, shuffled = 0.0, 0, 0.0
    for number in range(folds):
        show("cross-validating labels", number, folds)
        inside, fit = np.flatnonzero(fold == number), draw(data.labels, np.flatnonzero(fold != number), most)
        if not len(fit):
            raise UserError("no class has images of two different captions or groups: there is nothing to learn from")
        if not len(inside):  # a class has fewer images than there are folds
            continue
        scaling = moments(data.table, data.rows[fit])
        # Images of a class that the model has not seen would choose the strongest penalty, which doubts every class.
        seen = np.bincount(data.labels[fit], minlength=data.classes) > 0
        some = draw(data.labels, inside[seen[data.labels[inside]]], _TO_CHOOSE)
        rows = data.rows[np.concatenate([fit, some]) if not number else fit]
        solver = Solver(
            Design(data.table, rows, scaling, len(fit)), data.labels[fit], data.classes, _TOLERANCE, _ITERATIONS, _ABOVE
        )
        if not number:
            strength, fitted = _choose(solver, len(fit), data.labels[some]), len(fit)
            shuffled = _shuffled(data, fit, some, strength)
        _predict(data, inside, scaling, solver.fit(strength).weights, found)
    show("cross-validating labels", folds, folds)
    return Guesses(found.classes, found.shares, found.own, fold, strength, folds, fitted, shuffled)


def copies(data: Embedded) -> Ints:
    """Numbers that images share whose captions are equal, bit for bit as embeddings, and not more than `_COPIES`, (N,).

    In different folds, copies would have a model repeat the label of one for the other, whatever captions mean. Images
    of classes with few captions have numbers of their own: a model could not learn such a class without them.
    """
    keys = np.random.default_rng(0).integers(2**63, size=data.table.shape[1], dtype=np.uint64) * np.uint64(
        2
    ) + np.uint64(1)
    hashes = np.empty(len(data), np.uint64)
    for place, block in read_blocks(data.table, data.rows, 2**20):  # by the file: a map's pages count as our memory
        hashes[place] = np.ascontiguousarray(block).view(np.uint32) @ keys
    _, first, member, counts = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    of_class = np.unique(data.labels * len(counts) + member) // len(counts)
    rich = (np.bincount(of_class, minlength=data.classes) >= 2 * FOLDS)[data.labels]
    return np.where(rich & (counts[member] <= _COPIES), first[member], np.arange(len(member)))


def draw(labels: Ints, among: Ints, count: int) -> Ints:
    """At most `count` of the rows `among`, rising, as large a share of each class as of the others."""
    if len(among) <= count:
        return among
    own = labels[among]
    before = place_in_class(own, uniform(among, 1, _DRAW_KEY)[:, 0]) / np.bincount(own)[own]
    return among[np.sort(np.argsort(before, kind="stable")[:count])]


def _most_rows(data: Embedded) -> int:
    dim = data.table.shape[1]
    return int(min(_WORK / (dim * data.classes), _BYTES / (4 * dim)))


def _folds(labels: Ints, groups: Ints, folds: int) -> Ints:
    """The fold of each image, (N,): stratified by class; a group counts for the class of its first image."""
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    rank = uniform(np.arange(len(first)), 1, _FOLD_KEY)[:, 0]
    return (place_in_class(labels[first], rank) % folds)[member]


def _choose(solver: Solver, start: int, labels: Ints) -> float:
    """The C with the smallest log loss of the design's rows from `start` on, along the path from strong to weak."""
    best, least = _STRENGTHS[0], np.inf
    for strength in _STRENGTHS:
        solver.fit(strength)
        shares = np.concatenate(list(solver.probabilities(start, start + len(labels))))
        own = shares[np.arange(len(labels)), labels].clip(np.finfo(np.float32).tiny)
        loss = -float(np.log(own).mean(dtype=np.float64))
        if loss < least:
            best, least = strength, loss
        if loss > 1.01 * least or loss < _PERFECT:
            break
    return best


def _shuffled(data: Embedded, fit: Ints, some: Ints, strength: float) -> float:
    """Accuracy on `some` of models that learned from captions of other images: a mean over shuffles of few images.

    A single one says next to nothing of a dozen images: of two captions in all it predicts everything or nothing.
    """
    fit, some = (draw(data.labels, rows, _TO_SHUFFLE) for rows in (fit, some))
    scaling = moments(data.table, data.rows[fit])
    design = Design(data.table, data.rows[fit], scaling, len(fit))
    orders = uniform(fit, min(_SHUFFLES, 1 + _SHUFFLED // max(1, len(some))), _SHUFFLE_KEY).argsort(0, kind="stable")
    right = 0
    for order in orders.T:
        solver = Solver(design, data.labels[fit][order], data.classes, _TOLERANCE, _ITERATIONS, _ABOVE)
        shares = predict(data.table, data.rows[some], scaling, solver.fit(strength).weights)
        right += int((shares.argmax(1) == data.labels[some]).sum())
    return right / max(1, len(some) * len(orders.T))


def _predict(data: Embedded, inside: Ints, scaling: Moments, weights: Tensor, found: Guesses) -> None:
    """Fills the rows `inside` of `found`."""
    kept = found.classes.shape[1]
    step = max(1, _CHUNK // data.classes)
    for start in range(0, len(inside), step):
        rows = inside[start : start + step]
        shares = predict(data.table, data.rows[rows], scaling, weights)
        top = np.argpartition(shares, -kept, axis=1)[:, -kept:] if kept < data.classes else np.argsort(-shares, axis=1)
        values = np.take_along_axis(shares, top, 1)
        order = np.argsort(-values, axis=1, kind="stable")
        found.classes[rows] = np.take_along_axis(top, order, 1)
        found.shares[rows] = np.take_along_axis(values, order, 1)
        found.own[rows] = shares[np.arange(len(rows)), data.labels[rows]]
