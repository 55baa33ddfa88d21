"""Augmentation of splits in memory, whole batches at a time, and how images are prepared for evaluation.

Every sample's augmentation follows from one integer, `sample_seeds`, and so from (seed, epoch, row, copy) alone.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from tt_ray.config import DataConfig
from tt_ray.data.sources.base import Pixels
from tt_ray.data.sources.decoding import square
from tt_ray.stateless_random import uniform

Transform = Callable[[Image.Image], torch.Tensor]
VECTORISED = ("none", "crop", "crop_flip")
"""Presets of `augment_pixels`; they work on the image resized to a square."""


def sample_seeds(
    rows: npt.NDArray[np.int64], copies: npt.NDArray[np.int64], epoch: int, seed: int
) -> npt.NDArray[np.int64]:
    """One 32-bit seed for each sample, shape (n,); `copies` counts the copies of a row (data.repeats) from 0."""
    numbers = uniform(rows, int(copies.max(initial=0)) + 1, seed, epoch)[np.arange(len(rows)), copies]
    return (numbers * 2**32).astype(np.int64)


def augment_pixels(
    pixels: Pixels, rows: npt.NDArray[np.int64], copies: npt.NDArray[np.int64], epoch: int, seed: int, preset: str
) -> Pixels:
    """Augments a batch, uint8 (n, S, S, 3) to the same shape; rows and copies (n,) are those of its samples.

    crop: padded by an eighth of S on each side, by reflection, and cut at random; flip: mirrored half of the time.
    Preset none returns `pixels` itself.
    """
    if preset == "none":
        return pixels
    return _crop_flip(pixels, sample_seeds(rows, copies, epoch, seed), preset)


def eval_transform(config: DataConfig) -> Transform:
    """RGB image to uint8 (3, S, S), without randomness.

    Square presets with crop_pct 1: the square resize of `Source.pixels`. Otherwise the short side is resized to
    S / crop_pct and the centre cut out.
    """
    if config.augment in VECTORISED and config.crop_pct == 1:
        return functools.partial(_squared, size=config.image_size)
    return transforms.Compose(
        [
            transforms.Resize(math.floor(config.image_size / config.crop_pct), InterpolationMode.BICUBIC),
            transforms.CenterCrop(config.image_size),
            transforms.PILToTensor(),
        ]
    )


def channels_first(pixels: Pixels) -> torch.Tensor:
    """uint8 (n, S, S, 3) to a contiguous uint8 tensor (n, 3, S, S), as batches travel to the device."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def normalize(images: torch.Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> torch.Tensor:
    """uint8 (B, 3, S, S) to float32, minus mean, divided by std (both on the 0-1 scale), on the images' device.

    Float images pass unchanged: their preset normalised them.
    """
    if images.dtype != torch.uint8:
        return images
    return (
        images.contiguous()
        .float()
        .div_(255)
        .sub_(channels_on(mean, images.device))
        .div_(channels_on(std, images.device))
    )


@functools.lru_cache(maxsize=16)
def channels_on(values: tuple[float, float, float], device: torch.device) -> torch.Tensor:
    """Cached, since a copy to a GPU in each step would make the host wait for it."""
    return torch.tensor(values, device=device).view(3, 1, 1)


def _squared(image: Image.Image, size: int) -> torch.Tensor:
    return channels_first(square(image, size)[None])[0]


def _crop_flip(pixels: Pixels, seeds: npt.NDArray[np.int64], preset: str) -> Pixels:
    """Crop, and flip if the preset says so, as one gather of whole pixels: padding and flip are in the indices."""
    count, size = pixels.shape[:2]
    pad = max(1, size // 8)
    numbers = uniform(seeds, 3)
    top, left = (numbers[:, :2].T * (2 * pad + 1)).astype(np.int64)
    line = np.arange(size) - pad
    y, x = _reflect(top[:, None] + line, size), _reflect(left[:, None] + line, size)
    if preset == "crop_flip":
        x = np.where(numbers[:, 2:] < 0.5, x[:, ::-1], x)
    lines = np.arange(count)[:, None] * size + y
    # A pixel as one item of three bytes: five times as fast as gathering along a last axis of three.
    whole = np.ascontiguousarray(pixels).reshape(-1, 3).view("V3")[:, 0]
    return np.take(whole, lines[:, :, None] * size + x[:, None, :]).view(np.uint8).reshape(pixels.shape)


def _reflect(index: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Indices that run over the edge by less than `size`, mirrored at it as np.pad's reflect does."""
    return np.maximum(size - 1 - np.abs(size - 1 - np.abs(index)), 0)
