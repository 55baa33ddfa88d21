"""Sets as their authors publish them, where neither torchvision nor `datasets` knows their splits."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from eval.tasks.origins import Missing, Opened, Place, Rows, Split, files_source, mark_share, places
from tt_ray.data.sources.file_listing import image_suffixes, is_set_aside, list_images
from tt_ray.stateless_random import place_in_class, uniform
from tt_ray.terminal.errors import UserError, some

Subset = Literal["imagenet", "imagenet_a", "imagenet_r"]


@dataclass(frozen=True)
class Cub:
    """CUB-200-2011 as Caltech publishes it: images/ and four lists of numbers."""

    folders: tuple[str, ...] = ("CUB_200_2011",)

    def open(self, split: Split, place: Place) -> Opened:
        root = _find(place, self.folders, "train_test_split.txt")
        names, labels, parts, classes = (
            dict(line.split(maxsplit=1) for line in _lines(root / f"{name}.txt"))
            for name in ("images", "image_class_labels", "train_test_split", "classes")
        )
        flag = "1" if split == "train" else "0"
        numbers = sorted((number for number in names if parts[number] == flag), key=int)
        ids = [f"images/{names[number]}" for number in numbers]
        found = np.array([int(labels[number]) - 1 for number in numbers], np.int64)
        return files_source(root, ids, found, tuple(classes[number] for number in sorted(classes, key=int)))

    def help(self, place: Place) -> str:
        return f"unpack CUB_200_2011.tgz into {place.root} (data.caltech.edu/records/65de6-vp158)"


@dataclass(frozen=True)
class Sun397:
    """SUN397 with the first of its authors' ten partitions (Training_01.txt, Testing_01.txt; Xiao et al., 2010)."""

    folders: tuple[str, ...] = ("SUN397",)

    def open(self, split: Split, place: Place) -> Opened:
        root = _find(place, self.folders, "a")
        name = "Training_01.txt" if split == "train" else "Testing_01.txt"
        lists = [folder / name for folder in (root, root / "Partitions", root.parent / "Partitions", root.parent)]
        path = next((path for path in lists if path.is_file()), None)
        if path is None:
            raise Missing(f"{root} has no {name}: unpack SUN's Partitions.zip into it")
        ids = [line.lstrip("/") for line in _lines(path)]
        # a/abbey/sun_1.jpg is abbey; b/bathroom/indoor/sun_2.jpg is bathroom/indoor
        kinds = [re.sub(r"^\w/|/[^/]*$", "", line) for line in ids]
        return _named(root, ids, kinds)

    def help(self, place: Place) -> str:
        return f"unpack SUN397.tar.gz and Partitions.zip into {place.root} (vision.princeton.edu/projects/2010/SUN)"


@dataclass(frozen=True)
class ClassFolders:
    """A set without official split as one folder for each class; its test split is drawn by hashes of the paths."""

    folders: tuple[str, ...]
    url: str
    leave_out: tuple[str, ...] = ()
    train_per_class: int = 0
    """Training images of each class; 0 takes `train_share` of each."""
    train_share: float = 0.8

    def open(self, split: Split, place: Place) -> Opened:
        root = next((root for root in places(place, self.folders) if _has_class_folders(root)), None)
        if root is None:
            raise Missing(f"no {' or '.join(self.folders)} in {place.root}")
        ids = [name for name in list_images(root).images if "/" in name]
        kept = [name for name in ids if name.split("/")[0] not in self.leave_out]
        opened = _named(root, kept, [name.split("/")[0] for name in kept])
        rows = np.flatnonzero(self._train(opened.source.labels) == (split == "train"))
        return files_source(root, [kept[row] for row in rows], opened.source.labels[rows], opened.source.classes)

    def _train(self, labels: Rows) -> npt.NDArray[np.bool_]:
        if not self.train_per_class:
            return ~mark_share(labels, 1 - self.train_share, 0)
        rank = uniform(np.arange(len(labels)), 1, 0, 0xCA17)[:, 0]
        return place_in_class(labels, rank) < self.train_per_class

    def help(self, place: Place) -> str:
        return f"unpack it so that {place.root}/{self.folders[0]} holds one folder for each class ({self.url})"


@dataclass(frozen=True)
class INaturalist:
    """iNaturalist of a year with its competition's lists, trainYEAR.json and valYEAR.json; val is the test split."""

    year: int

    def open(self, split: Split, place: Place) -> Opened:
        name = f"{'train' if split == 'train' else 'val'}{self.year}.json"
        root = _find(place, (f"inat{self.year}", f"{self.year}", "."), name)
        try:
            data: Any = json.loads((root / name).read_text())
            label = {entry["image_id"]: entry["category_id"] for entry in data["annotations"]}
            ids = [entry["file_name"] for entry in data["images"]]
            labels = np.array([label[entry["id"]] for entry in data["images"]], np.int64)
            kinds = {entry["id"]: str(entry["name"]) for entry in data["categories"]}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{root / name} is not a list of iNaturalist {self.year} ({error!r})") from None
        if ids and not (root / ids[0]).is_file():  # torchvision unpacks to YEAR/ what lists call train_valYEAR/
            ids = [f"{self.year}/{file.split('/', 1)[1]}" for file in ids]
        return files_source(root, ids, labels, tuple(kinds[number] for number in sorted(kinds)))

    def help(self, place: Place) -> str:
        return (
            f"unpack train_val{self.year}.tar.gz, train{self.year}.json and val{self.year}.json into {place.root} "
            "(github.com/visipedia/inat_comp)"
        )


@dataclass(frozen=True)
class ImageNet:
    """A folder of ImageNet's classes, each called by its WordNet id, or (V2) by its number from 0 to 999.

    Class k of the split is class `wordnet_ids(subset)[k]`. With `real`, images without a right answer are left out,
    and the label is the first right answer.
    """

    folders: tuple[str, ...]
    url: str
    subset: Subset = "imagenet"
    splits: bool = False
    """The folder holds train/ and val/; val is the test split."""
    real: bool = False

    def open(self, split: Split, place: Place) -> Opened:
        root = self._root(split, place)
        ids = [name for name in list_images(root).images if "/" in name]
        known = wordnet_ids(self.subset)
        kinds = [name.split("/")[0] for name in ids]
        number = self._numbers(kinds, known)
        self._check(root, set(kinds), number, len(known))
        labels = [number[kind] for kind in kinds]
        if self.real:
            answers = [real_labels()[image_number(name)] for name in ids]
            ids = [name for name, right in zip(ids, answers, strict=True) if right]
            labels = [right[0] for right in answers if right]
        return files_source(root, ids, np.array(labels, np.int64), known)

    def _root(self, split: Split, place: Place) -> Path:
        """The folder of class folders; raises Missing where there is none."""
        parts = ("", "val")  # some archives unpack to val/
        if self.splits:
            parts = ("train",) if split == "train" else ("val",)
        candidates = [root / part for root in places(place, self.folders) for part in parts]
        root = next((root for root in candidates if _has_class_folders(root)), None)
        if root is None:
            lacking = parts[0] or "class folders"
            raise Missing(f"no {' or '.join(self.folders)} with {lacking} in {place.root}")
        return root

    def _numbers(self, kinds: Sequence[str], known: Sequence[str]) -> dict[str, int]:
        """Class of each folder's name: its place among the WordNet ids, or (V2) the name itself."""
        if self.subset == "imagenet" and kinds and all(kind.isdecimal() for kind in kinds):
            return {kind: int(kind) for kind in kinds}
        return {name: number for number, name in enumerate(known)}

    def _check(self, root: Path, kinds: set[str], number: dict[str, int], classes: int) -> None:
        strange, lacking = sorted(kinds - set(number)), sorted(set(number) - kinds)
        if strange or lacking or len(kinds) != classes:
            problem = f"{some(strange)} are not among its classes" if strange else f"{some(lacking)} are lacking"
            raise UserError(f"{root} has {len(kinds)} class folders, but {self.subset} has {classes}: {problem}")

    def help(self, place: Place) -> str:
        return f"unpack it so that {place.root}/{self.folders[0]} holds one folder for each class ({self.url})"


@cache
def wordnet_ids(subset: Subset = "imagenet") -> tuple[str, ...]:
    """WordNet ids of a set's classes, sorted: the order that ImageNet-1k's class numbers follow. From timm's files."""
    return tuple(_timm_info(f"{subset}_synsets.txt").split())


@cache
def real_labels() -> tuple[tuple[int, ...], ...]:
    """The right classes of ImageNet's validation images, by image number from 1; 0 has none.

    Beyer et al., 2020, arXiv 2006.07159: real.json of github.com/google-research/reassessed-imagenet, as in timm.
    """
    listed: list[list[int]] = json.loads(_timm_info("imagenet_real_labels.json"))
    return ((), *(tuple(sorted(labels)) for labels in listed))


def image_number(name: str) -> int:
    """17 for `n01440764/ILSVRC2012_val_00000017.JPEG`; raises UserError when the file is not called so."""
    found = re.search(r"ILSVRC2012_val_(\d{8})\.", name)
    if not found or not 1 <= int(found[1]) < len(real_labels()):
        raise UserError(f"{name} is not called ILSVRC2012_val_NUMBER.JPEG, by which ReaL knows ImageNet's images")
    return int(found[1])


def _timm_info(name: str) -> str:
    """A file of timm's class lists; timm itself, which takes seconds to import, is only looked up."""
    spec = find_spec("timm")
    assert spec is not None and spec.submodule_search_locations
    return (Path(spec.submodule_search_locations[0]) / "data" / "_info" / name).read_text()


def _find(place: Place, folders: tuple[str, ...], file: str) -> Path:
    root = next((root for root in places(place, folders) if (root / file).exists()), None)
    if root is None:
        raise Missing(f"no {' or '.join(f'{folder}/{file}' for folder in folders)} in {place.root}")
    return root


def _has_class_folders(root: Path) -> bool:
    """Whether some folder in it holds an image."""
    if not root.is_dir():
        return False
    folders = (entry for entry in sorted(root.iterdir()) if entry.is_dir() and not is_set_aside(entry.name))
    inner, suffixes = next(folders, None), image_suffixes()
    return inner is not None and any(file.suffix.lower() in suffixes for file in inner.iterdir())


def _named(root: Path, ids: list[str], kinds: list[str]) -> Opened:
    classes = sorted(set(kinds))
    number = {name: place for place, name in enumerate(classes)}
    return files_source(root, ids, np.array([number[kind] for kind in kinds], np.int64), tuple(classes))


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise Missing(f"cannot read {path}: {error.strerror}") from None
