"""3-Augment's operations on one image, in OpenCV's vector instructions: `augment_operations` for loaders.

Pixels are uint8 (H, W, 3). Each operation is that of Pillow and of `augment_operations` within two grey levels; a blur
is within one of what `augment_operations` returns and within three of Pillow, which rounds six times.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from tt_ray.data.augment_operations import box_weights
from tt_ray.data.sources.base import Pixels

# Loaders are as many as there are CPUs: threads of OpenCV's own would be in their way.
cv2.setNumThreads(0)

_CUT_OFF = -0.499
"""Added before OpenCV rounds, since Pillow cuts fractions off; whole numbers stay."""
_LUMA = np.array([19595, 38470, 7471]) / 65536
"""ITU-R 601 as Pillow has it."""
_PARTS = 1024
_LEVELS = np.arange(256)


def apply_steps(pixels: Pixels, steps: Sequence[tuple[str, float]]) -> Pixels:
    """Does the steps of one sample in order; `pixels` itself where there are none, and never changed."""
    for name, value in steps:
        pixels = OPERATIONS[name](pixels, value)
    return pixels


def flip(pixels: Pixels, _: float) -> Pixels:
    """Left becomes right."""
    return _uint8(cv2.flip(pixels, 1))


def grey(pixels: Pixels, _: float) -> Pixels:
    """Pillow's mode L, in three channels."""
    return _uint8(cv2.cvtColor(_luma(pixels), cv2.COLOR_GRAY2RGB))


def solarise(pixels: Pixels, threshold: float) -> Pixels:
    """Inverts levels from the threshold on."""
    table = np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS)
    return _uint8(cv2.LUT(pixels, table.astype(np.uint8)))


def blur(pixels: Pixels, deviation: float) -> Pixels:
    """Gaussian blur as Pillow approximates it, three boxes, of a standard deviation up to WIDE_BLUR pixels.

    One convolution does it: these boxes reach one pixel to each side, and there an edge that is repeated is one that is
    mirrored; what is mirrored stays so under a box, so that the next would see the same pixels outside.
    """
    box = _box(deviation, 1)
    return _convolved(pixels, np.convolve(np.convolve(box, box), box), cv2.BORDER_REFLECT)


def wide_blur(pixels: Pixels, deviation: float) -> Pixels:
    """Gaussian blur of a standard deviation from WIDE_BLUR to 2.4 pixels."""
    box = _box(deviation, 2)
    for _ in range(3):
        pixels = _convolved(pixels, box, cv2.BORDER_REPLICATE)
    return pixels


def brightness(pixels: Pixels, factor: float) -> Pixels:
    """Between black (0) and the image (1), or beyond."""
    return _mapped(pixels, factor * np.eye(3), 0)


def contrast(pixels: Pixels, factor: float) -> Pixels:
    """Between the mean grey (0) and the image (1), or beyond."""
    mean = int(cv2.mean(_luma(pixels))[0] + 0.5)
    return _mapped(pixels, factor * np.eye(3), (1 - factor) * mean)


def colour(pixels: Pixels, factor: float) -> Pixels:
    """Between its greys (0) and the image (1), or beyond."""
    # OpenCV rounds a matrix for uint8 to these parts: weights that lose their sum of 1 would darken a grey image.
    matrix = np.round((factor * np.eye(3) + (1 - factor) * _LUMA) * _PARTS) / _PARTS
    return _mapped(pixels, matrix + np.diag(1 - matrix.sum(1)), 0)


OPERATIONS: dict[str, Callable[[Pixels, float], Pixels]] = {
    "flip": flip,
    "grey": grey,
    "solarise": solarise,
    "blur": blur,
    "wide_blur": wide_blur,
    "brightness": brightness,
    "contrast": contrast,
    "colour": colour,
}


def _luma(pixels: Pixels) -> Pixels:
    return _uint8(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))


def _mapped(pixels: Pixels, matrix: npt.NDArray[np.float64], offset: float) -> Pixels:
    """Each pixel's colour times a matrix, plus an offset, cut off as Pillow does."""
    return _uint8(cv2.transform(pixels, np.column_stack([matrix, np.full(3, offset + _CUT_OFF)])))


def _box(deviation: float, reach: int) -> npt.NDArray[np.float64]:
    inside, end = box_weights(deviation, reach)
    return np.array([end, *[inside] * (2 * reach - 1), end])


def _convolved(pixels: Pixels, kernel: npt.NDArray[np.float64], border: int) -> Pixels:
    return _uint8(cv2.sepFilter2D(pixels, -1, kernel, kernel, borderType=border))


def _uint8(found: Any) -> Pixels:
    """What OpenCV returns for uint8, whose annotations leave the type open."""
    return found
