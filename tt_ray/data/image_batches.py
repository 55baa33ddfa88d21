"""Batches of images that are decoded one by one: cut out and resized here, augmented here or on the device."""

from contextlib import nullcontext, suppress

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from tt_ray.config import DataConfig
from tt_ray.data.augment import Transform
from tt_ray.data.augment_draws import (
    Cut,
    Drawn,
    crop_into,
    erasures,
    gathered,
    own_randomness,
    preset_of,
)
from tt_ray.data.finish import Rest
from tt_ray.data.pixel_operations import apply_steps
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
        self._preset = preset_of(config)
        self._in_opencv = self._preset.in_opencv and config.decoder != "pillow"

    def __call__(self, rows: npt.NDArray[np.int64], seeds: npt.NDArray[np.int64]) -> tuple[Tensor, Rest]:
        """Images of rows, uint8 (n, 3, S, S), each augmented as its seed says, and what is left to do to them."""
        size = self.config.image_size
        # In the order in which they are made: to change it takes as long as half of the operations.
        out = np.empty((len(rows), size, size, 3), np.uint8)
        samples = list(zip(rows.tolist(), seeds.tolist(), out, strict=True))
        # What OpenCV does needs no global generator.
        with nullcontext() if self._in_opencv else own_randomness():
            found = [
                each for start in range(0, len(rows), _TOGETHER) for each in self._fill(samples[start:][:_TOGETHER])
            ]
        work = gathered([each.steps for each in found] if self.on_device else [])
        return channels_second(out), Rest(work, erasures([each.erased for each in found], seeds))

    def _fill(self, samples: list[tuple[int, int, Pixels]]) -> list[Drawn]:
        """Fills in the squares of samples (row, seed, square), and returns what was drawn for each.

        First all are opened, then all is drawn, and then all are decoded: what a decoder leaves in the processor's
        caches makes the draws that follow it take twice as long.
        """
        opened = [opened_or_none(self.source, row, self.config) for row, _, _ in samples]
        found = [
            None if jpeg is None else self._preset.drawn(seed, jpeg.size)
            for jpeg, (_, seed, _) in zip(opened, samples, strict=True)
        ]
        return [self._finish(*each) for each in zip(samples, opened, found, strict=True)]

    def _finish(self, sample: tuple[int, int, Pixels], jpeg: Jpeg | None, draws: Drawn | None) -> Drawn:
        row, seed, square = sample
        size, pixels = (0, 0), None
        if jpeg is not None and draws is not None:
            size, pixels = jpeg.size, _resized_fast(jpeg, draws.cut)
        if pixels is None or draws is None:
            image = self.source.read(row)
            size, draws = image.size, self._preset.drawn(seed, image.size)
            pixels = _resized(image, draws.cut)
        crop_into(square, pixels, draws.cut)
        if self.on_device:
            return draws
        if self._in_opencv:
            square[:] = apply_steps(square, draws.steps)
        else:
            square[:] = np.asarray(self._preset.by_pillow(Image.fromarray(square), seed, size))
        return draws


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
