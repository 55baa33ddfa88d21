"""Which labels are wrong: the probability of each, and the class that captions suggest.

With e the share of wrong labels, and S_ji the share of class i among those that images of class j have (`Noise`),
images of class j are labelled i with T_ji = e S_ji, and rightly with T_jj = 1 - e. What a model learned from such
labels, probabilities p of *labels*, follows from those q of true classes by p = q T. q is found by Richardson's and
Lucy's iteration (maximum likelihood, nothing below 0), among the classes that are kept of each image and its label.
Then, by Bayes,

    P(class j | caption, label i) is in proportion to q_j T_ji.

With no noise, no label is wrong, however odd: the list is empty then rather than full of the model's own mistakes. Of
labels that are always the next class's, a spread taken for even finds next to none: 16 of 800 on shapes.
"""

from dataclasses import dataclass

import numpy as np

from tt_ray.audit.noise import of_few
from tt_ray.audit.out_of_fold import Floats, Guesses, Ints

_SUREST = 0.99
"""No probability of a model that has seen no image is above this."""
_ITERATIONS = 60
_BLOCK = 4096


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


def rank_suspects(labels: Ints, guesses: Guesses, noise: float, spread: Floats) -> Suspects:
    """All images, by falling probability that their label is wrong.

    Args:
        labels: Class numbers (N,).
        guesses: Probabilities of labels.
        noise: Share of wrong labels.
        spread: What wrong labels of a class are, (C, C), as `Noise.spread`.
    """
    moved = noise * spread
    np.fill_diagonal(moved, 1 - noise)
    count = len(labels)
    suggestion, other = np.empty(count, np.int64), np.empty(count, np.float32)
    wrong, right = np.empty(count, np.float32), np.empty(count, np.float32)
    for start in range(0, count, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, count))
        given = labels[rows, None]
        kept, shares, repeated = _kept(guesses, rows, given)
        true = _true_shares(kept, shares, repeated, moved)
        joint = true * moved[kept, given]
        own = (joint * (kept == given)).sum(1) + np.finfo(np.float32).tiny  # 0 of 0: no reason to doubt
        joint[kept == given] = -1
        likely = joint.argmax(1)
        at = np.arange(len(rows)), likely
        rest = joint.clip(0).sum(1)
        suggestion[rows], other[rows] = kept[at], shares[at]
        wrong[rows] = np.clip(rest / (own + rest), 0, _SUREST)
        right[rows] = np.minimum(joint[at].clip(0) / (own + rest), wrong[rows])
    wrong, right = (np.where(of_few(labels, len(spread)), 0, part).astype(np.float32) for part in (wrong, right))
    order = np.lexsort((guesses.own - other, -wrong))
    return Suspects(
        order, suggestion[order], wrong[order], right[order], guesses.own[order], (other - guesses.own)[order]
    )


def _kept(guesses: Guesses, rows: Ints, given: Ints) -> tuple[Ints, Floats, np.ndarray]:
    """Classes kept of images and their label (n, K + 1), shares of both, and where the label stands twice (n,)."""
    kept = np.concatenate([guesses.classes[rows].astype(np.int64), given], 1)
    repeated = (kept[:, :-1] == given).any(1)
    own = np.where(repeated, 0, guesses.own[rows])
    return kept, np.concatenate([guesses.shares[rows], own[:, None]], 1).astype(np.float32), repeated


def _true_shares(kept: Ints, shares: Floats, repeated: np.ndarray, moved: Floats) -> Floats:
    """Probabilities of true classes (n, K + 1) that explain those of labels."""
    matrix = moved[kept[:, :, None], kept[:, None, :]]
    matrix[repeated, -1, :] = 0
    matrix[repeated, :, -1] = 0
    tiny = np.finfo(np.float32).tiny
    seen = np.maximum(matrix.sum(2), tiny)
    true = shares.copy()
    for _ in range(_ITERATIONS):
        explained = np.maximum((true[:, None, :] @ matrix)[:, 0], tiny)
        true *= (matrix @ (shares / explained)[:, :, None])[:, :, 0] / seen
    return true
