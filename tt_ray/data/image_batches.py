"""Batches of images that are decoded one by one: cut out and resized here, augmented here or on the device."""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from tt_ray.config import DataConfig
from tt_ray.data.augment import Transform
from tt_ray.data.augment_draws import (
    Cut,
    Step,
    crop_into,
    erasures,
    gathered,
    own_randomness,
    preset_of,
    seed_sample,
)
from tt_ray.data.augment_operations import apply_steps
from tt_ray.data.finish import Rest
from tt_ray.data.sources.base import Pixels, Source
from tt_ray.data.sources.jpeg import Jpeg, NotFast

T = TypeVar("T")


class AugmentedImages:
    """Training images of the presets three_augment and deit.

    Args:
        source: The split.
        config: Its section of the configuration.
        on_device: Leave all operations but cutting and resizing to `finish`.
    """

    def __init__(self, source: Source, config: DataConfig, on_device: bool) -> None:
        self.source, self.config, self.on_device = source, config, on_device
        self._preset = preset_of(config)

    def __call__(self, rows: npt.NDArray[np.int64], seeds: npt.NDArray[np.int64]) -> tuple[Tensor, Rest]:
        """Images of rows, uint8 (n, 3, S, S), each augmented as its seed says, and what is left to do to them."""
        size, planes = self.config.image_size, self._preset.tensors and not self.on_device
        # In the order in which they are made: to change it takes as long as half of the operations.
        out = np.empty((len(rows), 3, size, size) if planes else (len(rows), size, size, 3), np.uint8)
        squares = out.transpose(0, 2, 3, 1) if planes else out
        steps, boxes = list[list[Step]](), list[tuple[int, int, int, int] | None]()
        cut = np.empty((size, size, 3), np.uint8)
        with own_randomness():
            for row, seed, square in zip(rows.tolist(), seeds.tolist(), squares, strict=True):
                fast = self._cut(row, seed, square if self.on_device else cut)
                if self.on_device:
                    steps.append(self._preset.steps())
                elif fast and self._preset.tensors:
                    square[:] = _by_tensors(cut, self._preset.steps())
                else:
                    square[:] = np.asarray(self._preset.by_pillow(Image.fromarray(cut)))
                boxes.append(self._preset.erased())
        return channels_second(squares), Rest(gathered(steps), erasures(boxes, seeds))

    def _cut(self, row: int, seed: int, square: Pixels) -> bool:
        """Fills in the sample's square, and leaves the generators where its steps begin; true if done the fast way."""

        def fast(jpeg: Jpeg) -> tuple[Pixels, Cut]:
            seed_sample(seed)
            cut = self._preset.cut(*jpeg.size)
            return jpeg.resized(cut.region, cut.height, cut.width), cut

        found = fast_or_none(self.source, row, self.config, fast)
        if found is not None:
            crop_into(square, *found)
            return True
        image = self.source.read(row)
        seed_sample(seed)
        cut = self._preset.cut(*image.size)
        crop_into(square, _resized(image, cut), cut)
        return False


def eval_images(source: Source, rows: npt.NDArray[np.int64], config: DataConfig, transform: Transform) -> Tensor:
    """Images of rows for evaluation, uint8 (n, 3, S, S), as `transform` (`augment.eval_transform`) prepares them."""
    size = config.image_size
    resized = int(size / config.crop_pct)
    out = np.empty((len(rows), size, size, 3), np.uint8)

    def fast(jpeg: Jpeg) -> Pixels:
        (columns, lines), short = jpeg.size, min(jpeg.size)
        width, height = (resized if side == short else int(resized * side / short) for side in jpeg.size)
        top, left = (round((side - size) / 2) for side in (height, width))
        return jpeg.resized((0, 0, lines, columns), height, width)[top : top + size, left : left + size]

    for row, square in zip(rows.tolist(), out, strict=True):
        pixels = fast_or_none(source, row, config, fast)
        square[:] = transform(source.read(row)).permute(1, 2, 0).numpy() if pixels is None else pixels
    return channels_second(out)


def fast_or_none(source: Source, row: int, config: DataConfig, use: Callable[[Jpeg], T]) -> T | None:
    """What `use` returns for a row's image; None where Pillow is to read it, which also says what is wrong with it."""
    if config.decoder == "pillow":
        return None
    with suppress(NotFast):
        try:
            content = source.encoded(row)
        except Exception:  # the file is gone, or the table damaged: `Source.read` names it
            return None
        return use(Jpeg(content))
    return None


def channels_second(pixels: Pixels) -> Tensor:
    """uint8 (n, S, S, 3) as a tensor (n, 3, S, S) of the same memory: the device reorders faster than a loader."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _by_tensors(square: Pixels, steps: list[Step]) -> Pixels:
    image = torch.empty(1, 3, *square.shape[:2]).copy_(channels_second(square[None]))
    return apply_steps(image, steps)[0].permute(1, 2, 0).numpy().astype(np.uint8)


def _resized(image: Image.Image, cut: Cut) -> Pixels:
    top, left, height, width = cut.region
    if (height, width) != image.size[::-1]:
        image = image.crop((left, top, left + width, top + height))
    return np.asarray(image.resize((cut.width, cut.height), Image.Resampling.BICUBIC))
