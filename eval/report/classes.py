"""Which classes are named right, and what is taken for what: from the predictions that jobs keep."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from eval.jobs.image_names import ImageNames
from eval.report.kept import Kept, most_frequent
from eval.report.pairs import Pair, sign_test
from tt_ray.statistics import LEVEL, holm

MOST_CLASSES = 20
"""Classes up to which the page draws a confusion matrix, and shows all in the table of classes; files have all."""
_SHADES = 9


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
    taken_for: npt.NDArray[np.int32]
    """What each test image was most often taken for, (n,)."""
    confidence: npt.NDArray[np.float64] | None
    """Mean probability of what it was taken for, (n,); None where a job kept none."""
    names: ImageNames | None

    @property
    def classes(self) -> int:
        return int(max(self.labels.max(), self.predicted.max())) + 1

    def name(self, label: int) -> str:
        """What people call a class: its number where that is all that is known."""
        return str(label) if self.names is None else self.names.classes[label]

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


def confusion(kept: Kept) -> Confusion:
    """The confusion matrix of all that the jobs of one protocol, task and model kept."""
    truth, predictions = kept.truth, kept.all_predictions().astype(np.int64)
    base = int(max(predictions.max(), truth.max())) + 1
    pairs, counts = np.unique(truth * base + predictions, return_counts=True)
    sure = [each.astype(np.float64) for each in kept.confidence.values()]
    confidence = np.concatenate(sure).mean(0) if len(sure) == len(kept.predictions) else None
    return Confusion(
        *kept.key,
        pairs // base,
        pairs % base,
        counts / len(predictions),
        kept.right(),
        truth,
        most_frequent(kept.all_predictions()),
        confidence,
        kept.names,
    )


class ClassResult(NamedTuple):
    """One class of a task, as one model names it; shares are in per cent."""

    number: int
    name: str
    images: int
    accuracy: float
    """Share of the class's images that are named right (recall), over seeds and draws."""
    precision: float | None
    """Share of right answers among those that name the class; None where nothing is taken for it."""
    difference: float | None = None
    """Accuracy less that of the baseline, over the seeds that both have; None without a baseline."""
    better: int = 0
    """Images of the class that the model names right more often than the baseline."""
    worse: int = 0
    """Images that it names right less often."""
    p: float | None = None
    """`sign_test` of these, corrected for the number of the task's classes (Holm)."""

    @property
    def mark(self) -> int:
        """1: better than the baseline among all classes, -1: worse, 0: neither can be said."""
        if self.p is None or self.difference is None or self.p >= LEVEL:
            return 0
        return 1 if self.better > self.worse else -1


def class_results(found: Confusion, pair: Pair | None) -> list[ClassResult]:
    """One for each class that has test images, in the order of the classes; with differences where there is a pair."""
    size = found.classes
    images = np.bincount(found.truth, minlength=size)
    there = np.flatnonzero(images)
    accuracy = 100 * np.bincount(found.truth, found.right, minlength=size)[there] / images[there]
    own = found.labels == found.predicted
    hits = np.bincount(found.labels[own], found.images[own], minlength=size)
    named = np.bincount(found.predicted, found.images, minlength=size)
    rows = [
        ClassResult(number, found.name(number), int(images[number]), share, precision)
        for number, share in zip(there.tolist(), accuracy.tolist(), strict=True)
        for precision in [100 * float(hits[number] / named[number]) if named[number] else None]
    ]
    if pair is None:
        return rows
    gains = 100 * np.bincount(found.truth, pair.right - pair.baseline_right, minlength=size)[there] / images[there]
    better, worse = (np.bincount(found.truth[side], minlength=size)[there] for side in (pair.better, pair.worse))
    corrected = holm(sign_test(better, worse).tolist())
    columns = zip(gains.tolist(), better.tolist(), worse.tolist(), corrected, strict=True)
    return [
        row._replace(difference=gain, better=more, worse=less, p=p)
        for row, (gain, more, less, p) in zip(rows, columns, strict=True)
    ]


def shown_classes(rows: Sequence[ClassResult]) -> list[ClassResult]:
    """All of few classes; of many those that lost and gained most, or, without a baseline, the hardest and easiest.

    The worst first.
    """
    ordered = sorted(rows, key=lambda row: (row.accuracy if row.difference is None else row.difference, row.accuracy))
    half = MOST_CLASSES // 2
    return ordered if len(ordered) <= MOST_CLASSES else [*ordered[:half], *ordered[-half:]]


def classes_csv(found: Sequence[tuple[Confusion, Pair | None]]) -> str:
    """A line for each class of each protocol, task and model; numbers in full."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    head = "protocol task model class class_name images accuracy precision difference better worse p_holm significant"
    writer.writerow(head.split())
    for confusion, pair in found:
        for row in class_results(confusion, pair):
            compared = [row.difference, row.better, row.worse, row.p, {1: "better", -1: "worse", 0: "no"}[row.mark]]
            about = [
                confusion.protocol,
                confusion.task,
                confusion.model,
                row.number,
                "" if confusion.names is None else row.name,
            ]
            own = [row.images, row.accuracy, "" if row.precision is None else row.precision]
            writer.writerow([*about, *own, *(compared if pair else [""] * len(compared))])
    return stream.getvalue()


def confusion_csv(found: Sequence[Confusion]) -> str:
    """A line for each pair of classes that happens: every confusion matrix, and the accuracy of every class."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow("protocol task model class predicted images class_name predicted_name".split())
    for each in found:
        pairs = zip(each.labels.tolist(), each.predicted.tolist(), each.images.tolist(), strict=True)
        known = () if each.names is None else each.names.classes
        for pair in pairs:
            names = [known[label] for label in pair[:2]] if known else ["", ""]
            writer.writerow([each.protocol, each.task, each.model, *pair, *names])
    return stream.getvalue()


def write_images(found: Sequence[Confusion], path: Path) -> None:
    """A row for each test image of each protocol, task and model.

    What it is, what it was most often taken for, how often it was named right, and with which confidence on average.
    """
    names = ("protocol", "task", "model")
    own = [("image", pa.int64()), ("id", pa.string()), ("class", pa.int32()), ("class_name", pa.string())]
    own += [("predicted", pa.int32()), ("right", pa.float64()), ("confidence", pa.float64())]
    schema = pa.schema([*((name, pa.string()) for name in names), *own])
    with pq.ParquetWriter(path, schema) as writer:
        for each in found:
            count = len(each.truth)
            columns = [pa.repeat(getattr(each, name), count) for name in names]
            ids, classes = pa.nulls(count, pa.string()), pa.nulls(count, pa.string())
            if each.names is not None:
                ids, classes = each.names.ids, pa.array(each.names.classes, pa.string()).take(pa.array(each.truth))
            sure = pa.nulls(count, pa.float64()) if each.confidence is None else pa.array(each.confidence)
            columns += [pa.array(np.arange(count)), ids, pa.array(each.truth), classes]
            columns += [pa.array(each.taken_for), pa.array(each.right), sure]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
