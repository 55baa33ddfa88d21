"""Augmentation: vectorised presets for splits in memory, and presets for one PIL image at a time.

Every sample's augmentation follows from one integer, `sample_seeds`, and so from (seed, epoch, row, copy) alone.
"""

import functools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import RandAugment
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


def train_transform(config: DataConfig) -> Transform:
    """The preset `data.augment` for one RGB image; call it through `seeded`.

    It returns uint8 (3, S, S), or for deit float32 that is normalised already (see `normalize`). On the same square
    image, none, crop and crop_flip return the same bits as `augment_pixels`.
    """
    if config.augment == "three_augment":
        return _three_augment(config)
    if config.augment == "deit":
        return _deit(config)
    return _SquarePreset(config.augment, config.image_size)


def eval_transform(config: DataConfig) -> Transform:
    """RGB image to uint8 (3, S, S), without randomness.

    Square presets with crop_pct 1: the square resize of `Source.pixels`. Otherwise the short side is resized to
    S / crop_pct and the centre cut out.
    """
    if config.augment in VECTORISED and config.crop_pct == 1:
        return _SquarePreset("none", config.image_size)
    return transforms.Compose(
        [
            transforms.Resize(math.floor(config.image_size / config.crop_pct), InterpolationMode.BICUBIC),
            transforms.CenterCrop(config.image_size),
            transforms.PILToTensor(),
        ]
    )


def seeded(transform: Transform, image: Image.Image, seed: int) -> torch.Tensor:
    """`transform(image)` with all of its random numbers drawn from `seed` (0 to 2**32 - 1, see `sample_seeds`).

    The global generators of torch, numpy and random are left as they were, so that the model's dropout, say, does not
    follow the images.
    """
    if isinstance(transform, _SquarePreset):
        return transform.at(image, seed)
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    # Not torch.manual_seed, which would seed (and, in a loader process, wake) the GPUs as well.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        return transform(image)
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


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


@dataclass(frozen=True)
class _SquarePreset:
    """A vectorised preset for one image."""

    preset: str
    size: int

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return self.at(image, int(torch.randint(2**32, ())))

    def at(self, image: Image.Image, seed: int) -> torch.Tensor:
        pixels = square(image, self.size)[None]
        if self.preset != "none":
            pixels = _crop_flip(pixels, np.array([seed]), self.preset)
        return channels_first(pixels)[0]


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


def _three_augment(config: DataConfig) -> Transform:
    """3-Augment of DeiT III (Touvron, Cord and Jegou, 2022, arXiv 2204.07118), not normalised."""
    size, jitter = config.image_size, config.color_jitter
    return transforms.Compose(
        [
            transforms.Resize(size, InterpolationMode.BICUBIC),
            transforms.RandomCrop(size, padding=4, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.RandomChoice([transforms.Grayscale(3), _solarise, _blur]),
            transforms.ColorJitter(jitter, jitter, jitter),
            transforms.PILToTensor(),
        ]
    )


def _solarise(image: Image.Image) -> Image.Image:
    return ImageOps.solarize(image, 128)


def _blur(image: Image.Image) -> Image.Image:
    """Gaussian blur; Pillow's radius is the standard deviation, in pixels."""
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.2, 2.0)))


def _deit(config: DataConfig) -> Transform:
    """The augmentation of DeiT (Touvron et al., 2021, arXiv 2012.12877), normalised."""
    transform: Any = create_transform(
        config.image_size,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        mean=config.mean,
        std=config.std,
    )
    randaugment = next(step for step in transform.transforms if isinstance(step, RandAugment))
    for operation in randaugment.ops:
        if operation.name == "PosterizeIncreasing":
            operation.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's operation, whose highest level keeps 0 bits: black, as Pillow did it before 13, which raises instead."""
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)
