"""Augmentation: what each preset does, and that a sample's augmentation is its own."""

import itertools
import random
from typing import cast

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
    sample_seeds,
    seeded,
    train_transform,
)
from tt_ray.data.sources.decoding import square

PRESETS = ["none", "crop", "crop_flip", "three_augment", "deit"]
ROWS = np.arange(200)
ONCE = np.zeros(200, np.int64)


def images(count: int, size: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def numpy_state() -> npt.NDArray[np.uint32]:
    return cast(tuple[str, npt.NDArray[np.uint32]], np.random.get_state())[1]


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


@pytest.mark.parametrize("preset", ["none", "crop", "crop_flip"])
def test_one_image_at_a_time_gives_the_same_bits(preset: str) -> None:
    picked = [picture(50 + i, 40) for i in range(12)]
    pixels = np.stack([square(image, 32) for image in picked])
    rows, copies = np.arange(12) * 7, np.arange(12) % 3
    batch = channels_first(augment_pixels(pixels, rows, copies, 4, 5, preset))
    transform = train_transform(config(preset))
    seeds = sample_seeds(rows, copies, 4, 5)
    single = torch.stack([seeded(transform, image, int(seed)) for image, seed in zip(picked, seeds, strict=True)])
    assert single.dtype == torch.uint8 and torch.equal(single, batch)


@pytest.mark.parametrize("preset", PRESETS)
def test_seeded_depends_on_the_seed_alone(preset: str) -> None:
    transform, image = train_transform(config(preset)), picture(60, 45)
    first = [seeded(transform, image, seed) for seed in range(20)]
    _ = torch.rand(1), random.random(), np.random.random()
    before = torch.get_rng_state(), random.getstate(), numpy_state()
    again = [seeded(transform, image, seed) for seed in reversed(range(20))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert (before[2] == numpy_state()).all(), "global random state was moved"
    distinct = {tensor.numpy().tobytes() for tensor in first}
    assert len(distinct) == 1 if preset == "none" else len(distinct) > 15


@pytest.mark.parametrize("preset", PRESETS)
def test_transforms_also_run_without_seeded(preset: str) -> None:
    result = train_transform(config(preset))(picture(40, 60))
    assert result.shape == (3, 32, 32)
    assert result.dtype == (torch.float32 if preset == "deit" else torch.uint8)


def test_three_augment_always_applies_one_of_three() -> None:
    """On a flat bright image, solarise inverts, grey removes colour, blur does nothing; nothing else acts."""
    flat = Image.new("RGB", (40, 40), (200, 150, 140))
    transform = train_transform(config("three_augment", color_jitter=0.0))
    grey = round(0.299 * 200 + 0.587 * 150 + 0.114 * 140)
    kinds = {(200, 150, 140): 0, (55, 105, 115): 0, (grey, grey, grey): 0}
    for seed in range(300):
        colour = tuple(seeded(transform, flat, seed)[:, 16, 16].tolist())
        kinds[colour] += 1  # anything else is a KeyError
    assert min(kinds.values()) > 60


def test_three_augment_blurs_flips_and_jitters() -> None:
    noise = picture(32, 32)
    still = train_transform(config("three_augment", color_jitter=0.0))
    sharpness = [seeded(still, noise, seed).float().diff(dim=2).abs().mean().item() for seed in range(60)]
    assert min(sharpness) < 0.3 * max(sharpness)
    dark = Image.new("RGB", (32, 32), (20, 20, 20))
    dark.paste((100, 100, 100), (0, 0, 16, 32))
    mirrored = sum(seeded(still, dark, seed)[0, 16, 4].item() < 60 for seed in range(60))
    assert 15 < mirrored < 45
    flat = Image.new("RGB", (40, 40), (100, 100, 100))  # below the threshold of solarise, and grey already
    strong = train_transform(config("three_augment", color_jitter=0.3))
    levels = [seeded(strong, flat, seed).float().mean().item() for seed in range(60)]
    assert 69 <= min(levels) < 80 and 120 < max(levels) <= 131


def test_deit_is_normalised_and_erases() -> None:
    transform = train_transform(config("deit", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), image_size=48))
    results = [seeded(transform, Image.new("RGB", (64, 64), (128, 128, 128)), seed) for seed in range(40)]
    assert results[0].dtype == torch.float32 and results[0].shape == (3, 48, 48)
    plain = min(results, key=lambda result: (result - 0.0).abs().mean().item())
    assert plain.abs().max() < 0.3
    noisy = sum(result.unique().numel() > 300 for result in results)  # erased with normal noise
    assert 3 <= noisy <= 20


def test_deit_survives_the_highest_magnitude(monkeypatch: pytest.MonkeyPatch) -> None:
    """About one image in 600 gets it; timm then asks Pillow to keep 0 bits, which Pillow 13 refuses."""
    transform = train_transform(config("deit"))
    monkeypatch.setattr(random, "gauss", lambda mean, deviation: 10.0)
    for seed in range(100):
        assert seeded(transform, picture(40, 40), seed).isfinite().all()


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
