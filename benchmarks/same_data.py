"""What it costs to know that a run resumes on the data that it was begun on, at ImageNet's size.

    python -m benchmarks.same_data

Aim: under a second for what a command does when it resumes on unchanged data (the record of what it would train on, and
its comparison with the one in the run folder). Also measured: the first start, which writes the record, and a refusal,
which counts what has changed.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from tt_ray.config import Config
from tt_ray.data.prepare import Data
from tt_ray.data.sources.base import Source
from tt_ray.terminal.errors import UserError
from tt_ray.training.same_data import FILE, check_data, keep_data, record_data

IMAGES, CLASSES, VALIDATION = 1_281_167, 1_000, 50_000
AIM_S = 1.0
T = TypeVar("T")


def split(images: int, name: str) -> Source:
    """Ids as ImageNet has them, labels at random; nothing can be decoded."""
    labels = np.random.default_rng(0).integers(0, CLASSES, images)
    ids = pa.array([f"n{label:08d}/{name}_{number:08d}.JPEG" for number, label in enumerate(labels.tolist())])
    classes = tuple(f"n{number:08d}" for number in range(CLASSES))

    def never(*_: object) -> None:
        raise AssertionError("no image is read")

    return Source(ids, labels, classes, None, never, never)  # type: ignore[arg-type]


def timed(function: Callable[[], T]) -> tuple[float, T]:
    """Seconds, and what it returns."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def refusal(folder: Path, record: pa.Table) -> str:
    """The line that a changed data set is refused with."""
    try:
        check_data(folder, record, False)
    except UserError as error:
        return str(error)
    raise AssertionError("other data were taken")


def main() -> None:
    """Prints the table."""
    config, data = Config(), Data(split(IMAGES, "train"), split(VALIDATION, "val"), None, ())
    labels = data.train.labels.copy()
    labels[:7] = (labels[:7] + 1) % CLASSES
    changed = replace(data, train=replace(data.train, labels=labels).select(np.arange(5, IMAGES)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recorded, record = timed(lambda: record_data(config, data))
        written, _ = timed(lambda: keep_data(folder, record, []))
        compared, notes = timed(lambda: check_data(folder, record, False))
        assert notes == []
        other = record_data(config, changed)
        refused, line = timed(lambda: refusal(folder, other))
        size = (folder / FILE).stat().st_size
    assert "5 training images gone, 2 training labels differ" in line, line
    print("| at 1,281,167 + 50,000 images | seconds | aim |", "| --- | --- | --- |", sep="\n")
    print(f"| resume: record and compare | {recorded + compared:.2f} | under {AIM_S:g} |")
    print(f"| first start: record and write {size / 1e6:.1f} MB | {recorded + written:.2f} | |")
    print(f"| refusal: record, and count what changed | {recorded + refused:.2f} | |")


if __name__ == "__main__":
    main()
