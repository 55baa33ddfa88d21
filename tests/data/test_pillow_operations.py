"""Pillow's operations are those of torchvision and timm, bit for bit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torchvision.transforms.functional as F
from PIL import Image
from timm.data import auto_augment

from tests.data.test_augment_operations import FILL, MOVING, drawn, picture
from tt_ray.data.pillow_operations import OPERATIONS, apply_steps

TORCHVISION: dict[str, Callable[[Any, float], Any]] = {
    "flip": lambda image, _: F.hflip(image),
    "grey": lambda image, _: F.to_grayscale(image, 3),
    "solarise": F.solarize,
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "colour": F.adjust_saturation,
    "sharpness": F.adjust_sharpness,
    "autocontrast": lambda image, _: F.autocontrast(image),
    "equalise": lambda image, _: F.equalize(image),
    "invert": lambda image, _: F.invert(image),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_does_the_same(name: str) -> None:
    for seed, value in enumerate(drawn(name, 12)):
        image = picture(41, 67, seed)
        found, expected = OPERATIONS[name](image, value, FILL), TORCHVISION[name](image, value)
        assert found.mode == "RGB" and (np.asarray(found) == np.asarray(expected)).all()


@pytest.mark.parametrize("name", MOVING)
def test_what_moves_is_timm_s(name: str) -> None:
    move = getattr(
        auto_augment, name.replace("translate_x", "translate_x_rel").replace("translate_y", "translate_y_rel")
    )
    for seed, value in enumerate(drawn(name, 6)):
        image = picture(41, 67, seed)
        expected = move(image, value, fillcolor=FILL, resample=Image.Resampling.BICUBIC)
        assert (np.asarray(OPERATIONS[name](image, value, FILL)) == np.asarray(expected)).all()


def test_steps_are_done_in_order() -> None:
    image = picture(20, 20, 1)
    found = apply_steps(image, [("invert", 0.0), ("brightness", 0.5)], FILL)
    expected = OPERATIONS["brightness"](OPERATIONS["invert"](image, 0, FILL), 0.5, FILL)
    other = OPERATIONS["invert"](OPERATIONS["brightness"](image, 0.5, FILL), 0, FILL)
    assert (np.asarray(found) == np.asarray(expected)).all() and (np.asarray(found) != np.asarray(other)).any()
    assert apply_steps(image, [], FILL) is image
