"""Where a task's images come from: built-in sets, torchvision's, Hugging Face's, and folders or Parquet of users.

An origin opens the splits that a task calls train, val and test. It raises `Missing` where the files are not there, so
that the next origin of the task is tried, and UserError where they are there but cannot be used.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from tt_ray.config import DataConfig, ShapesConfig
from tt_ray.data.sources.base import Pixels, Source
from tt_ray.data.sources.decoding import ImageReader, square
from tt_ray.data.sources.image_folder import FolderImages, folder_source
from tt_ray.data.sources.labels import common_classes
from tt_ray.data.sources.metadata import METADATA_NAMES
from tt_ray.stateless_random import place_in_class, uniform
from tt_ray.terminal.errors import UserError, one_line

Rows = npt.NDArray[np.int64]
Split = Literal["train", "val", "test"]
SHAPES_SEED = 7_919
"""Seed of the pictures; runs draw theirs with others (0 by default), so no training picture is in a test split."""
SHAPES_SIZE = 32
"""Height and width in pixels at which the pictures are drawn, whatever the model's input."""
VALIDATION_NAMES = ("val", "validation", "valid", "dev")


class Missing(UserError):
    """The files of a task were not found."""


class Place(NamedTuple):
    """Where to look for a task's files."""

    root: Path
    given: bool
    """The user chose this folder for this task; otherwise it holds many sets, each in a folder of its own."""


class Opened(NamedTuple):
    """One split of a task."""

    source: Source
    identity: str
    """Stands for the images, together with their ids: what set it is, and sizes and times of the user's files."""


class Origin(Protocol):
    """One way to get a task's images."""

    def open(self, split: Split, place: Place) -> Opened:
        """The split; raises Missing or UserError."""
        ...

    def help(self, place: Place) -> str:
        """A command or an action that puts the images where they will be found; empty where there is none."""
        ...


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The package's drawn shapes with one of their attributes as label: 4,096 training and 1,024 test pictures."""

    label: Literal["shape", "colour", "count", "relation", "background"]
    train_size: int = 4096
    test_size: int = 1024

    def open(self, split: Split, place: Place) -> Opened:
        """Drawn at 32 px, as the default recipe trains on them, and resized from there for other models."""
        # Not the label: all attributes are of the same pictures, whose features are then extracted once.
        return Opened(_shapes(self, split), f"shapes {SHAPES_SEED} {SHAPES_SIZE}")

    def help(self, place: Place) -> str:
        return ""


@functools.lru_cache(maxsize=16)
def _shapes(origin: Shapes, split: Split) -> Source:
    """Cached, as a process that works on many jobs needs the same few again and again; pictures are not held."""
    from tt_ray.data.sources.shapes import shapes_source

    config = ShapesConfig(origin.train_size, origin.test_size, origin.label, "class", SHAPES_SEED)
    drawn = shapes_source(config, "train" if split == "train" else "val", SHAPES_SIZE)

    def pixels(rows: Rows, size: int) -> Pixels:
        native = drawn.pixels(rows, SHAPES_SIZE)
        if size == SHAPES_SIZE:
            return native
        return np.stack([square(Image.fromarray(image), size) for image in native])

    return dataclasses.replace(drawn, captions=None, tasks=None, pixels=pixels)


@dataclasses.dataclass(frozen=True)
class ArrayImages(ImageReader):
    """Images in memory, uint8 (N, H, W) or (N, H, W, 3)."""

    images: npt.NDArray[np.uint8]
    where: str

    def open(self, row: int) -> Image.Image:
        return Image.fromarray(self.images[row])

    def name(self, row: int) -> str:
        return f"{self.where}, row {row}"


@dataclasses.dataclass(frozen=True)
class Digits:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels.

    They have no official split (they are the test part of UCI's Optical Recognition of Handwritten Digits): a fifth
    of each class, drawn by a hash of the row number with seed 0, is the test split.
    """

    def open(self, split: Split, place: Place) -> Opened:
        return Opened(_digits(split == "test"), "digits")

    def help(self, place: Place) -> str:
        return ""


@functools.cache
def _digits(test: bool) -> Source:
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    images, labels = data.images, data.target.astype(np.int64)
    grey = (images * (255 / 16) + 0.5).astype(np.uint8)  # they are grey levels from 0 to 16
    reader = ArrayImages(grey, "digits")
    ids = pa.array(map(str, range(len(labels))), pa.string())
    source = Source(ids, labels, tuple(map(str, range(10))), None, reader.read, reader.pixels)
    return source.select(np.flatnonzero(mark_share(labels, 0.2, 0) == test))


def mark_share(labels: Rows, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Marks a share of the rows, (N,), nearly the same in each class: a function of labels and seed alone.

    Rounding is carried on from class to class, so that the whole is exact; of each class at least one row stays
    unmarked.
    """
    counts = np.bincount(labels)
    wanted = np.diff(np.floor(np.cumsum(counts) * share + 0.5).astype(np.int64), prepend=0)
    wanted = np.minimum(wanted, np.maximum(counts - 1, 0))
    rank = uniform(np.arange(len(labels)), 1, seed, 0x5711)[:, 0]
    return place_in_class(labels, rank) < wanted[labels]


@dataclasses.dataclass(frozen=True)
class Torchvision:
    """A class of torchvision.datasets, read from a folder that has its files already.

    Nothing is downloaded: jobs that run at the same time would write the same files.
    """

    name: str
    splits: Mapping[Split, str]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    flag: bool = False
    """The class takes train=True or False in place of split."""
    downloads: bool = True

    def open(self, split: Split, place: Place) -> Opened:
        import torchvision

        from tt_ray.data.sources.torchvision import TorchvisionImages, own_loader

        chosen = {"train": split == "train"} if self.flag else {"split": self.splits[split]}
        where = f"torchvision's {self.name} ({self.splits[split]}) in {place.root}"
        make = getattr(torchvision.datasets, self.name)
        try:
            dataset = make(root=str(place.root), **chosen, **self.arguments, **own_loader(make))
        except (RuntimeError, FileNotFoundError, NotADirectoryError) as error:
            reason = one_line(error)[:200]
            reason = "" if reason.startswith("Dataset not found") else f" ({reason})"
            raise Missing(f"torchvision finds no {self.name} ({self.splits[split]}) in {place.root}{reason}") from None
        labels = _labels(dataset)
        names = getattr(dataset, "classes", None) or range(int(labels.max(initial=-1)) + 1)
        images = TorchvisionImages(dataset, where)
        ids = pa.array(map(str, range(len(labels))), pa.string())
        source = Source(ids, labels, tuple(map(str, names)), None, images.read, images.pixels)
        return Opened(source, f"torchvision {self.name} {self.splits[split]} {dict(self.arguments)}")

    def help(self, place: Place) -> str:
        if not self.downloads:
            return f"put the files that torchvision.datasets.{self.name} asks for into {place.root}"
        splits = [{"train": True}, {"train": False}] if self.flag else [{"split": s} for s in self.splits.values()]
        arguments = ", ".join(f"{k}={v!r}" for k, v in {**splits[0], **self.arguments, "download": True}.items())
        return f"python -c \"import torchvision; torchvision.datasets.{self.name}('{place.root}', {arguments})\""


def _labels(dataset: Any) -> Rows:
    for name in ("targets", "labels", "_labels"):
        if hasattr(dataset, name):
            return np.asarray(getattr(dataset, name)).astype(np.int64)
    return np.array([label for _, label in dataset._samples], np.int64)


@dataclasses.dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub, or of its cache on this machine."""

    id: str
    splits: Mapping[Split, str]
    image: str = "image"
    label: str = "label"
    name: str = ""
    """Configuration, if it has several."""

    def open(self, split: Split, place: Place) -> Opened:
        from tt_ray.data.sources.hf_datasets import table_source

        if place.given:
            raise Missing(f"the hub's {self.id} is not tried where a folder is given")
        config = DataConfig(
            source="datasets", root=self.id, name=self.name, image_column=self.image, label_column=self.label
        )

        def read(name: str) -> Source:
            try:
                return table_source(config, name, need_captions=False)
            except UserError as error:
                reason = str(error).split("; check --")[0].removeprefix(f"cannot load {self.id} ({name}): ")
                raise Missing(f"the hub's {self.id} cannot be loaded: {reason[:200]}") from None

        source = read(self.splits[split])
        if split != "train" and "train" in self.splits:
            source = common_classes(read(self.splits["train"]), source, f"the hub's {self.id}", True, split)
        return Opened(source, f"hub {self.id} {self.name} {self.splits[split]}")

    def help(self, place: Place) -> str:
        arguments = ", ".join(repr(part) for part in (self.id, self.name) if part)
        return f'python -c "import datasets; datasets.load_dataset({arguments})" with network and the same HF_HOME'


@dataclasses.dataclass(frozen=True)
class Files:
    """A user's folder: a folder of images for each split (class sub-folders, or metadata), or Parquet.

    Splits are called train, test and (if there is one) val, validation, valid or dev, unless `splits` says otherwise.
    """

    splits: Mapping[Split, str] = dataclasses.field(default_factory=dict[Split, str])
    image: str = "image"
    label: str = "label"
    folders: tuple[str, ...] = ()
    """Where to look in a folder that holds many sets."""

    def open(self, split: Split, place: Place) -> Opened:
        for root in places(place, self.folders):
            if self._kind(root) is not None:
                return self._open(split, root)
        raise Missing(f"no folder train/ and no Parquet files in {place.root}")

    def help(self, place: Place) -> str:
        return ""

    def names(self, place: Place) -> dict[Split, str]:
        """Names of the splits that exist. Raises Missing when train or test does not."""
        root = next((root for root in places(place, self.folders) if self._kind(root) is not None), None)
        if root is None:
            raise Missing(f"{place.root} holds neither train/ and test/ nor Parquet files")
        there = self._there(root)
        found: dict[Split, str] = {}
        for split in ("train", "val", "test"):
            asked = self.splits.get(split)
            options = [asked] if asked else list(VALIDATION_NAMES) if split == "val" else [split]
            if asked in VALIDATION_NAMES and self._kind(root) == "datasets":
                options.append("validation")
            name = next((name for name in options if name in there), None)
            if name is not None:
                found[split] = name
            elif asked or split != "val":
                listed = ", ".join(sorted(there)) or "none"
                raise Missing(f"{root} has no split {options[0]!r} for {split} (there are: {listed})")
        return found

    def _kind(self, root: Path) -> Literal["imagefolder", "datasets"] | None:
        train = root / self.splits.get("train", "train")
        if train.is_dir() and not (train / "state.json").is_file() and not _parquet(train, "*.parquet"):
            return "imagefolder"
        return "datasets" if train.is_dir() or (root.is_dir() and _parquet(root, "**/*.parquet")) else None

    def _there(self, root: Path) -> set[str]:
        """Names of the splits that there are, as the reader of this kind of files calls them."""
        folders = {entry.name for entry in root.iterdir() if entry.is_dir()}
        if self._kind(root) == "imagefolder" or any((root / folder / "state.json").is_file() for folder in folders):
            return folders
        files = _parquet(root, "**/*.parquet")
        words = {file.parent.name for file in files if file.parent != root}
        words |= {word for file in files for word in re.split(r"[^A-Za-z]+", file.stem)}
        return {"validation" if word in VALIDATION_NAMES else word for word in words if word}

    def _open(self, split: Split, root: Path) -> Opened:
        names = self.names(Place(root, True))
        if split not in names:
            raise UserError(f"{root} has no split {split}")
        train = self._source(names["train"], root)
        source = train if split == "train" else self._source(names[split], root)
        if split != "train":
            source = common_classes(
                train, source, str(root), declared=False, split="validation" if split == "val" else split
            )
        if self._kind(root) == "imagefolder":
            files = [root / names[split] / name for name in source.ids.to_pylist()]
        else:
            files = sorted(file for kind in ("*.parquet", "*.arrow") for file in root.rglob(kind))
        return Opened(source, f"files {self.image} {names[split]} {stamp(files)}")

    def _source(self, name: str, root: Path) -> Source:
        config = DataConfig(root=str(root), image_column=self.image, label_column=self.label)
        if self._kind(root) == "imagefolder":
            return folder_source(config, name, need_captions=False)
        from tt_ray.data.sources.hf_datasets import table_source

        return table_source(config, name, need_captions=False)


def _parquet(folder: Path, pattern: str) -> list[Path]:
    """Tables of images; metadata.parquet belongs to a folder of images."""
    return [file for file in folder.glob(pattern) if file.name not in METADATA_NAMES]


def places(place: Place, folders: Sequence[str]) -> list[Path]:
    """The folders to look in: the user's own for this task itself, or those of the set in a shared one."""
    return [*([place.root] if place.given else []), *(place.root / folder for folder in folders)]


def files_source(root: Path, ids: Sequence[str], labels: Rows, classes: tuple[str, ...]) -> Opened:
    """Images as files below `root`, ids their relative paths, labels (N,)."""
    images = FolderImages(root, pa.array(ids, pa.string()))
    source = Source(images.ids, labels, classes, None, images.read, images.pixels)
    return Opened(source, f"files {stamp([root / name for name in ids])}")


def stamp(files: Sequence[Path]) -> str:
    """Stands for the files' contents: a hash of their sizes and times of change, in order."""
    digest = hashlib.sha256()
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from None
        digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
