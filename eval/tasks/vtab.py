"""VTAB (Zhai et al., 2019, arXiv 1910.04867): its groups of tasks, those that no other table has, and VTAB-1k's images.

VTAB-1k takes 1,000 training images of a task: 800 to fit on, 200 to choose hyper-parameters by, all of them for the
last training, and the whole test split, whose metric is the share of right answers. Published are the first 800 and
200 images of TensorFlow Datasets' order. Without that order, these here are the first ones of an order that is drawn
from row numbers, the same for every model and seed: one of each class, then the others, so that classes keep their
shares. The 200 come from the official validation split where a task has one. `vtab1k:NAME` is this for any task.

Other differences from VTAB: its Caltech-101 has a class for the background; EuroSAT's, Caltech-101's and SUN397's
splits are those of our table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from eval.tasks.origins import Missing, Opened, Place, Rows, Split, places
from eval.tasks.shards import Shards
from tt_ray.stateless_random import place_in_class, uniform
from tt_ray.terminal.errors import UserError

PREFIX = "vtab1k:"
FIT, CHOOSE = 800, 200
"""Images of a task that are fitted on, and that hyper-parameters are chosen by."""
_DRAW = 0x17AB
GROUPS: Mapping[str, tuple[str, ...]] = {
    "natural": ("caltech101", "cifar100", "dtd", "flowers102", "pets", "svhn", "sun397"),
    "specialized": ("patch_camelyon", "eurosat", "resisc45", "diabetic_retinopathy"),
    "structured": (
        "clevr_count",
        "clevr_distance",
        "dmlab",
        "kitti_distance",
        "dsprites_location",
        "dsprites_orientation",
        "smallnorb_azimuth",
        "smallnorb_elevation",
    ),
}
NAMES = tuple(name for names in GROUPS.values() for name in names)


class Whole(Protocol):
    """A task as it is."""

    @property
    def has_val(self) -> bool: ...

    def opened(self, split: Split) -> Opened:
        """A split, and what stands for its images."""
        ...


@dataclass(frozen=True)
class Thousand:
    """VTAB-1k's 800 training and 200 validation images of a task, and its test split."""

    whole: Whole

    def open(self, split: Split, place: Place) -> Opened:
        if split == "test":
            return self.whole.opened("test")
        source, identity = self.whole.opened("val" if split == "val" and self.whole.has_val else "train")
        order, start = stratified_order(source.labels), 0
        if split == "val":
            start = 0 if self.whole.has_val else FIT
        count = FIT if split == "train" else CHOOSE
        return Opened(source.select(np.sort(order[start : start + count])), f"vtab1k {identity}")

    def help(self, place: Place) -> str:
        return ""


def stratified_order(labels: Rows) -> Rows:
    """All rows, (N,), drawn so that every beginning has one of each class, and else classes nearly in their shares."""
    rank = uniform(np.arange(len(labels)), 1, _DRAW)[:, 0]
    place = place_in_class(labels, rank)
    at = np.where(place, (place + 0.5) / np.bincount(labels)[labels], 0)
    return np.lexsort((rank, at))


def check_thousand(name: str, classes: int, sizes: Mapping[Split, int]) -> None:
    """Raises UserError when a task has too few images, or too many classes, for VTAB-1k."""
    if "train" not in sizes:
        problem = "has no training images"
    elif classes > FIT:
        problem = f"has {classes:,} classes, more than the {FIT} images to fit on"
    elif "val" in sizes and (sizes["train"] < FIT or sizes["val"] < CHOOSE):
        problem = f"has {sizes['train']:,} and {sizes['val']:,}"
    elif "val" not in sizes and sizes["train"] < FIT + CHOOSE:
        problem = f"has {sizes['train']:,} for both"
    else:
        return
    raise UserError(f"{PREFIX}{name} takes {FIT} training and {CHOOSE} validation images, but {name} {problem}")


def group_means(values: Mapping[str, float]) -> dict[str, float]:
    """Means of values by task over VTAB-1k's groups and over all its tasks; labels say how many of them there are."""
    means: dict[str, float] = {}
    for group, names in {**GROUPS, "all": NAMES}.items():
        there = [values[f"{PREFIX}{name}"] for name in names if f"{PREFIX}{name}" in values]
        if there:
            means[f"VTAB-1k {group} ({len(there)} of {len(names)})"] = float(np.mean(there))
    return means


@dataclass(frozen=True)
class ClipBenchmark:
    """A set of huggingface.co/clip-benchmark: shards train/N.tar and test/N.tar, each image with its class's number.

    They hold VTAB's own splits of TensorFlow Datasets, without the images that it validates on.
    """

    name: str
    classes: int = 0
    """Number of classes of the shards, where VTAB makes fewer of them: neighbours become one."""
    become: int = 0

    def open(self, split: Split, place: Place) -> Opened:
        folder = f"wds_vtab-{self.name}"
        root = next((root for root in places(place, (folder,)) if any(root.glob("train/*.tar"))), None)
        if root is None:
            raise Missing(f"no {folder}/train/*.tar in {place.root}")
        opened = Shards(str(root)).open(split, place)
        if not self.classes:
            return opened
        numbers = np.array([int(name) for name in opened.source.classes])
        labels = (numbers * self.become // self.classes)[opened.source.labels]
        return opened._replace(
            source=replace(opened.source, labels=labels, classes=tuple(map(str, range(self.become))))
        )

    def help(self, place: Place) -> str:
        id = f"clip-benchmark/wds_vtab-{self.name}"
        return f"hf download {id} --repo-type dataset --local-dir {place.root}/wds_vtab-{self.name}"
