"""The presets for one image at a time, in two halves: the part of the image to cut out, and what is then done to it.

What is drawn for a sample follows from its seed alone, in the order in which `train_transform` draws: whoever does the
second half (Pillow in a loader, tensors in a loader, a GPU) gets the same numbers.
"""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp, RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

from tt_ray.config import DataConfig
from tt_ray.data.augment import train_transform
from tt_ray.data.augment_operations import WIDE_BLUR, Work
from tt_ray.data.sources.jpeg import Region

NOTHING = ("", 0.0)
Step = tuple[str, float]
"""An operation's name and its parameter."""
Size = tuple[int, int]

_PAD = 4
_THREE = ("grey", "solarise", "blur")
_THRESHOLD = 128.0
_JITTER = ("brightness", "contrast", "colour")
_NAMES = {
    "AutoContrast": "autocontrast",
    "Equalize": "equalise",
    "Invert": "invert",
    "Rotate": "rotate",
    "PosterizeIncreasing": "posterise",
    "SolarizeIncreasing": "solarise",
    "SolarizeAdd": "solarise_add",
    "ColorIncreasing": "colour",
    "ContrastIncreasing": "contrast",
    "BrightnessIncreasing": "brightness",
    "SharpnessIncreasing": "sharpness",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateXRel": "translate_x",
    "TranslateYRel": "translate_y",
}
"""Our names of RandAugment's operations."""


_twister = np.random.MT19937()
_seeds_twister = np.random.RandomState(_twister)
_python = random.Random()


class Cut(NamedTuple):
    """Where a sample's square comes from."""

    region: Region
    """The part of the image that is resized."""
    height: int
    width: int
    """What it is resized to."""
    top: int = 0
    left: int = 0
    """Where the square begins in the resized part; it may begin and end outside by a few pixels, which are mirrored."""


class Erase(NamedTuple):
    """Rectangles that become noise, after normalisation."""

    rows: torch.Tensor
    """Positions in the batch, ascending, (n,)."""
    boxes: torch.Tensor
    """Top, left, bottom, right, (n, 4) int64."""
    seeds: torch.Tensor
    """Of the noise, (n,) int64."""


class Drawn(NamedTuple):
    """All that is drawn for a sample."""

    cut: Cut
    steps: list[Step]
    """What to do to the square, as many steps for each sample; NOTHING where there is nothing to do."""
    erased: tuple[int, int, int, int] | None = None
    """Top, left, bottom and right of the rectangle to erase."""


class Preset(Protocol):
    """A preset; its methods move the global generators, and so are called within `own_randomness`."""

    in_opencv: bool
    """`pixel_operations` has all of its operations."""

    def drawn(self, seed: int, size: Size) -> Drawn:
        """What is drawn for a sample whose image has that width and height."""
        ...

    def by_pillow(self, square: Image.Image, seed: int, size: Size) -> Any:
        """The same sample's steps done to its square, an RGB image, by `train_transform`'s own means."""
        ...


def preset_of(config: DataConfig) -> Preset:
    """The preset `data.augment`, three_augment or deit."""
    return ThreeAugment(config) if config.augment == "three_augment" else Deit(config)


class ThreeAugment:
    """3-Augment; see `augment.train_transform`."""

    in_opencv = True

    def __init__(self, config: DataConfig) -> None:
        self._size = config.image_size
        _, _, *rest, _ = _steps_of(config)
        self._rest: Callable[[Any], Any] = transforms.Compose(rest)
        strength: tuple[float, float] | None = rest[-1].brightness
        # In 32 bits, as torch has them.
        low, high = np.array(strength or (1, 1), np.float32)
        self._jitter = None if strength is None else (float(low), float(high - low))

    def drawn(self, seed: int, size: Size) -> Drawn:
        """The resized image, padded by 4 pixels, has the square at a random place.

        Then flip, one of three, and the three parts of the jitter in random order.
        """
        _python.seed(seed)
        down, right, *bits = torch_bits(seed, 9)
        lines, columns = self._resized(size)
        top, left = down % self._places(lines) - _PAD, right % self._places(columns) - _PAD
        flip = ("flip", 0.0) if _uniform(bits[0]) < 0.5 else NOTHING
        kind = _THREE[int(_python.random() * len(_THREE))]  # what random.choices does
        value = _python.uniform(0.2, 2.0) if kind == "blur" else _THRESHOLD
        steps = [flip, ("wide_blur" if kind == "blur" and value >= WIDE_BLUR else kind, value)]
        if self._jitter is not None:
            low, span = self._jitter
            factors = [low + span * _uniform(each) for each in bits[4:]]
            order = _permutation(bits[1:4])  # ColorJitter draws a place for the hue as well
            steps += [(_JITTER[place], factors[place]) for place in order if place < len(_JITTER)]
        return Drawn(Cut((0, 0, size[1], size[0]), lines, columns, top, left), steps)

    def by_pillow(self, square: Image.Image, seed: int, size: Size) -> Any:
        seed_sample(seed)
        for side in self._resized(size):  # the two numbers of the cut
            torch.randint(self._places(side), (1,))
        return self._rest(square)

    def _resized(self, size: Size) -> Size:
        """Height and width of the resized image."""
        width, height = size
        if width < height:
            return int(self._size * height / width), self._size
        return self._size, int(self._size * width / height)

    def _places(self, side: int) -> int:
        """In how many places the square may begin along a side."""
        return side + 2 * _PAD - self._size + 1


class Deit:
    """DeiT's augmentation; see `augment.train_transform`."""

    in_opencv = False  # which rotates with another kernel than Pillow's

    def __init__(self, config: DataConfig) -> None:
        self._size = config.image_size
        steps = _steps_of(config)
        kinds = (RandomResizedCropAndInterpolation, transforms.RandomHorizontalFlip, RandAugment, RandomErasing)
        found: list[Any] = [next(step for step in steps if isinstance(step, kind)) for kind in kinds]
        self._crop, _, self._randaugment, self._erasing = found
        self._rest: Callable[[Any], Any] = transforms.Compose(found[1:3])

    def drawn(self, seed: int, size: Size) -> Drawn:
        seed_sample(seed)
        return Drawn(self._cut(size), self._steps(), self._erased())

    def by_pillow(self, square: Image.Image, seed: int, size: Size) -> Any:
        seed_sample(seed)
        self._cut(size)
        return self._rest(square)

    def _cut(self, size: Size) -> Cut:
        """A part of random size and proportions, resized to the square."""
        image = torch.empty(3, size[1], size[0], device="meta")  # of which the size alone is asked
        region = self._crop.get_params(image, self._crop.scale, self._crop.ratio)
        return Cut(region, self._size, self._size)

    def _steps(self) -> list[Step]:
        """Flip, and RandAugment's operations."""
        flip = ("flip", 0.0) if torch.rand(1).item() < 0.5 else NOTHING
        augment: RandAugment = self._randaugment
        chosen = np.random.choice(len(augment.ops), augment.num_layers)
        return [flip, *(_randaugment_step(augment.ops[number]) for number in chosen)]

    def _erased(self) -> tuple[int, int, int, int] | None:
        """As timm's RandomErasing draws it, whose noise is drawn elsewhere."""
        erasing: RandomErasing = self._erasing
        if random.random() > erasing.probability:
            return None
        for _ in range(10):
            area = random.uniform(erasing.min_area, erasing.max_area) * self._size**2
            aspect = math.exp(random.uniform(*erasing.log_aspect_ratio))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if max(height, width) < self._size:
                top, left = random.randint(0, self._size - height), random.randint(0, self._size - width)
                return top, left, top + height, left + width
        return None


def _steps_of(config: DataConfig) -> list[Any]:
    transform: Any = train_transform(config)
    return transform.transforms


def _randaugment_step(operation: AugmentOp) -> Step:
    """What timm's operation draws when it is called."""
    deviation: Any = operation.magnitude_std
    if operation.prob < 1 and random.random() > operation.prob:
        return NOTHING
    magnitude = min(max(random.gauss(operation.magnitude, deviation), 0.0), 10.0)
    arguments = operation.level_fn(magnitude, operation.hparams) if operation.level_fn else (0.0,)
    return _NAMES[operation.name], float(arguments[0])


@contextmanager
def own_randomness() -> Iterator[None]:
    """Leaves the global generators of torch, numpy and random as they were: the model's dropout follows no images."""
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def seed_sample(seed: int) -> None:
    """Has everything that is drawn for a sample follow from its seed; within `own_randomness`."""
    # Not torch.manual_seed, which would seed (and, in a loader process, wake) the GPUs as well.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def torch_bits(seed: int, count: int) -> list[int]:
    """The first numbers of 32 bits that torch's generator gives once it is seeded.

    Both it and numpy's are the Mersenne Twister; numpy hands out all in less time than torch the first.
    """
    _seeds_twister.seed(seed)
    return _twister.random_raw(count).tolist()


def _uniform(bits: int) -> float:
    """What `torch.rand` makes of them."""
    return (bits & 0xFFFFFF) * 2.0**-24


def _permutation(bits: Sequence[int]) -> list[int]:
    """What `torch.randperm(len(bits) + 1)` makes of them."""
    order = list(range(len(bits) + 1))
    for place, number in enumerate(bits):
        other = place + number % (len(order) - place)
        order[place], order[other] = order[other], order[place]
    return order


def gathered(steps: Sequence[list[Step]]) -> tuple[Work, ...]:
    """The steps of a batch's samples, joined: each operation once for all samples that have it at that place."""
    found = defaultdict[tuple[int, str], list[tuple[int, float]]](list)
    for row, each in enumerate(steps):
        for place, (name, value) in enumerate(each):
            if name:
                found[place, name].append((row, value))
    if not found:
        return ()
    keys = sorted(found)
    # Parts of two tensors, which travel between processes as two.
    rows, values = zip(*(pair for key in keys for pair in found[key]), strict=True)
    sizes = [len(found[key]) for key in keys]
    # By way of numpy, which reads lists in less time.
    joined = torch.from_numpy(np.array(rows)), torch.from_numpy(np.array(values, np.float32))
    parts = zip(*(part.split(sizes) for part in joined), strict=True)
    return tuple(Work(name, *part) for (_, name), part in zip(keys, parts, strict=True))


def erasures(boxes: Sequence[tuple[int, int, int, int] | None], seeds: npt.NDArray[np.int64]) -> Erase | None:
    """The rectangles of a batch; None where there are none."""
    rows = [row for row, box in enumerate(boxes) if box is not None]
    if not rows:
        return None
    return Erase(torch.tensor(rows), torch.tensor([boxes[row] for row in rows]), torch.from_numpy(seeds[rows]))


def crop_into(out: npt.NDArray[np.uint8], pixels: npt.NDArray[np.uint8], cut: Cut) -> None:
    """Copies the square (S, S, 3) out of the resized part (height, width, 3)."""
    size, (height, width) = len(out), pixels.shape[:2]
    if size <= 2 * _PAD:  # what is mirrored may lie outside the square
        lines, columns = _mirrored(height)[cut.top + _PAD :], _mirrored(width)[cut.left + _PAD :]
        out[:] = pixels[np.ix_(lines[:size], columns[:size])]
        return
    upper, lower = max(0, -cut.top), max(0, cut.top + size - height)
    first, last = max(0, -cut.left), max(0, cut.left + size - width)
    inside = pixels[cut.top + upper : cut.top + size - lower, cut.left + first : cut.left + size - last]
    cv2.copyMakeBorder(inside, upper, lower, first, last, cv2.BORDER_REFLECT_101, out)


def _mirrored(length: int) -> npt.NDArray[np.int64]:
    """The numbers of a line's pixels with those of its padding."""
    return np.pad(np.arange(length), _PAD, mode="reflect")
