"""Which classes are named right, and what is taken for what: from the predictions that jobs keep."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from eval.jobs.results import Predictions, read_predictions
from tt_ray.bootstrap import share_right
from tt_ray.terminal.errors import UserError

MOST_CLASSES = 20
"""Classes up to which the page draws a confusion matrix; files have all of them."""
_SHADES = 9
Key = tuple[str, str, str]
"""Protocol, task and model, as they are labelled."""


class Confusion(NamedTuple):
    """How often images of a class were taken for another one, over seeds and draws; without pairs that never happen."""

    protocol: str
    task: str
    model: str
    labels: npt.NDArray[np.int64]
    """True class of each pair; classes are counted from 0, in the order of the task's."""
    predicted: npt.NDArray[np.int64]
    """Predicted class of each pair."""
    images: npt.NDArray[np.float64]
    """Images of each pair, on average."""
    right: npt.NDArray[np.float64]
    """Share of the draws in which each test image was named right, (n,)."""
    truth: npt.NDArray[np.int32]
    """True class of each test image, (n,)."""

    @property
    def classes(self) -> int:
        return int(max(self.labels.max(), self.predicted.max())) + 1

    def hardest(self) -> tuple[int, float, int | None]:
        """The class that is named right least often, that share in per cent, and what it is most often taken for."""
        counts = np.bincount(self.truth)
        shares = np.bincount(self.truth, self.right) / np.maximum(counts, 1)
        worst = int(np.argmin(np.where(counts > 0, shares, np.inf)))
        wrong = (self.labels == worst) & (self.predicted != worst)
        taken = int(self.predicted[wrong][np.argmax(self.images[wrong])]) if wrong.any() else None
        return worst, 100 * float(shares[worst]), taken

    def shades(self) -> dict[float, str]:
        """A path of unit squares for every shade: predicted classes across, true ones down, as shares of the true."""
        shares = self.images / np.bincount(self.truth, minlength=self.classes)[self.labels]
        levels = np.ceil(_SHADES * shares - 1e-9).astype(int)
        return {
            round(level / _SHADES, 2): "".join(
                f"M{x} {y}h1v1h-1z" for x, y in zip(self.predicted[mine], self.labels[mine], strict=True)
            )
            for level in range(1, _SHADES + 1)
            if (mine := levels == level).any()
        }


def confusions(out: Path, jobs: Mapping[Key, Sequence[str]]) -> tuple[Confusion, ...]:
    """One for each protocol, task and model whose jobs kept predictions for the same images; others are left out."""
    found: list[Confusion] = []
    for key, names in jobs.items():
        kept = [each for name in names if (each := _read(out, name)) is not None]
        if not kept or any(not np.array_equal(each.labels, kept[0].labels) for each in kept):
            continue
        truth = kept[0].labels
        predictions = np.concatenate([each.predictions for each in kept]).astype(np.int64)
        base = int(max(predictions.max(), truth.max())) + 1
        pairs, counts = np.unique(truth * base + predictions, return_counts=True)
        right = np.mean([share_right(*each) for each in kept], 0)
        found.append(Confusion(*key, pairs // base, pairs % base, counts / len(predictions), right, truth))
    return tuple(found)


def _read(out: Path, job: str) -> Predictions | None:
    """None where a job kept none, or only damaged ones, of which the differences tell."""
    try:
        return read_predictions(out, job)
    except UserError:
        return None


def confusion_csv(found: Sequence[Confusion]) -> str:
    """A line for each pair of classes that happens: every confusion matrix, and the accuracy of every class."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["protocol", "task", "model", "class", "predicted", "images"])
    for each in found:
        pairs = zip(each.labels.tolist(), each.predicted.tolist(), each.images.tolist(), strict=True)
        writer.writerows([each.protocol, each.task, each.model, *pair] for pair in pairs)
    return stream.getvalue()


def write_images(found: Sequence[Confusion], path: Path) -> None:
    """A row for each test image of each protocol, task and model: its class, and how often it was named right."""
    names = ("protocol", "task", "model")
    own = [("image", pa.int64()), ("class", pa.int32()), ("right", pa.float64())]
    schema = pa.schema([*((name, pa.string()) for name in names), *own])
    with pq.ParquetWriter(path, schema) as writer:
        for each in found:
            columns = [pa.repeat(getattr(each, name), len(each.truth)) for name in names]
            columns += [pa.array(np.arange(len(each.truth))), pa.array(each.truth), pa.array(each.right)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
