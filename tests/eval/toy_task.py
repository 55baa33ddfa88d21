"""A task of coloured noise and small backbones, for protocols that train or look at images."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import timm
import torch
from PIL import Image

from eval.features.backbone import Backbone, Preprocessing, build
from eval.tasks.origins import ArrayImages, Opened
from tt_ray.data.sources.base import Source

COLOURS = ("red", "green", "blue")
SIZE = 16


def coloured(n: int, seed: int) -> Source:
    """Noise in which one channel is brighter: the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    pixels = rng.integers(0, 120, (n, 20, 20, 3))
    pixels[np.arange(n), :, :, labels] += 100
    images = ArrayImages(pixels.astype(np.uint8), f"toy {seed}")
    ids = pa.array([f"{seed}-{row}" for row in range(n)], pa.string())
    return Source(ids, labels.astype(np.int64), COLOURS, None, images.read, images.pixels)


@dataclass
class ToyTask:
    """What protocols ask of a task."""

    name: str = "coloured"
    version: int = 1
    classes: int = 3
    metric: str = "top1"
    has_val: bool = False
    refits: bool = False
    evaluation_only: bool = False
    mask: npt.NDArray[np.int64] | None = None
    right: npt.NDArray[np.bool_] | None = None
    n: int = 45
    shift: int = 0
    """Added to the test labels."""
    log: list[str] = field(default_factory=list)
    """Splits that were opened."""

    def open(self, split: str) -> Source:
        self.log.append(split)
        source = coloured(self.n, {"train": 1, "val": 2, "test": 3}[split])
        if split == "test" and self.shift:
            source = Source(source.ids, (source.labels + self.shift) % 3, COLOURS, None, source.read, source.pixels)
        return source

    def opened(self, split: str) -> Opened:
        return Opened(self.open(split), f"toy {self.shift}")

    def accepted(self, source: Source) -> npt.NDArray[np.bool_] | None:
        return self.right


def toy_backbone(num_classes: int = 5, classes: tuple[str, ...] = (), **kwargs: Any) -> Backbone:
    """A ViT of two blocks for 16 px, or with `name` another model."""
    vit = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": SIZE}
    arguments: dict[str, Any] = kwargs if "name" in kwargs else vit | kwargs
    name = str(arguments.pop("name", "vit_tiny_patch16_224"))
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=num_classes, **arguments)
    prep = Preprocessing(SIZE, 1.0, "squash", "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return build("toy", f"random:{name}", model, prep, classes)


def tensor(image: Image.Image) -> torch.Tensor:
    """The toy backbone's preprocessing, written out."""
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
    return (torch.from_numpy(pixels.transpose(2, 0, 1).copy()) / 255 - 0.5) / 0.25
