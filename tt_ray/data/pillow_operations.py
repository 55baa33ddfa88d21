"""Augmenting operations on one image by Pillow and timm: the reference, and what `data.decoder pillow` uses."""

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from timm.data import auto_augment

from tt_ray.data.augment_operations import Fill

Operation = Callable[[Image.Image, float, Fill], Image.Image]


def apply_steps(image: Image.Image, steps: Sequence[tuple[str, float]], fill: Fill) -> Image.Image:
    """Does the steps of one sample, an RGB image, in order; what a moved image leaves behind gets the colour `fill`."""
    for name, value in steps:
        image = OPERATIONS[name](image, value, fill)
    return image


def _posterise(image: Image.Image, bits: float, _: Fill) -> Image.Image:
    """timm's highest level keeps 0 bits: black, as Pillow did it before 13, which raises instead."""
    return ImageOps.posterize(image, int(bits)) if bits else Image.new("RGB", image.size)


def _blur(image: Image.Image, deviation: float, _: Fill) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(deviation))


def _moved(by: Callable[..., Image.Image]) -> Operation:
    """One of timm's movements, with bicubic interpolation."""
    how: dict[str, Any] = {"resample": Image.Resampling.BICUBIC}
    return lambda image, value, fill: by(image, value, fillcolor=fill, **how)


OPERATIONS: dict[str, Operation] = {
    "flip": lambda image, _, __: ImageOps.mirror(image),
    "grey": lambda image, _, __: image.convert("L").convert("RGB"),
    "solarise": lambda image, threshold, _: ImageOps.solarize(image, int(threshold)),
    "blur": _blur,
    "wide_blur": _blur,
    "brightness": lambda image, factor, _: ImageEnhance.Brightness(image).enhance(factor),
    "contrast": lambda image, factor, _: ImageEnhance.Contrast(image).enhance(factor),
    "colour": lambda image, factor, _: ImageEnhance.Color(image).enhance(factor),
    "sharpness": lambda image, factor, _: ImageEnhance.Sharpness(image).enhance(factor),
    "autocontrast": lambda image, _, __: ImageOps.autocontrast(image),
    "equalise": lambda image, _, __: ImageOps.equalize(image),
    "invert": lambda image, _, __: ImageOps.invert(image),
    "posterise": _posterise,
    "solarise_add": lambda image, added, _: auto_augment.solarize_add(image, int(added)),
    "rotate": _moved(auto_augment.rotate),
    "shear_x": _moved(auto_augment.shear_x),
    "shear_y": _moved(auto_augment.shear_y),
    "translate_x": _moved(auto_augment.translate_x_rel),
    "translate_y": _moved(auto_augment.translate_y_rel),
}
"""The same names as in `augment_operations`."""
