"""Batches of images that are decoded one by one: cut out and resized here, augmented here or on the device."""

from contextlib import nullcontext, suppress

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from tt_ray.config import DataConfig
from tt_ray.data import pillow_operations, pixel_operations
from tt_ray.data.augment import Transform
from tt_ray.data.augment_draws import (
    Cut,
    Drawn,
    Step,
    crop_into,
    erasures,
    gathered,
    own_randomness,
    preset_of,
)
from tt_ray.data.finish import Rest, fill_of
from tt_ray.data.sources.base import Pixels, Source
from tt_ray.data.sources.jpeg import Jpeg, NotFast

_TOGETHER = 32
"""Images of which as many are opened, and their files held, before the first is decoded."""


class AugmentedImages:
    """Training images of the presets three_augment and deit.

    Args:
        source: The split.
        config: Its section of the configuration.
        on_device: Leave all operations but cutting and resizing to `finish`.
    """

    def __init__(self, source: Source, config: DataConfig, on_device: bool) -> None:
        self.source, self.config, self.on_device = source, config, on_device
        self._preset, self._fill = preset_of(config), fill_of(config)
        self._in_opencv = self._preset.in_opencv and config.decoder != "pillow"

    def __call__(self, rows: npt.NDArray[np.int64], seeds: npt.NDArray[np.int64]) -> tuple[Tensor, Rest]:
        """Images of rows, uint8 (n, 3, S, S), each augmented as its seed says, and what is left to do to them."""
        size = self.config.image_size
        # In the order in which they are made: to change it takes as long as half of the operations.
        out = np.empty((len(rows), size, size, 3), np.uint8)
        with nullcontext() if self._preset.in_opencv else own_randomness():
            # Draws come first: what a decoder leaves in the processor's caches makes Python take twice as long.
            drawn = self._preset.drawn(seeds)
            work = gathered(drawn.codes, drawn.values) if self.on_device else None
            for start in range(0, len(rows), _TOGETHER):
                self._fill_in(out, rows, range(start, min(start + _TOGETHER, len(rows))), drawn)
        return channels_second(out), Rest(work, erasures(drawn.boxes, seeds))

    def _fill_in(self, out: Pixels, rows: npt.NDArray[np.int64], places: range, drawn: Drawn) -> None:
        """Fills in the squares at some places of a batch. All are opened before the first is decoded, as above."""
        opened = [opened_or_none(self.source, row, self.config) for row in rows[places.start : places.stop].tolist()]
        cuts = [
            None if jpeg is None else drawn.cut(place, jpeg.size) for place, jpeg in zip(places, opened, strict=True)
        ]
        for place, jpeg, cut in zip(places, opened, cuts, strict=True):
            pixels = None if jpeg is None or cut is None else _resized_fast(jpeg, cut)
            if pixels is None or cut is None:
                image = self.source.read(int(rows[place]))
                cut = drawn.cut(place, image.size)
                pixels = _resized(image, cut)
            crop_into(out[place], pixels, cut)
            if not self.on_device:
                self._augment(out[place], drawn.steps(place))

    def _augment(self, square: Pixels, steps: list[Step]) -> None:
        if self._in_opencv:
            square[:] = pixel_operations.apply_steps(square, steps)
        else:
            square[:] = np.asarray(pillow_operations.apply_steps(Image.fromarray(square), steps, self._fill))


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
        jpeg, pixels = opened_or_none(source, row, config), None
        if jpeg is not None:
            with suppress(NotFast):
                pixels = fast(jpeg)
        square[:] = transform(source.read(row)).permute(1, 2, 0).numpy() if pixels is None else pixels
    return channels_second(out)


def opened_or_none(source: Source, row: int, config: DataConfig) -> Jpeg | None:
    """A row's image; None where Pillow is to read it, which also says what is wrong with it."""
    if config.decoder == "pillow":
        return None
    try:
        content = source.encoded(row)
    except Exception:  # the file is gone, or the table damaged: `Source.read` names it
        return None
    try:
        return Jpeg(content)
    except NotFast:
        return None


def channels_second(pixels: Pixels) -> Tensor:
    """uint8 (n, S, S, 3) as a tensor (n, 3, S, S) of the same memory: the device reorders faster than a loader."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _resized_fast(jpeg: Jpeg, cut: Cut) -> Pixels | None:
    """None where the file is damaged: Pillow decides what becomes of it."""
    try:
        return jpeg.resized(cut.region, cut.height, cut.width)
    except NotFast:
        return None


def _resized(image: Image.Image, cut: Cut) -> Pixels:
    top, left, height, width = cut.region
    if (height, width) != image.size[::-1]:
        image = image.crop((left, top, left + width, top + height))
    return np.asarray(image.resize((cut.width, cut.height), Image.Resampling.BICUBIC))
