"""What a batch still needs when it reaches its device: the preset's operations, normalisation, erasing."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tt_ray.config import DataConfig
from tt_ray.data.augment import channels_on, normalize
from tt_ray.data.augment_draws import Erase
from tt_ray.data.augment_operations import Fill, Work, apply

_GOLDEN, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
"""SplitMix64's constants as signed integers."""


class Rest(NamedTuple):
    """The part of a batch's augmentation that its loader left to the device."""

    work: Work | None = None
    erase: Erase | None = None

    def first(self, count: int) -> "Rest":
        """What is left to do to the batch's first images."""
        erase = None if self.erase is None else Erase(*(part[self.erase.rows < count] for part in self.erase))
        # `erase` expects that there is something to do.
        return Rest(self.work and self.work.first(count), erase if erase and len(erase.rows) else None)


def finish(images: Tensor, rest: Rest, config: DataConfig) -> Tensor:
    """Augments what the loader has not, and normalises: uint8 (B, 3, S, S) to float32, on the images' device.

    Float images pass unchanged: they are finished. Does not wait for the device.
    """
    if images.dtype != torch.uint8:
        return images
    device = images.device
    if rest.work is not None:
        rows, values = (part.to(device, non_blocking=True) for part in (rest.work.rows, rest.work.values))
        work = rest.work._replace(rows=rows, values=values)
        images = apply(images.contiguous().float(), work, fill_of(config))
        images.div_(255).sub_(channels_on(config.mean, device)).div_(channels_on(config.std, device))
    else:
        images = normalize(images, config.mean, config.std)
    if rest.erase is not None:
        rows, boxes, seeds = (part.to(device, non_blocking=True) for part in rest.erase)
        images.index_copy_(0, rows, erase(images.index_select(0, rows), boxes, seeds))
    return images


def fill_of(config: DataConfig) -> Fill:
    """The colour of what a moved image leaves behind: the mean, as timm has it."""
    red, green, blue = (min(255, round(255 * value)) for value in config.mean)
    return red, green, blue


def erase(images: Tensor, boxes: Tensor, seeds: Tensor) -> Tensor:
    """Fills a rectangle of each image (n, 3, H, W) with normal noise, a function of the image's seed and the place."""
    count, channels, height, width = images.shape
    top, left, bottom, right = boxes.T[:, :, None, None, None]
    y = torch.arange(height, device=images.device)[:, None]
    x = torch.arange(width, device=images.device)
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    place = torch.arange(channels * height * width, device=images.device)
    noise = normal(seeds, place).view(count, channels, height, width).to(images.dtype)
    return torch.where(inside, noise, images)


def normal(seeds: Tensor, places: Tensor) -> Tensor:
    """Normal numbers as a pure function of seed and place, (len(seeds), len(places)) float32.

    The hash of `stateless_random.uniform`, and the method of Box and Muller (1958, doi 10.1214/aoms/1177706645).
    """
    bits = _mix(_mix(seeds[:, None]) + places)
    first, second = _shifted(bits, 40).float(), (bits & 0xFFFFFF).float()
    radius = (-2 * ((first + 1) * 2.0**-24).log()).sqrt()
    return radius * (second * (2 * math.pi * 2.0**-24)).cos()


def _mix(state: Tensor) -> Tensor:
    state = state + _GOLDEN
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    """To the right, filled with zeros; torch's own shift repeats the sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
