"""torchvision's classification data sets, by class name."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torchvision
from PIL import Image

from tt_ray.config import DataConfig
from tt_ray.data.sources.base import DataSource, Source, split_name
from tt_ray.data.sources.decoding import ImageReader
from tt_ray.data.sources.labels import Labels
from tt_ray.terminal.errors import UserError, absent, nearest, one_line

NAMES = (
    "CIFAR10 CIFAR100 CLEVRClassification Country211 DTD FER2013 FGVCAircraft FashionMNIST Flowers102 Food101 GTSRB "
    "ImageNet Imagenette KMNIST MNIST OxfordIIITPet PCAM Places365 QMNIST RenderedSST2 STL10 SVHN StanfordCars USPS"
).split()
"""Sets with one label for each image and named splits."""
_LABELS = ("targets", "labels", "_labels")


@dataclasses.dataclass(frozen=True)
class TorchvisionImages(ImageReader):
    """Images of a torchvision data set."""

    dataset: Any
    where: str

    def open(self, row: int) -> Image.Image:
        return self.dataset[row][0]

    def name(self, row: int) -> str:
        return f"{self.where}, row {row}"


def torchvision_source(config: DataConfig, split: str, need_captions: bool) -> Source:
    """One split of `torchvision.datasets.<data.name>` below `data.root`, downloaded when it is not there.

    Raises UserError on unknown names and splits, when the set is missing and cannot be downloaded, and when captions
    are needed: these sets have none.
    """
    if config.name not in NAMES:
        cased = [name for name in NAMES if name.lower() == config.name.lower()]
        hint = f"did you mean {cased[0]}?" if cased else nearest(config.name, NAMES)
        raise UserError(f"no torchvision set {config.name!r} for --data.name; {hint}")
    if not config.root:
        raise UserError(f"data.root is empty: name the folder that holds or receives {config.name} with --data.root")
    if need_captions:
        raise UserError(
            f"torchvision's {config.name} has no captions, whatever --data.caption_column is: "
            "pass a caption table with --text.captions, or train without text with --text.weight 0"
        )
    dataset = _open(config, split)
    images = TorchvisionImages(dataset, f"{config.name} ({split}) in {config.root}")
    labels = _labels(dataset)
    classes = _classes(dataset, labels)
    if len(labels) and labels.min() < 0:
        raise UserError(f"{config.name} ({split}) has images without label: choose other splits")
    if labels.max(initial=-1) >= len(classes):
        row = int(np.argmax(labels))
        raise UserError(
            f"{images.name(row)}: label is {labels[row]}, but there are {len(classes)} classes: check the files"
        )
    return Source(
        ids=pa.array(map(str, range(len(labels))), pa.string()),
        labels=labels,
        classes=classes,
        captions=None,
        read=images.read,
        pixels=images.pixels,
    )


def own_loader(make: Callable[..., Any]) -> dict[str, Any]:
    """The argument by which a set of image files leaves decoding to `TorchvisionImages`, where it has one.

    Its own loader would drop transparency and clip 16-bit greys.
    """
    takes = "loader" in inspect.signature(make).parameters
    return {"loader": Image.open} if takes or make is torchvision.datasets.ImageNet else {}


def _open(config: DataConfig, split: str) -> Any:
    make = getattr(torchvision.datasets, config.name)
    signature = inspect.signature(make)
    arguments: dict[str, Any] = {"root": str(Path(config.root).expanduser()), **own_loader(make)}
    # QMNIST passes download on to its base class by **kwargs.
    can_download = bool({"download", "kwargs"} & set(signature.parameters)) and config.name != "ImageNet"
    if "train" in signature.parameters:
        if split not in ("train", "test"):
            raise absent("split", split, ("train", "test"), config.name, "--data.train_split or --data.val_split")
        arguments["train"] = split == "train"
    else:
        arguments["split"] = split
    step = "open"
    try:
        try:
            return make(**arguments)
        except (RuntimeError, FileNotFoundError):
            if not can_download:
                raise
        step = "download"
        return make(**arguments, download=True)
    except (RuntimeError, ValueError, OSError, ImportError) as error:
        raise UserError(
            f"cannot {step} {config.name} ({split}), looked for in {config.root}: {one_line(error)}; "
            "check --data.root, --data.train_split and --data.val_split"
        ) from None


def _labels(dataset: Any) -> Labels:
    """Class numbers (N,), from memory where the set keeps them; only PCAM has to be read through."""
    for name in _LABELS:
        if hasattr(dataset, name):
            return np.asarray(getattr(dataset, name)).astype(np.int64)
    if hasattr(dataset, "_samples"):
        return np.array([label for _, label in dataset._samples], np.int64)
    return np.array([dataset[row][1] for row in range(len(dataset))], np.int64)


def _classes(dataset: Any, labels: Labels) -> tuple[str, ...]:
    names = getattr(dataset, "classes", None) or range(labels.max(initial=-1) + 1)
    return tuple(", ".join(name) if isinstance(name, tuple) else str(name) for name in names)


SOURCE = DataSource(
    lambda config, split, need_captions: torchvision_source(config, split_name(config, split), need_captions),
    declares_classes=True,
)
