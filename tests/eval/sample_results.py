"""Made-up results that look like those of `python -m eval`, for tests of the report and for looking at it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eval.jobs.image_names import ImageNames, keep_names
from eval.jobs.results import ResultRow, read_table, write_result
from eval.metrics import calibration_error
from eval.report.content import Report
from eval.report.numbers import build_report

TASKS: dict[str, tuple[int, int, str, float]] = {
    "digits": (10, 360, "top1", 0.97),
    "shapes_colour": (8, 1000, "top1", 0.91),
    "flowers102": (102, 6149, "mean_per_class", 0.84),
    "fgvc_aircraft": (100, 3333, "mean_per_class", 0.52),
    "dtd": (47, 1880, "top1", 0.66),
    "eurosat": (10, 2700, "top1", 0.945),
}
"""Classes, test images, metric and the baseline's accuracy."""
MODELS = {"base": 0.0, "textteacher": 0.02, "deit": 0.005}
"""What each gains over the baseline."""
_SPREAD = (0.3, 1.2, 1.6, -0.6, 1.0, 0.1)
VERSIONS = {"torch": "2.15.0", "timm": "1.0.31", "numpy": "2.4.6", "python": "3.11.9", "tt_ray": "0.1.0"}
COMMAND = (
    "python -m eval --models base=runs/base textteacher=runs/textteacher deit=timm:deit_small_patch16_224 "
    "--tasks digits shapes_colour flowers102 fgvc_aircraft dtd eurosat --protocols linear knn --seeds 0 1 2 --out out"
)


@dataclass(frozen=True)
class Job:
    """One made-up job."""

    model: str = "base"
    task: str = "digits"
    protocol: str = "linear"
    seed: int = 0
    metric: str = "top1"
    weights: str = ""
    protocol_hash: str = ""
    task_version: int = 1
    created: str = "2026-11-24T03:00:00+00:00"
    command: str = COMMAND
    versions: str = json.dumps(VERSIONS)

    @property
    def key(self) -> str:
        name = "".join(sign if sign.isascii() and sign.isalnum() else "_" for sign in self.model)[:60]
        parts = [name, self.task, str(self.task_version), self.protocol, self.protocol_hash, self.weights]
        return "-".join([*parts, str(self.seed)])

    def row(self, metric: str, value: float, n: int, status: str = "done", reason: str = "") -> ResultRow:
        return ResultRow(
            model=self.model,
            model_spec=f"runs/{self.model}",
            weights=self.weights or _digest(self.model),
            task=self.task,
            task_version=self.task_version,
            protocol=self.protocol,
            protocol_hash=self.protocol_hash or _digest(self.protocol)[:16],
            seed=self.seed,
            metric=metric,
            value=value,
            n=n,
            seconds=2.5,
            status=status,
            reason=reason,
            versions=self.versions,
            command=self.command,
            created=self.created,
            task_metric=self.metric,
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def score(labels: npt.NDArray[np.integer], predictions: npt.NDArray[np.integer]) -> dict[str, float]:
    """Plain loops, on purpose; the mean over draws."""
    found: dict[str, list[float]] = {"top1": [], "mean_per_class": []}
    for row in np.atleast_2d(predictions):
        found["top1"].append(100 * float((row == labels).mean()))
        shares = [float((row[labels == name] == name).mean()) for name in np.unique(labels)]
        found["mean_per_class"].append(100 * sum(shares) / len(shares))
    return {name: sum(values) / len(values) for name, values in found.items()}


def finish(
    out: Path,
    job: Job,
    labels: npt.NDArray[np.integer],
    predictions: npt.NDArray[np.integer],
    extra: Mapping[str, float] | None = None,
    confidence: npt.NDArray[np.floating] | None = None,
    classes: Sequence[str] = (),
) -> None:
    """Adds a job that is done; with probabilities of its predictions, and with names of its classes and images."""
    metrics = score(labels, predictions) | dict(extra or {})
    rows = [job.row(*pair, len(labels)) for pair in metrics.items()]
    if classes:
        ids = pa.array([f"{job.task}/{row}.png" for row in range(len(labels))], pa.string())
        key = keep_names(out, job.task, ImageNames(tuple(classes), ids))
        rows = [replace(row, chosen=json.dumps({"image_names": key})) for row in rows]
    write_result(out, job.key, rows, predictions, labels, confidence)


def sure(right: npt.NDArray[np.bool_], accuracy: float, seed: int) -> npt.NDArray[np.float32]:
    """Probabilities of predictions, higher for right ones: a little too sure of themselves."""
    rng = np.random.default_rng(seed)
    return (1 - (1 - accuracy) * rng.random(right.shape) * np.where(right, 1.0, 3.0)).clip(0.05, 1).astype(np.float32)


def fail(out: Path, job: Job, reason: str) -> None:
    """Adds a job that failed."""
    row = job.row("", float("nan"), 0, "failed", reason)
    write_result(out, job.key, [row])


def guess(
    labels: npt.NDArray[np.integer], classes: int, accuracy: float, ease: npt.NDArray[np.floating], seed: int
) -> npt.NDArray[np.int64]:
    """Predictions that are right for images that are easy, give or take: models agree on most of them."""
    rng = np.random.default_rng(seed)
    right = ease + rng.normal(0, 0.08, len(labels)) < accuracy
    return np.where(right, labels, (labels + rng.integers(1, classes, len(labels))) % classes)


def write_sample(
    out: Path,
    models: Mapping[str, float] = MODELS,
    tasks: Sequence[str] = tuple(TASKS),
    protocols: Mapping[str, float] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    failing: Sequence[tuple[str, str, str]] = (("deit", "eurosat", "knn"),),
) -> None:
    """Results of models (name: gain) on tasks under protocols (name: gain); `failing` are model, task, protocol."""
    for protocol, offset in (protocols or {"linear": 0.0, "knn": -0.06}).items():
        for number, task in enumerate(tasks):
            classes, images, metric, level = TASKS[task]
            rng = np.random.default_rng(number)
            labels, ease = rng.integers(0, classes, images), rng.random(images)
            for place, (model, gain) in enumerate(models.items()):
                for seed in seeds:
                    job = Job(model, task, protocol, seed, metric)
                    if (model, task, protocol) in failing:
                        fail(out, job, "out of memory with 8 images in a batch: give --batch-size 4 or more memory")
                        continue
                    accuracy = level + offset + gain * _SPREAD[number] * (1 + 0.3 * place)
                    predictions = guess(labels, classes, accuracy, ease, 1000 * place + seed)
                    extra, confidence = {}, None
                    if protocol == "linear":
                        confidence = sure(predictions == labels, accuracy, 1000 * place + seed)
                        extra = {"ece": calibration_error(confidence, predictions == labels)}
                    names = [f"{task} class {number}" for number in range(classes)]
                    finish(out, job, labels, predictions, extra, confidence, names)


LABELS = np.arange(200) % 4


def wrong(first: int, last: int) -> npt.NDArray[np.int64]:
    """Predictions of LABELS that are right but from image `first` to `last`."""
    return np.where((np.arange(200) >= first) & (np.arange(200) < last), (LABELS + 1) % 4, LABELS)


def build(out: Path, baseline: str | None = None) -> Report:
    """The report of a folder."""
    return build_report(out, read_table(out), baseline, lambda what, done, of: None)
