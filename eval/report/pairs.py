"""A model and the baseline on the same test images: which ones one of them names right and the other does not."""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eval.jobs.image_names import ImageNames
from eval.report.kept import Kept, most_frequent
from tt_ray.bootstrap import Shares

Ints = npt.NDArray[np.integer]
_SAME = 1e-9
"""Shares of the same number of right answers may differ by rounding."""


class Pair(NamedTuple):
    """One model against the baseline, on every test image, over the seeds that both have."""

    protocol: str
    task: str
    model: str
    seeds: tuple[int, ...]
    truth: npt.NDArray[np.int32]
    """True classes, (n,)."""
    baseline_right: Shares
    """How often the baseline named each image right, over seeds and draws, (n,)."""
    right: Shares
    """How often the model did, (n,)."""
    baseline_predicted: npt.NDArray[np.int32]
    """What the baseline most often took each image for, (n,)."""
    predicted: npt.NDArray[np.int32]
    """What the model most often took each image for, (n,)."""
    names: ImageNames | None

    @property
    def better(self) -> npt.NDArray[np.bool_]:
        """Images that the model named right more often; with one seed: right, and the baseline wrong."""
        return self.right > self.baseline_right + _SAME

    @property
    def worse(self) -> npt.NDArray[np.bool_]:
        """Images that the model named right less often."""
        return self.right < self.baseline_right - _SAME

    def counts(self) -> list[int]:
        """Test images; both always right; both never right; the model more often right; less often."""
        lower, upper = np.minimum(self.right, self.baseline_right), np.maximum(self.right, self.baseline_right)
        groups = (lower > 1 - _SAME, upper < _SAME, self.better, self.worse)
        return [len(self.truth), *(int(each.sum()) for each in groups)]

    @property
    def p(self) -> float:
        """See `sign_test`."""
        return float(sign_test(self.better.sum(), self.worse.sum()))


def pair(model: Kept, baseline: Kept) -> Pair | None:
    """The two on the images of the test split; None without a common seed, or where the images are others."""
    seeds = tuple(seed for seed in model.predictions if seed in baseline.predictions)
    if not seeds or not np.array_equal(model.truth, baseline.truth):
        return None
    return Pair(
        *model.key,
        seeds,
        model.truth,
        baseline.right(seeds),
        model.right(seeds),
        most_frequent(baseline.all_predictions(seeds)),
        most_frequent(model.all_predictions(seeds)),
        model.names,
    )


def sign_test(better: Ints, worse: Ints) -> npt.NDArray[np.float64]:
    """Exact two-sided p of numbers of images that speak for one model and for the other, each in one array.

    With one prediction an image of each model this is McNemar's test (Psychometrika 12, 1947) in its exact form. Over
    several seeds an image counts once, for the model that named it right more often: predictions of one image are not
    pooled as if they were of several. It covers the drawing of test images, not the training of models.
    """
    from scipy.special import bdtr  # takes a tenth of a second, which a report without a pair need not wait for

    better, worse = np.asarray(better), np.asarray(worse)
    return np.minimum(1.0, 2 * bdtr(np.minimum(better, worse).astype(float), better + worse, 0.5))


def differing_csv(found: Sequence[Pair]) -> str:
    """A line for each image that a model and the baseline are not right on equally often."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    head = "protocol task model image id class class_name baseline_right right baseline_predicted predicted"
    writer.writerow(head.split())
    for each in found:
        rows = np.flatnonzero(each.better | each.worse)
        ids = each.names.ids.take(rows).to_pylist() if each.names else [""] * len(rows)
        labels = each.truth[rows].tolist()
        names = [each.names.classes[label] if each.names else "" for label in labels]
        own = (each.baseline_right, each.right, each.baseline_predicted, each.predicted)
        columns = zip(rows.tolist(), ids, labels, names, *(values[rows].tolist() for values in own), strict=True)
        writer.writerows([each.protocol, each.task, each.model, *line] for line in columns)
    return stream.getvalue()
