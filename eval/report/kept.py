"""What jobs kept of single test images, read once: classes, pairs of models and calibration are made of it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eval.jobs.image_names import ImageNames, read_names
from eval.jobs.results import ResultRow, read_confidence, read_predictions
from tt_ray.bootstrap import Shares, share_right
from tt_ray.terminal.errors import UserError

Key = tuple[str, str, str]
"""Protocol, task and model, as they are labelled."""


class Kept(NamedTuple):
    """What the jobs of one protocol, task and model kept of each test image."""

    key: Key
    truth: npt.NDArray[np.int32]
    """True classes, (n,)."""
    predictions: dict[int, npt.NDArray[np.int32]]
    """Predicted classes of each seed, (draws, n)."""
    confidence: dict[int, npt.NDArray[np.floating]]
    """Their probabilities; without the seeds that kept none."""
    names: ImageNames | None
    """None in folders of results that are older than such names."""
    calibrated: bool
    """Whether the jobs reported a calibration error."""

    def all_predictions(self, seeds: Sequence[int] | None = None) -> npt.NDArray[np.int32]:
        """Predicted classes of seeds, by default of all, one row a draw, (seeds x draws, n)."""
        return np.concatenate([self.predictions[seed] for seed in seeds or self.predictions])

    def right(self, seeds: Sequence[int] | None = None) -> Shares:
        """How often each image was named right, (n,): the mean over seeds of the mean over draws."""
        own = [share_right(self.truth, self.predictions[seed]) for seed in seeds or self.predictions]
        return np.mean(own, 0)


def read_kept(out: Path, key: Key, rows: Sequence[ResultRow], note: Callable[[str], None]) -> Kept | None:
    """Reads what the jobs of one protocol, task and model kept.

    Args:
        out: Folder of results.
        key: Labels of protocol, task and model.
        rows: Rows of the jobs that are done, the last job of a seed last.
        note: Called with a sentence on each file of probabilities that is damaged.

    Returns:
        None where no job kept predictions, or seeds were tested on different images. Damaged predictions are left out:
        the differences report them.
    """
    truth, names = None, None
    predictions: dict[int, npt.NDArray[np.int32]] = {}
    confidence: dict[int, npt.NDArray[np.floating]] = {}
    for seed, row in sorted({row.seed: row for row in rows}.items()):
        try:
            found = read_predictions(out, row.job)
        except UserError:
            continue
        if found is None:
            continue
        if truth is not None and not np.array_equal(truth, found.labels):
            return None
        truth, predictions[seed] = found
        try:
            if (own := read_confidence(out, row.job, found.predictions.shape)) is not None:
                confidence[seed] = own
        except UserError as error:
            note(f"{error}.")
        names = names or _names(out, row)
    if truth is None:
        return None
    classes = 1 + max(int(truth.max()), *(int(each.max()) for each in predictions.values()))
    if names is not None and (len(names.ids) != len(truth) or len(names.classes) < classes):
        names = None
    return Kept(key, truth, predictions, confidence, names, any(row.metric == "ece" for row in rows))


def _names(out: Path, row: ResultRow) -> ImageNames | None:
    try:
        return read_names(out, str(json.loads(row.chosen)["image_names"]))
    except (ValueError, KeyError, TypeError):
        return None


def most_frequent(predictions: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The class that each image was most often taken for, (n,), of predictions (draws, n); of equals the first."""
    times = np.stack([(predictions == each).sum(0) for each in predictions])
    return np.take_along_axis(predictions, times.argmax(0)[None], 0)[0]
