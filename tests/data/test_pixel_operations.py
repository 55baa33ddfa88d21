"""OpenCV's operations, which loaders use, against the device's and Pillow's: two grey levels apart at the most."""

import numpy as np
import pytest
import torch

from tests.data.test_augment_operations import APART, FILL, drawn, picture, tensor
from tt_ray.data import augment_operations, pixel_operations
from tt_ray.data.augment_draws import ThreeAugment
from tt_ray.data.pillow_operations import OPERATIONS as PILLOW
from tt_ray.data.pixel_operations import OPERATIONS, apply_steps


@pytest.mark.parametrize(("width", "height"), [(224, 224), (41, 67), (65, 9), (2, 1)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_the_device_s_and_pillow_s(name: str, width: int, height: int) -> None:
    count = 16 if width == 224 else 40
    values = drawn(name, count)
    images = [picture(width, height, seed) for seed in range(count)]
    found = [OPERATIONS[name](np.asarray(image), value) for image, value in zip(images, values, strict=True)]
    assert all(each.dtype == np.uint8 and each.shape == (height, width, 3) for each in found)
    levels = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float()
    on_device = augment_operations.OPERATIONS[name](tensor(images), torch.tensor(values, dtype=torch.float32), FILL)
    difference = (levels - on_device).abs()
    assert difference.max() <= 2 and difference.mean() < 0.3
    by_pillow = tensor([PILLOW[name](image, value, FILL) for image, value in zip(images, values, strict=True)])
    difference = (levels - by_pillow).abs()
    assert difference.max() <= APART.get(name, 2) and difference.mean() < 0.5


@pytest.mark.parametrize("factor", [0.7, 0.7048860492744248, 0.9, 0.9959989308736173, 1.0, 1.2, 1.3])
def test_colour_leaves_grey_images_as_they_are(factor: float) -> None:
    levels = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    assert (OPERATIONS["colour"](levels, factor) == levels).all()


def test_three_augment_is_done_by_opencv_and_its_image_stays() -> None:
    assert ThreeAugment.in_opencv
    pixels = np.asarray(picture(30, 20, 1)).copy()
    before = pixels.copy()
    steps = [(name, value) for name in OPERATIONS for value in drawn(name, 3)]
    found = apply_steps(pixels, steps)
    assert (pixels == before).all() and not np.shares_memory(found, pixels)
    assert apply_steps(pixels, []) is pixels
    one_by_one = pixels
    for name, value in steps:
        one_by_one = OPERATIONS[name](one_by_one, value)
    assert (found == one_by_one).all()


def test_opencv_starts_no_threads() -> None:
    """Loaders are as many as there are CPUs."""
    assert pixel_operations.cv2.getNumThreads() == 1
