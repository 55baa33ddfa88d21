"""What is drawn for a sample: as torchvision and timm distribute it, a function of the sample's seed alone."""

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image
from scipy.stats import chisquare, kstest
from timm.data.random_erasing import RandomErasing
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from tt_ray.config import DataConfig
from tt_ray.data.augment_draws import (
    CODES,
    Cut,
    Deit,
    crop_into,
    erasures,
    gathered,
    own_randomness,
    preset_of,
    seed_sample,
    seeded,
)
from tt_ray.data.augment_operations import WIDE_BLUR, Work, apply
from tt_ray.data.pillow_operations import apply_steps
from tt_ray.stateless_random import uniform

THREE = ("grey", "solarise", "blur", "wide_blur")
FILL = (124, 116, 104)


def config(augment: str, **changes: Any) -> DataConfig:
    return DataConfig(**{"augment": augment, "image_size": 48, **changes})


def photo(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(2).integers(0, 256, (6, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def square_of(image: Image.Image, cut: Cut, size: int) -> np.ndarray[Any, Any]:
    top, left, height, width = cut.region
    part = image.crop((left, top, left + width, top + height))
    out = np.empty((size, size, 3), np.uint8)
    crop_into(out, np.asarray(part.resize((cut.width, cut.height), Image.Resampling.BICUBIC)), cut)
    return out


NO_WORK = Work((), (), torch.zeros(0), torch.zeros(0))
SIZES = [(90, 70), (48, 61), (48, 48), (20, 200)]


@pytest.mark.parametrize("size", SIZES)
def test_three_augment_cuts_as_torchvision_does(size: tuple[int, int]) -> None:
    """Short side resized, four pixels added by reflection, a square out of it; each place as often."""
    drawn = preset_of(config("three_augment")).drawn(np.arange(4000))
    image: Any = photo(*size)
    resized: Any = F.resize(image, [48], InterpolationMode.BICUBIC)
    padded: Any = F.pad(resized, [4], padding_mode="reflect")
    height, width = padded.height - 48 + 1, padded.width - 48 + 1
    found = np.zeros((height, width), int)
    for place in range(4000):
        cut = drawn.cut(place, size)
        found[cut.top + 4, cut.left + 4] += 1
        if place < 40:
            expected = np.asarray(F.crop(padded, cut.top + 4, cut.left + 4, 48, 48))
            assert (square_of(image, cut, 48) == expected).all()
    for axis in (0, 1):
        assert chisquare(found.sum(axis)).pvalue > 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_deit_cuts_and_augments_as_timm_does(size: tuple[int, int]) -> None:
    """Bit for bit by Pillow, with the numbers that timm draws; a few grey levels apart by tensors."""
    given = config("deit")
    preset, kinds = Deit(given), set[str]()
    reference = transforms.Compose([transforms.RandomHorizontalFlip(), preset._randaugment])
    with own_randomness():
        drawn = preset.drawn(np.arange(120))
        seeds = (uniform(np.arange(120), 1, 1)[:, 0] * 2**32).astype(np.int64).tolist()
        for place in range(120):
            cut, steps = drawn.cut(place, size), drawn.steps(place)
            random.seed(seeds[place])
            expected: Any = preset._crop(photo(*size))
            square = square_of(photo(*size), cut, 48)
            assert (square == np.asarray(expected)).all()
            if ("posterise", 0.0) in steps:  # which Pillow 13 refuses
                continue
            seed_sample(place)
            expected = np.asarray(reference(expected))
            assert (np.asarray(apply_steps(Image.fromarray(square), steps, FILL)) == expected).all(), steps
            work = gathered(drawn.codes[place : place + 1], drawn.values[place : place + 1])
            if work is not None:
                square = apply(torch.from_numpy(square).permute(2, 0, 1)[None].float(), work, FILL)[0].permute(1, 2, 0)
            assert np.abs(np.asarray(square) - expected.astype(float)).mean() < 0.7, steps
            kinds |= {name for name, _ in steps}
    assert {"rotate", "shear_x", "translate_y", "equalise", "posterise", "sharpness"} <= kinds


def test_the_papers_parameters() -> None:
    """One of three, blur of 0.2 to 2 pixels, jitter of 0.3 in any order, flipped half of the time; each independent."""
    count = 6000
    drawn = preset_of(config("three_augment")).drawn(np.arange(count))
    found = [drawn.steps(place) for place in range(count)]
    rest = [steps[-4:] for steps in found]
    kinds = [steps[0][0].removeprefix("wide_") for steps in rest]
    assert chisquare([kinds.count(kind) for kind in ("grey", "solarise", "blur")]).pvalue > 1e-3
    blurs = [value for steps in rest for name, value in steps[:1] if "blur" in name]
    assert kstest(blurs, "uniform", (0.2, 1.8)).pvalue > 1e-3
    assert {
        name == "wide_blur" for name, value in (steps[0] for steps in rest) if value >= WIDE_BLUR and value < 3
    } == {True}
    assert {value for steps in rest for name, value in steps[:1] if name == "solarise"} == {128.0}
    flips = sum(len(steps) == 5 and steps[0] == ("flip", 0.0) for steps in found)
    assert chisquare([flips, count - flips]).pvalue > 1e-3 and {len(steps) for steps in found} == {4, 5}
    orders = Counter(tuple(name for name, _ in steps[1:]) for steps in rest)
    assert len(orders) == 6 and chisquare(list(orders.values())).pvalue > 1e-3
    by_name = [dict(steps[1:]) for steps in rest]
    factors = np.array([[each[name] for name in ("brightness", "contrast", "colour")] for each in by_name])
    assert min(kstest(column, "uniform", (0.7, 0.6)).pvalue for column in factors.T) > 1e-3
    tops = [drawn.cut(place, (48, 48)).top for place in range(count)]
    lefts = [drawn.cut(place, (48, 48)).left for place in range(count)]
    first = [steps[1][0] == "colour" for steps in rest]
    flipped, grey = [len(steps) == 5 for steps in found], [kind == "grey" for kind in kinds]
    together = np.corrcoef(np.column_stack([factors, tops, lefts, first, flipped, grey]).T)
    assert np.abs(together - np.eye(8)).max() < 4 / count**0.5


@pytest.mark.parametrize("jitter", [0.0, 0.1, 1.5])
def test_jitter_is_as_strong_as_given(jitter: float) -> None:
    drawn = preset_of(config("three_augment", color_jitter=jitter)).drawn(np.arange(2000))
    factors = [value for place in range(2000) for name, value in drawn.steps(place) if name == "contrast"]
    if not jitter:
        assert not factors and {name for place in range(99) for name, _ in drawn.steps(place)} <= {*THREE, "flip"}
        return
    low, high = max(0, 1 - jitter), 1 + jitter
    assert low <= min(factors) < low + 0.01 and high - 0.01 < max(factors) <= high, "as torchvision's ColorJitter"


@pytest.mark.parametrize("augment", ["three_augment", "deit"])
def test_a_sample_s_draws_do_not_depend_on_its_batch(augment: str) -> None:
    preset, seeds = preset_of(config(augment)), np.array([3, 2**32 - 1, 0, 77, 2**31])
    with own_randomness():
        whole = preset.drawn(seeds)
        for place, seed in enumerate(seeds):
            alone = preset.drawn(np.array([seed]))
            assert alone.steps(0) == whole.steps(place) and alone.boxes[0] == whole.boxes[place]
            assert alone.cut(0, (90, 70)) == whole.cut(place, (90, 70))


def test_deit_survives_the_highest_magnitude(monkeypatch: pytest.MonkeyPatch) -> None:
    """About one image in 600 gets it; timm then asks Pillow to keep 0 bits, which Pillow 13 refuses."""
    monkeypatch.setattr(random, "gauss", lambda mean, deviation: 10.0)
    with own_randomness():
        drawn = preset_of(config("deit")).drawn(np.arange(100))
    assert ("posterise", 0.0) in [step for place in range(100) for step in drawn.steps(place)]
    for place in range(100):
        assert apply_steps(photo(40, 40), drawn.steps(place), FILL).size == (40, 40)


def test_seeded_depends_on_the_seed_alone() -> None:
    transform = transforms.Compose([transforms.RandomResizedCrop(32), transforms.PILToTensor()])
    first = [seeded(transform, photo(60, 45), seed) for seed in range(20)]
    _ = torch.rand(1), random.random(), np.random.random()
    again = [seeded(transform, photo(60, 45), seed) for seed in reversed(range(20))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tensor.numpy().tobytes() for tensor in first}) > 15


@pytest.mark.parametrize("size", [32, 48, 224])
def test_rectangles_are_those_of_timm(size: int) -> None:
    preset: Any = preset_of(config("deit", image_size=size))
    erasing = RandomErasing(0.25, mode="const", device="cpu")
    boxes = 0
    with own_randomness():
        for seed in range(300):
            seed_sample(seed)
            image = erasing(torch.ones(3, size, size))
            seed_sample(seed)
            box = preset._erased()
            expected = torch.ones(3, size, size)
            if box is not None:
                expected[:, box[0] : box[2], box[1] : box[3]] = 0
                boxes += 1
            assert torch.equal(image, expected)
    assert 40 < boxes < 110


def test_names_are_complete() -> None:
    preset = Deit(config("deit"))
    with own_randomness():
        drawn = preset.drawn(np.arange(600))
    assert len(np.unique(drawn.codes[:, 1:][drawn.codes[:, 1:] > 0])) == len(preset._randaugment.ops) == 15
    assert set(np.unique(drawn.codes[:, 0])) == {0, CODES["flip"]}


def test_no_generator_is_moved() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    with own_randomness():
        preset_of(config("deit")).drawn(np.arange(3)).cut(2, (48, 48))
    preset_of(config("three_augment")).drawn(np.arange(3)).cut(2, (48, 48))
    seeded(transforms.Compose([transforms.RandomResizedCrop(32), transforms.PILToTensor()]), photo(60, 45), 5)
    assert torch.equal(states[0], torch.get_rng_state()) and random.getstate() == states[2]
    assert (states[1] == np.random.get_state()[1]).all()  # type: ignore[index]


def test_steps_are_gathered_by_place_and_operation() -> None:
    names = [["flip", "blur"], ["", "blur"], ["flip", "grey"]]
    codes = np.array([[CODES[name] for name in each] for each in names])
    work = gathered(codes, np.array([[0.0, 1.0], [0.0, 0.5], [0.0, 0.0]]))
    assert work is not None
    parts = work.rows.split(list(work.counts)), work.values.split(list(work.counts))
    found = [(name, rows.tolist(), values.tolist()) for name, rows, values in zip(work.operations, *parts, strict=True)]
    assert found == [("flip", [0, 2], [0, 0]), ("grey", [2], [0]), ("blur", [0, 1], [1, 0.5])]
    assert gathered(np.zeros((2, 1), np.int64), np.zeros((2, 1))) is None
    assert gathered(np.zeros((0, 2), np.int64), np.zeros((0, 2))) is None


@pytest.mark.parametrize("count", [1, 2, 7, 40])
@pytest.mark.parametrize("augment", ["three_augment", "deit"])
def test_what_is_gathered_are_the_steps(augment: str, count: int) -> None:
    """And no image gets two of them in the other order."""
    with own_randomness():
        drawn = preset_of(config(augment)).drawn(np.arange(count) + 5)
    work = gathered(drawn.codes, drawn.values) or NO_WORK
    found: list[list[tuple[str, float]]] = [[] for _ in range(count)]
    parts = work.rows.split(list(work.counts)), work.values.split(list(work.counts))
    for name, rows, values in zip(work.operations, *parts, strict=True):
        assert rows.tolist() == sorted(set(rows.tolist()))
        for row, value in zip(rows.tolist(), values.tolist(), strict=True):
            found[row].append((name, value))
    expected = [[(name, float(np.float32(value))) for name, value in drawn.steps(place)] for place in range(count)]
    assert found == expected


def test_rectangles_are_gathered() -> None:
    found = erasures([None, (1, 2, 3, 4), None], np.array([7, 8, 9]))
    assert found is not None
    assert (found.rows.tolist(), found.boxes.tolist(), found.seeds.tolist()) == ([1], [[1, 2, 3, 4]], [8])
    assert erasures([None], np.array([7])) is None


@pytest.mark.parametrize("shape", [(32, 40), (32, 32), (45, 32), (5, 5)])
def test_squares_that_begin_outside_are_mirrored(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    padded, size = np.pad(pixels, ((4, 4), (4, 4), (0, 0)), mode="reflect"), min(shape)
    for top in range(-4, shape[0] - size + 5):
        for left in range(-4, shape[1] - size + 5):
            out = np.empty((size, size, 3), np.uint8)
            crop_into(out, pixels, Cut((0, 0, *shape), *shape, top, left))
            assert (out == padded[top + 4 : top + 4 + size, left + 4 : left + 4 + size]).all()
