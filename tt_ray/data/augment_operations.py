"""Augmenting operations on batches, on any device: what Pillow does to one image, within two grey levels.

Narrow blurs are up to three levels from Pillow's on noise (one in the mean), since it rounds six times and we once.

Images are float32 (n, 3, H, W) of whole grey levels from 0 to 255, and may be changed in place; each has its own
parameter, (n,). No operation looks at a value on the host, so none waits for the device.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

Fill = tuple[int, int, int]
"""Colour of what a moved image leaves behind."""
Operation = Callable[[Tensor, Tensor, Fill], Tensor]
Factor = TypeVar("Factor", float, Tensor)

WIDE_BLUR = 2**0.5
"""Standard deviation from which on a blur's boxes contain whole neighbours."""


class Work(NamedTuple):
    """Operations on a batch, one after the other, each on some of its images."""

    operations: Sequence[str]
    """Names in OPERATIONS."""
    counts: Sequence[int]
    """How many images each is for; none is for none."""
    rows: Tensor
    """Positions in the batch, of one operation's images after the other's, ascending for each, (n,).

    One tensor, like the next: each travels by itself, between processes and to the device."""
    values: Tensor
    """A parameter for each, (n,) float32."""

    def first(self, count: int) -> "Work":
        """What there is to do to the batch's first images."""
        kept = self.rows < count
        counts = [int(part.sum()) for part in kept.split(list(self.counts))]
        some = [(name, number) for name, number in zip(self.operations, counts, strict=True) if number]
        return Work([name for name, _ in some], [number for _, number in some], self.rows[kept], self.values[kept])


def apply(images: Tensor, work: Work, fill: Fill) -> Tensor:
    """Does one operation after the other: float32 (B, 3, H, W), which may be overwritten, to the same shape."""
    parts = (part.split(list(work.counts)) for part in (work.rows, work.values))
    for name, rows, values in zip(work.operations, *parts, strict=True):
        if len(rows) == len(images):
            images = OPERATIONS[name](images, values, fill)
        else:
            images.index_copy_(0, rows, OPERATIONS[name](images.index_select(0, rows), values, fill))
    return images


def flip(images: Tensor, _: Tensor, __: Fill) -> Tensor:
    """Left becomes right."""
    return images.flip(3)


def grey(images: Tensor, _: Tensor, __: Fill) -> Tensor:
    """Pillow's mode L, in three channels."""
    return _luma(images).expand_as(images).clone()


def solarise(images: Tensor, threshold: Tensor, _: Fill) -> Tensor:
    """Inverts levels from the threshold on."""
    # 1 where the level is the threshold or more, else 0: on CPUs several times as fast as torch.where.
    bright = images.sub(_each(threshold - 1)).clamp_(0, 1)
    return images.add_(images.mul(-2).add_(255).mul_(bright))


def blur(images: Tensor, deviation: Tensor, _: Fill) -> Tensor:
    """Gaussian blur as Pillow approximates it, of a standard deviation up to WIDE_BLUR pixels."""
    return _three_boxes(images, deviation, 1)


def wide_blur(images: Tensor, deviation: Tensor, _: Fill) -> Tensor:
    """Gaussian blur of a standard deviation from WIDE_BLUR to 2.4 pixels."""
    return _three_boxes(images, deviation, 2)


def brightness(images: Tensor, factor: Tensor, _: Fill) -> Tensor:
    """Between black (0) and the image (1), or beyond."""
    return images.mul_(_each(factor)).clamp_(0, 255).floor_()


def contrast(images: Tensor, factor: Tensor, _: Fill) -> Tensor:
    """Between the mean grey (0) and the image (1), or beyond."""
    mean = _each(_luma(images).mean((1, 2, 3)).add_(0.5).floor_())
    return images.sub_(mean).mul_(_each(factor)).add_(mean).clamp_(0, 255).floor_()


def colour(images: Tensor, factor: Tensor, _: Fill) -> Tensor:
    """Between its greys (0) and the image (1), or beyond."""
    return _blend(_luma(images), images, factor)


def sharpness(images: Tensor, factor: Tensor, _: Fill) -> Tensor:
    """Between a smoothed image (0), whose outermost pixels stay, and the image (1), or beyond."""
    smooth = images.clone()
    if min(images.shape[2:]) > 2:
        lines = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
        around = lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:]
        inner = images[:, :, 1:-1, 1:-1]
        smooth[:, :, 1:-1, 1:-1] = around.add_(inner, alpha=4).div_(13).add_(0.5).floor_()
    return _blend(smooth, images, factor)


def autocontrast(images: Tensor, _: Tensor, __: Fill) -> Tensor:
    """Stretches each channel to 0 - 255."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = ((images - low) * 255).div_((high - low).clamp(min=1)).floor_()
    return torch.where(high > low, stretched, images)


def equalise(images: Tensor, _: Tensor, __: Fill) -> Tensor:
    """Makes each channel's histogram flat."""
    count, channels, height, width = images.shape
    levels = images.reshape(count, channels, -1).long()
    histogram = levels.new_zeros(count, channels, 256).scatter_add_(2, levels, torch.ones_like(levels))
    numbers = torch.arange(256, device=images.device)
    last = ((histogram > 0) * numbers).amax(2, keepdim=True)
    step = (height * width - histogram.gather(2, last)) // 255
    before = histogram.cumsum(2) - histogram
    table = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, numbers)
    return table.gather(2, levels).view(images.shape).float()


def invert(images: Tensor, _: Tensor, __: Fill) -> Tensor:
    """Black becomes white."""
    return 255 - images


def posterise(images: Tensor, bits: Tensor, _: Fill) -> Tensor:
    """Keeps the upper bits alone; none of them is black."""
    step = _each(torch.exp2(8 - bits))
    return images.div_(step).floor_().mul_(step)


def solarise_add(images: Tensor, added: Tensor, _: Fill) -> Tensor:
    """Brightens what is darker than 128."""
    return torch.where(images < 128, (images + _each(added)).clamp_(max=255), images)


def rotate(images: Tensor, degrees: Tensor, fill: Fill) -> Tensor:
    """Turns images counter-clockwise around their centre."""
    height, width = images.shape[2:]
    angle = -degrees.double() * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    return _move(images, (cos, sin, x - x * cos - y * sin, -sin, cos, y + x * sin - y * cos), fill)


def shear_x(images: Tensor, factor: Tensor, fill: Fill) -> Tensor:
    """Moves each row by so many times its number."""
    one, zero = torch.ones_like(factor), torch.zeros_like(factor)
    return _move(images, (one, factor, zero, zero, one, zero), fill)


def shear_y(images: Tensor, factor: Tensor, fill: Fill) -> Tensor:
    """Moves each column by so many times its number."""
    one, zero = torch.ones_like(factor), torch.zeros_like(factor)
    return _move(images, (one, zero, zero, factor, one, zero), fill)


def translate_x(images: Tensor, share: Tensor, fill: Fill) -> Tensor:
    """Moves to the left by a share of the width."""
    one, zero = torch.ones_like(share), torch.zeros_like(share)
    return _move(images, (one, zero, share * images.shape[3], zero, one, zero), fill)


def translate_y(images: Tensor, share: Tensor, fill: Fill) -> Tensor:
    """Moves up by a share of the height."""
    one, zero = torch.ones_like(share), torch.zeros_like(share)
    return _move(images, (one, zero, zero, zero, one, share * images.shape[2]), fill)


OPERATIONS: dict[str, Operation] = {
    "flip": flip,
    "grey": grey,
    "solarise": solarise,
    "blur": blur,
    "wide_blur": wide_blur,
    "brightness": brightness,
    "contrast": contrast,
    "colour": colour,
    "sharpness": sharpness,
    "autocontrast": autocontrast,
    "equalise": equalise,
    "invert": invert,
    "posterise": posterise,
    "solarise_add": solarise_add,
    "rotate": rotate,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
}


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _luma(images: Tensor) -> Tensor:
    """ITU-R 601 as Pillow rounds it, (n, 1, H, W): float32 holds all of its whole numbers below 2**24."""
    red, green, blue = images[:, :1], images[:, 1:2], images[:, 2:]
    luma = red.mul(19595).add_(green, alpha=38470).add_(blue, alpha=7471)
    return luma.add_(32768).mul_(2.0**-16).floor_()


def _blend(start: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """start + factor * (images - start), cut off as Pillow does."""
    return torch.lerp(start.expand_as(images), images, _each(factor), out=images).clamp_(0, 255).floor_()


def box_weights(deviation: Factor, reach: int) -> tuple[Factor, Factor]:
    """Weights of a box: of each pixel nearer than `reach` to its centre, and of those two that are as far.

    Three such boxes blur by a standard deviation. Their lengths are those of Gwosdek et al. (2011, doi
    10.1007/978-3-642-24785-9_38), which Pillow follows: a box ends in part of a pixel.
    """
    variance, whole = deviation * deviation / 3, reach - 1
    part = (2 * whole + 1) * (whole * reach - 3 * variance) / (6 * (variance - reach**2))
    inside = 1 / (2 * (whole + part) + 1)
    return inside, (1 - inside * (2 * whole + 1)) / 2


def _three_boxes(images: Tensor, deviation: Tensor, reach: int) -> Tensor:
    """Three box blurs along rows, then along columns, rounded at the end; it changes images in place."""
    inside, end = box_weights(_each(deviation), reach)
    weights = [inside] * (reach - 1) + [end]
    for axis in (3, 3, 3, 2, 2, 2):
        # Weights have the sum 1, so that a pixel's own need not be known.
        changes = [
            _around(images, axis, distance).sub_(images, alpha=2).mul_(weight)
            for distance, weight in enumerate(weights, 1)
        ]
        for change in changes:
            images.add_(change)
    return images.round_()


def _around(images: Tensor, axis: int, distance: int) -> Tensor:
    """The sum of the pixels at a distance on both sides; edges are repeated."""
    size, total = images.shape[axis], torch.empty_like(images)
    inner = max(0, size - 2 * distance)
    if inner:
        both = images.narrow(axis, 0, inner), images.narrow(axis, 2 * distance, inner)
        torch.add(*both, out=total.narrow(axis, distance, inner))
    for place in {*range(min(distance, size)), *range(max(0, size - distance), size)}:
        both = images.select(axis, max(0, place - distance)), images.select(axis, min(size - 1, place + distance))
        torch.add(*both, out=total.select(axis, place))
    return total


def _move(images: Tensor, matrix: tuple[Tensor, ...], fill: Fill) -> Tensor:
    """Pillow's affine transform with bicubic interpolation: `matrix` leads from new places to old ones."""
    height, width = images.shape[2:]
    a, b, c, d, e, f = (value.double().view(-1, 1, 1) for value in matrix)
    x = torch.arange(width, device=images.device, dtype=torch.float64) + 0.5
    y = (torch.arange(height, device=images.device, dtype=torch.float64) + 0.5)[:, None]
    old_x, old_y = a * x + b * y + c, d * x + e * y + f  # (n, H, W)
    outside = (old_x < 0) | (old_x >= width) | (old_y < 0) | (old_y >= height)
    (columns, across), (lines, down) = _taps(old_x, width), _taps(old_y, height)
    flat, total = images.flatten(2), torch.zeros_like(images)
    for line, share in zip(lines, down, strict=True):
        part = torch.zeros_like(images)
        for column, weight in zip(columns, across, strict=True):
            place = (line * width + column).flatten(1)[:, None].expand(-1, 3, -1)
            part += flat.gather(2, place).view_as(images) * weight[:, None]
        total += part * share[:, None]
    colours = _colours(fill, images)
    # Pillow cuts fractions off, in double precision: a flat colour must not lose a level to float32.
    return torch.where(outside[:, None], colours, total.add_(2.0**-10).clamp_(0, 255).floor_())


def _taps(place: Tensor, size: int) -> tuple[list[Tensor], list[Tensor]]:
    """Numbers of the four pixels around each place on an axis, within the image, and their weights."""
    first = (place - 0.5).floor()
    t = (place - 0.5 - first).float()
    numbers = [(first.long() + step).clamp_(0, size - 1) for step in (-1, 0, 1, 2)]
    return numbers, [_cubic(t + 1), _cubic(t), _cubic(1 - t), _cubic(2 - t)]


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1, as Pillow has it, at distances from 0 to 2."""
    near, far = ((x - 2) * x * x + 1), (((5 - x) * x - 8) * x + 4)
    return torch.where(x < 1, near, far)


def _colours(fill: Fill, images: Tensor) -> Tensor:
    """(3, 1, 1); filled in, since a copy from the host would have to wait."""
    return torch.cat([images.new_full((1, 1, 1), level) for level in fill])
