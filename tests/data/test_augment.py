"""Augmentation: what each preset does, and that a sample's augmentation is its own."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from tt_ray.config import DataConfig
from tt_ray.data.augment import (
    augment_pixels,
    channels_first,
    eval_transform,
    normalize,
)
from tt_ray.data.sources.decoding import square

ROWS = np.arange(200)
ONCE = np.zeros(200, np.int64)


def images(count: int, size: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def config(augment: str, **changes: object) -> DataConfig:
    return DataConfig(**{"augment": augment, "image_size": 32, **changes})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("size", [1, 5, 16, 32])
@pytest.mark.parametrize("preset", ["crop", "crop_flip"])
def test_each_result_is_a_crop_of_the_padded_image(size: int, preset: str) -> None:
    pixels = images(200, size)
    found = augment_pixels(pixels, ROWS, ONCE, 0, 0, preset)
    assert found.shape == pixels.shape and found.dtype == np.uint8
    pad = max(1, size // 8)
    used = set()
    for before, after in zip(pixels, found, strict=True):
        padded = np.pad(before, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        crops = {
            (y, x, flip): padded[y : y + size, x : x + size][:, :: -1 if flip else 1]
            for y in range(2 * pad + 1)
            for x in range(2 * pad + 1)
            for flip in (False, True)
        }
        matches = {key for key, crop in crops.items() if (crop == after).all()}
        assert matches
        used |= matches if size >= 5 else set()
    if size >= 5:
        flips = [False, True] if preset == "crop_flip" else [False]
        everywhere = set(itertools.product(range(2 * pad + 1), flips))  # flips do not follow the place
        assert {(y, flip) for y, _, flip in used} == {(x, flip) for _, x, flip in used} == everywhere


def test_none_changes_nothing() -> None:
    pixels = images(8, 16)
    assert augment_pixels(pixels, ROWS[:8], ONCE[:8], 3, 1, "none") is pixels


def test_a_sample_does_not_depend_on_its_batch() -> None:
    pixels = images(200, 16)
    whole = augment_pixels(pixels, ROWS, ONCE, 2, 7, "crop_flip")
    order = np.random.default_rng(0).permutation(200)[:33]
    copies = ONCE[:33].copy()
    copies[5] = 3  # another copy of one row leaves the others alone
    part = augment_pixels(pixels[order], order, copies, 2, 7, "crop_flip")
    same = (part == whole[order]).all(axis=(1, 2, 3))
    assert same[np.arange(33) != 5].all()


def test_seed_epoch_row_and_copy_all_matter() -> None:
    pixels = np.repeat(images(1, 16), 200, axis=0)
    first = augment_pixels(pixels, ROWS, ONCE, 0, 0, "crop_flip")
    others = [
        augment_pixels(pixels, ROWS + 1000, ONCE, 0, 0, "crop_flip"),
        augment_pixels(pixels, ROWS, ONCE + 1, 0, 0, "crop_flip"),
        augment_pixels(pixels, ROWS, ONCE, 1, 0, "crop_flip"),
        augment_pixels(pixels, ROWS, ONCE, 0, 1, "crop_flip"),
    ]
    for other in others:  # 5 x 5 places, flipped or not: about one in fifty agrees
        assert (first == other).all(axis=(1, 2, 3)).mean() < 0.15


def test_eval_of_square_presets_is_the_square_resize() -> None:
    image = picture(70, 50)
    result = eval_transform(config("crop_flip"))(image)
    assert torch.equal(result, channels_first(square(image, 32)[None])[0])


def test_eval_crops_the_centre_of_the_resized_image() -> None:
    image = picture(90, 60)
    resized = np.asarray(image.resize((60, 40), Image.Resampling.BICUBIC))
    expected = torch.from_numpy(resized[4:36, 14:46].copy()).permute(2, 0, 1)
    for augment in ("crop_flip", "deit"):
        result = eval_transform(config(augment, crop_pct=0.8))(image)
        assert result.dtype == torch.uint8 and torch.equal(result, expected)


def test_eval_of_other_presets_keeps_proportions_at_crop_pct_1() -> None:
    image = picture(64, 32)
    result = eval_transform(config("three_augment"))(image)
    assert torch.equal(result, torch.from_numpy(np.asarray(image)[:, 16:48].copy()).permute(2, 0, 1))


def test_normalize() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)
    pixels = images(4, 8)
    result = normalize(channels_first(pixels), mean, std)
    expected = (pixels.astype(np.float64) / 255 - mean) / std
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)
    assert normalize(result, mean, std) is result
    reordered = channels_first(pixels).to(memory_format=torch.channels_last)
    assert normalize(reordered, mean, std).is_contiguous(), "convolutions would sum in another order"
