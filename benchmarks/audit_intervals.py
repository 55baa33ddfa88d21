"""Few images: how often the audit's interval holds the share of wrong labels that is known.

    python -m benchmarks.audit_intervals --roots emoji=EMOJI

Gaussian classes, and images of clip art and of image folders with captions, from 60 to 1,000 of them, in 3 to 100
classes, and all of them as one class and the rest, with labels that are replaced. Settings whose captions know nothing,
or of which no class is judged, have no estimate and do not count.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.audit import NOISES, configure, table
from tt_ray.audit.inputs import Inputs, read_inputs
from tt_ray.audit.learning import learn
from tt_ray.audit.noise import of_few
from tt_ray.audit.out_of_fold import Embedded
from tt_ray.terminal.progress import Display

SIZES = ((60, 3), (200, 5), (1000, 10), (500, 100), (1000, 100))
"""Images and Gaussian classes."""
DISTANCES = (0.7, 1.0, 2.0, 4.0)
"""Of class centres, from classes that overlap to classes that never do."""
SAMPLES = (60, 150, 400, 1000)
"""Images of real data."""
SEEDS = 3


class Sample(NamedTuple):
    """Embeddings with right labels."""

    name: str
    classes: int
    table: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def gaussians(seed: int) -> Iterator[Sample]:
    """Gaussian classes of 256 dimensions, of equal sizes or with sizes in proportion to 1, 1/2, 1/3, ..."""
    for (count, classes), distance, uneven in itertools.product(SIZES, DISTANCES, (False, True)):
        random = np.random.default_rng(seed)
        sizes = 1 / np.arange(1, classes + 1) if uneven else np.ones(classes)
        labels = random.choice(classes, count, p=sizes / sizes.sum())
        centres = distance * random.normal(size=(classes, 256)) / 16
        table = centres[labels] + random.normal(size=(count, 256)) * 8**0.5 / 16
        name = f"{count:,} of {classes} Gaussian classes" + ", uneven" * uneven
        yield Sample(name, classes, table.astype(np.float32), labels)


def samples(name: str, inputs: Inputs, seed: int) -> Iterator[Sample]:
    """Images of a data set, drawn at random."""
    for count in SAMPLES:
        rows = np.sort(np.random.default_rng(seed).choice(len(inputs.images), count, replace=False))
        table = inputs.data.table[inputs.data.rows[rows]].astype(np.float32)
        yield Sample(f"{count:,} of {name}", inputs.data.classes, table, inputs.data.labels[rows])


def rare_classes(name: str, inputs: Inputs, seed: int) -> Iterator[Sample]:
    """One class of a data set against all others: each class with one of the seeds."""
    table = inputs.data.table[inputs.data.rows].astype(np.float32)
    for number in range(seed, inputs.data.classes, SEEDS):
        own = (inputs.data.labels == number).astype(np.int64)
        yield Sample(f"one class of {name} against the others", 2, table, own)


def covered(sample: Sample, seed: int) -> Iterator[dict[str, Any]]:
    """For each noise, whether its interval holds the share of labels that are wrong, of classes that are judged."""
    for noise, kind in NOISES:
        random, count = np.random.default_rng(1000 + seed), len(sample.labels)
        shift = 1 if kind == "pair" else random.integers(1, sample.classes, count)
        labels = np.where(random.random(count) < noise, (sample.labels + shift) % sample.classes, sample.labels)
        judged = ~of_few(labels, sample.classes)
        learned = learn(Embedded(sample.table, np.arange(count), labels, sample.classes), lambda *_: None)
        share, true = learned.noise.share, float((labels != sample.labels)[judged].mean()) if judged.any() else 0.0
        if learned.knows and learned.noise.anchors:
            yield {
                "data": sample.name, "inside": share.low <= true <= share.high, "above": share.low > true,
                "width": share.high - share.low, "off": abs(share.value - true),
                "joint_off": abs(learned.noise.confident.value - true),
            }  # fmt: skip


def coverage(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means by data, and of all."""
    names = [*dict.fromkeys(row["data"] for row in rows), "all"]
    groups = {name: [row for row in rows if name in (row["data"], "all")] for name in names}
    figures = ("inside", "above", "width", "off", "joint_off")
    return [
        {"data": name, "cases": len(own), **{each: float(np.mean([row[each] for row in own])) for each in figures}}
        for name, own in groups.items()
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--roots", nargs="*", default=[], metavar="NAME=DIR", help="image folders with captions")
    parser.add_argument("--storage", type=Path, default=Path("runs"), help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    roots = dict(each.split("=", 1) for each in given.roots)
    with Display() as display:
        clean = {
            name: read_inputs(configure(name, {"data.label_noise": 0.0}, roots, given.storage), display)
            for name in ("clipart", *roots)
        }
        found = list[dict[str, Any]]()
        for seed in range(SEEDS):
            drawn = [
                *gaussians(seed),
                *(each for make in (samples, rare_classes) for name in clean for each in make(name, clean[name], seed)),
            ]
            for number, sample in enumerate(drawn):
                display.show(f"samples of seed {seed}", number, len(drawn))
                found += covered(sample, seed)
    rows = coverage(found)
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
