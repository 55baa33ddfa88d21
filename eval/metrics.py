"""Metrics of predictions: pure functions of arrays. Shares are in per cent."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from eval.tasks.registry import Task

Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.floating]
BINS = 15
"""Bins of confidence, as Guo et al. (2017) have them."""


def top1(labels: Ints, predictions: Ints) -> float:
    """Share of images that are named right; labels and predictions (n,)."""
    return 100 * float(np.mean(labels == predictions))


def mean_per_class(labels: Ints, predictions: Ints, classes: int) -> float:
    """Mean over classes of the share of a class's images that are named right; labels and predictions (n,).

    Classes without an image do not count. The metric of Aircraft, Flowers, Pets and Caltech-101 (Kornblith et al.,
    2019, arXiv 1805.08974).
    """
    images = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[labels == predictions], minlength=classes)
    there = images > 0
    return 100 * float(np.mean(right[there] / images[there]))


def score(task: "Task", labels: Ints, predictions: Ints) -> dict[str, float]:
    """Both accuracies; `task.metric` names the one that the task's authors report."""
    return {"top1": top1(labels, predictions), "mean_per_class": mean_per_class(labels, predictions, task.classes)}


def confidence_bins(confidence: Floats, bins: int = BINS) -> npt.NDArray[np.int64]:
    """The bin of each image, (n,), by the probability of its predicted class, (n,): bin m is (m/bins, (m + 1)/bins]."""
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, confidence.astype(np.float64)) - 1, 0, bins - 1)


def expected_calibration_error(probs: Floats, right: npt.NDArray[np.bool_] | Ints, bins: int = BINS) -> float:
    """ECE, as `calibration_error` defines it, of probabilities.

    Args:
        probs: probabilities of classes (n, C); each row sums to 1.
        right: labels (n,), or, where an image can have several, whether each prediction is right (n,).
        bins: their number.
    """
    named = right.astype(np.bool_) if right.dtype == np.bool_ else probs.argmax(1) == right
    return calibration_error(probs.max(1), named, bins)


def calibration_error(confidence: Floats, right: npt.NDArray[np.bool_], bins: int = BINS) -> float:
    """How far confidence is from accuracy on average (Guo et al., 2017, arXiv 1706.04599, equation 3), in points.

    Images fall into `bins` equally wide bins by their confidence, see `confidence_bins`; each bin counts by its images:
    ECE = sum over bins of |right answers - sum of confidences| / n, in per cent.

    Args:
        confidence: probability of each predicted class (n,).
        right: whether each prediction is right (n,).
        bins: their number.
    """
    confidence = confidence.astype(np.float64)
    gaps = np.bincount(confidence_bins(confidence, bins), right.astype(np.float64) - confidence, minlength=bins)
    return 100 * float(np.abs(gaps).sum()) / len(confidence)
