"""Reliability diagrams: how often predictions of a confidence are right (Guo et al., 2017, arXiv 1706.04599)."""

import csv
import io
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eval.metrics import BINS, calibration_error, confidence_bins
from eval.report.kept import Kept, Key
from tt_ray.statistics import spread
from tt_ray.terminal.errors import some

Floats = npt.NDArray[np.float64]


class Reliability(NamedTuple):
    """The predictions of one protocol, task and model in equally wide bins of confidence, over seeds and draws."""

    protocol: str
    task: str
    model: str
    images: Floats
    """Images of each bin, on average over seeds and draws: their sum is the number of test images."""
    confidence: Floats
    """Mean probability of the predicted class in each bin, in [0, 1]; NaN where there is none."""
    accuracy: Floats
    """Share of right predictions in each bin; NaN where there is none."""
    ece: float
    """Expected calibration error in points, the mean over seeds: that of a seed is the metric `ece` of its job."""
    ece_std: float | None
    """Its sample standard deviation over seeds; None for one."""

    def means(self) -> tuple[float, float]:
        """Mean confidence and accuracy of all images, in per cent."""
        filled = self.images > 0
        weights = self.images[filled] / self.images.sum()
        return 100 * float(weights @ self.confidence[filled]), 100 * float(weights @ self.accuracy[filled])


def reliability(kept: Kept) -> Reliability | None:
    """The diagram of the seeds that kept probabilities; None where none did."""
    if not kept.confidence:
        return None
    confidence = np.concatenate([each.astype(np.float64) for each in kept.confidence.values()])
    right = kept.all_predictions(list(kept.confidence)) == kept.truth
    bins = confidence_bins(confidence.ravel())
    counts = np.bincount(bins, minlength=BINS)
    sums = (np.bincount(bins, values.ravel(), minlength=BINS) for values in (confidence, right))
    sure, accuracy = (np.divide(each, counts, out=np.full(BINS, np.nan), where=counts > 0) for each in sums)
    errors = [
        fmean(calibration_error(*pair) for pair in zip(own, kept.predictions[seed] == kept.truth, strict=True))
        for seed, own in kept.confidence.items()
    ]
    return Reliability(*kept.key, counts / len(confidence), sure, accuracy, fmean(errors), spread(errors))


def without_diagram(lacking: Sequence[tuple[Key, bool]]) -> list[str]:
    """Sentences on what has no reliability diagram, one for each protocol and reason.

    Args:
        lacking: Protocol, task and model, and whether their jobs reported a calibration error.
    """
    reasons: dict[tuple[str, str], list[str]] = {}
    for (protocol, task, model), calibrated in lacking:
        reason = (
            "was evaluated before probabilities were kept: its calibration error stands, but it has no reliability "
            "diagram; evaluate into a new folder for one"
            if calibrated
            else "gives no probabilities, so that it has no reliability diagram"
        )
        reasons.setdefault((protocol, reason), []).append(f"{model} on {task}")
    return [f"{protocol} {reason} ({some(where)})." for (protocol, reason), where in reasons.items()]


def reliability_csv(found: Sequence[Reliability]) -> str:
    """A line for each bin of each diagram; numbers in full."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["protocol", "task", "model", "low", "high", "images", "confidence", "accuracy"])
    for each in found:
        for number, (images, confidence, accuracy) in enumerate(
            zip(each.images.tolist(), each.confidence.tolist(), each.accuracy.tolist(), strict=True)
        ):
            means = (confidence, accuracy) if images else ("", "")
            low, high = number / BINS, (number + 1) / BINS
            writer.writerow([each.protocol, each.task, each.model, low, high, images, *means])
    return stream.getvalue()
