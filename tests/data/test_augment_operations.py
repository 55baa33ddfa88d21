"""Operations on batches against those of Pillow and timm: two grey levels apart at the most, narrow blurs three."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from tt_ray.data.augment_operations import OPERATIONS, WIDE_BLUR, Work, apply
from tt_ray.data.pillow_operations import OPERATIONS as PILLOW

FILL = (124, 116, 104)
UNIFORM: dict[str, tuple[float, float]] = {
    "flip": (0, 0),
    "grey": (0, 0),
    "solarise": (0, 256),
    "blur": (0.1, WIDE_BLUR),
    "wide_blur": (WIDE_BLUR, 2.4),
    "brightness": (0.1, 1.9),
    "contrast": (0.1, 1.9),
    "colour": (0.1, 1.9),
    "sharpness": (0.1, 1.9),
    "autocontrast": (0, 0),
    "equalise": (0, 0),
    "invert": (0, 0),
    "posterise": (0, 4),
    "solarise_add": (0, 110),
    "rotate": (-30, 30),
    "shear_x": (-0.3, 0.3),
    "shear_y": (-0.3, 0.3),
    "translate_x": (-0.45, 0.45),
    "translate_y": (-0.45, 0.45),
}
WHOLE = ("solarise", "posterise", "solarise_add")
# Of a narrow blur Pillow rounds each of six boxes, and we once: up to three levels, on noise, where the mean is 1.0.
APART = {"blur": 3}
MOVING = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Noise, smooth colours with an edge, a flat colour or a dark one, by turns."""
    generator = np.random.default_rng(seed)
    if seed % 4 == 0:
        return Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))
    if seed % 4 == 2:
        return Image.new("RGB", (width, height), tuple(generator.integers(0, 256, 3).tolist()))
    pixels = np.array(Image.fromarray(generator.integers(0, 256, (4, 5, 3), np.uint8)).resize((width, height)))
    pixels[height // 3 :, width // 2 :] = generator.integers(0, 256, 3)
    return Image.fromarray(pixels if seed % 4 == 1 else pixels // 5)


def tensor(images: list[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float()


def drawn(name: str, count: int) -> list[float]:
    numbers = random.Random(name)
    low, high = UNIFORM[name]
    values = [low, high, *(numbers.uniform(low, high) for _ in range(count - 2))]
    return [float(round(value)) for value in values] if name in WHOLE else values


@pytest.mark.parametrize(("width", "height"), [(224, 224), (41, 67), (100, 64), (65, 9), (2, 1)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_pillow_s(name: str, width: int, height: int) -> None:
    count = 16 if width == 224 else 40
    values = drawn(name, count)
    images = [picture(width, height, seed) for seed in range(count)]
    found = OPERATIONS[name](tensor(images), torch.tensor(values, dtype=torch.float32), FILL)
    assert found.dtype == torch.float32 and (found == found.floor()).all() and 0 <= found.min() <= found.max() <= 255
    expected = tensor([PILLOW[name](image, value, FILL) for image, value in zip(images, values, strict=True)])
    difference = (found - expected).abs()
    if name in MOVING:  # a place on the very edge may fall to either side of it
        assert (difference.amax(1) > 2).float().mean() < 2e-4
    else:
        assert difference.max() <= APART.get(name, 2), (name, [difference[i].max().item() for i in range(count)])
    assert difference.mean() < 0.5
    assert name not in APART or difference.mean((1, 2, 3)).max() < 1.2


def test_all_operations_are_compared() -> None:
    assert OPERATIONS.keys() == PILLOW.keys() == UNIFORM.keys()


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    """Nor on the memory format."""
    values = torch.tensor(drawn(name, 6), dtype=torch.float32)
    images = tensor([picture(48, 40, seed) for seed in range(6)])
    together = OPERATIONS[name](images.clone(), values, FILL)
    alone = torch.cat([OPERATIONS[name](images[i : i + 1].clone(), values[i : i + 1], FILL) for i in range(6)])
    last = OPERATIONS[name](images.to(memory_format=torch.channels_last), values, FILL)
    assert torch.equal(together, alone) and torch.equal(together, last)


def test_work_is_done_in_order_on_its_rows_alone() -> None:
    images = tensor([picture(16, 16, seed) for seed in range(4)])
    rows, values = torch.tensor([1, 3, 0, 1, 2, 3, 3]), torch.tensor([0.0, 0.0, 1.0, 0.5, 1.0, 2.0, 0.0])
    work = Work(("invert", "brightness", "flip"), (2, 4, 1), rows, values)
    found = apply(images.clone(), work, FILL)
    assert torch.equal(found[0], images[0]) and torch.equal(found[2], images[2])
    assert torch.equal(found[1], ((255 - images[1]) * 0.5).floor())
    assert torch.equal(found[3], ((255 - images[3]) * 2).clamp(0, 255).flip(2))
