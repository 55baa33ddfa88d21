"""The presets for images that are decoded one by one: the part to cut out of each, and what is then done to it.

What is drawn for a sample follows from its seed alone: whoever does it (Pillow or OpenCV in a loader, a GPU) gets the
same numbers.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation

from tt_ray.config import DataConfig
from tt_ray.data.augment_operations import OPERATIONS, WIDE_BLUR, Work
from tt_ray.data.sources.jpeg import Region
from tt_ray.stateless_random import uniform

NAMES = ("", *OPERATIONS)
"""Names of operations by their codes; 0 stands for nothing."""
CODES = {name: code for code, name in enumerate(NAMES)}
Step = tuple[str, float]
"""An operation's name and its parameter."""
Size = tuple[int, int]
Box = tuple[int, int, int, int]
"""Top, left, bottom and right of a rectangle."""

_PAD = 4
_THREE = np.array([CODES[name] for name in ("grey", "solarise", "blur", "wide_blur")])
_BLUR = 2
_THRESHOLD = 128.0
_JITTER = np.array([CODES[name] for name in ("brightness", "contrast", "colour")])
_ORDERS = np.array(list(itertools.permutations(range(len(_JITTER)))))
_CUT = 1
"""Keeps what is drawn for a cut apart from what is drawn for the steps."""
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
    """All that is drawn for the samples of a batch."""

    cut: Callable[[int, Size], Cut]
    """The cut of a sample, by its place in the batch and its image's width and height."""
    codes: npt.NDArray[np.int64]
    """What to do to each square, in order, (n, steps): places in NAMES."""
    values: npt.NDArray[np.float64]
    """The operations' parameters, (n, steps)."""
    boxes: Sequence[Box | None]
    """The rectangle of each to erase."""

    def steps(self, place: int) -> list[Step]:
        """What to do to one square."""
        each = zip(self.codes[place].tolist(), self.values[place].tolist(), strict=True)
        return [(NAMES[code], value) for code, value in each if code]


class Preset(Protocol):
    """A preset."""

    in_opencv: bool
    """`pixel_operations` has all of its operations. If not, its methods move the global generators, and so are called
    within `own_randomness`."""

    def drawn(self, seeds: npt.NDArray[np.int64]) -> Drawn:
        """What is drawn for samples with these seeds, (n,)."""
        ...


def preset_of(config: DataConfig) -> Preset:
    """The preset `data.augment`, three_augment or deit."""
    return ThreeAugment(config) if config.augment == "three_augment" else Deit(config)


class ThreeAugment:
    """3-Augment of DeiT III (Touvron, Cord and Jegou, 2022, arXiv 2204.07118).

    The short side is resized to the square's, 4 pixels are added around by reflection and the square is cut out at
    random; then come a flip, one of grey, solarise and blur, and brightness, contrast and colour in random order.
    """

    in_opencv = True

    def __init__(self, config: DataConfig) -> None:
        self._size, self._jitter = config.image_size, config.color_jitter
        self._darkest = max(0.0, 1 - self._jitter)

    def drawn(self, seeds: npt.NDArray[np.int64]) -> Drawn:
        numbers = uniform(seeds, 9)
        places, kinds = numbers[:, :2].tolist(), (numbers[:, 3] * 3).astype(np.int64)
        codes = np.empty((len(seeds), 5 if self._jitter else 2), np.int64)
        values = np.zeros(codes.shape)
        codes[:, 0] = (numbers[:, 2] < 0.5) * CODES["flip"]
        blurs, deviations = kinds == _BLUR, 0.2 + 1.8 * numbers[:, 4]
        codes[:, 1] = _THREE[kinds + (blurs & (deviations >= WIDE_BLUR))]
        values[:, 1] = np.where(blurs, deviations, _THRESHOLD)
        if self._jitter:
            order = _ORDERS[(numbers[:, 5] * len(_ORDERS)).astype(np.int64)]
            factors = self._darkest + (1 + self._jitter - self._darkest) * numbers[:, 6:]
            codes[:, 2:], values[:, 2:] = _JITTER[order], factors[np.arange(len(seeds))[:, None], order]
        return Drawn(lambda place, size: self._cut(places[place], size), codes, values, [None] * len(seeds))

    def _cut(self, numbers: Sequence[float], size: Size) -> Cut:
        width, height = size
        # Sizes are cut off as torchvision does.
        lines, columns = self._size, self._size
        if width < height:
            lines = int(self._size * height / width)
        else:
            columns = int(self._size * width / height)
        top, left = (
            int(number * (side + 2 * _PAD - self._size + 1)) - _PAD
            for number, side in zip(numbers, (lines, columns), strict=True)
        )
        return Cut((0, 0, height, width), lines, columns, top, left)


def deit_transform(config: DataConfig) -> Any:
    """timm's transform of one image, which draws for itself and normalises."""
    return create_transform(
        config.image_size,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        mean=config.mean,
        std=config.std,
    )


class Deit:
    """The augmentation of DeiT (Touvron et al., 2021, arXiv 2012.12877), with timm's draws: rand-m9-mstd0.5-inc1."""

    in_opencv = False  # which rotates with another kernel than Pillow's

    def __init__(self, config: DataConfig) -> None:
        self._size = config.image_size
        steps = deit_transform(config).transforms
        kinds = (RandomResizedCropAndInterpolation, RandAugment, RandomErasing)
        found: list[Any] = [next(step for step in steps if isinstance(step, kind)) for kind in kinds]
        self._crop, self._randaugment, self._erasing = found

    def drawn(self, seeds: npt.NDArray[np.int64]) -> Drawn:
        codes = np.zeros((len(seeds), 1 + self._randaugment.num_layers), np.int64)
        values, boxes = np.zeros(codes.shape), list[Box | None]()
        for place, seed in enumerate(seeds.tolist()):
            seed_sample(seed)
            for number, (name, value) in enumerate(self._steps()):
                codes[place, number], values[place, number] = CODES[name], value
            boxes.append(self._erased())
        others = (uniform(seeds, 1, _CUT)[:, 0] * 2**32).astype(np.int64).tolist()
        return Drawn(lambda place, size: self._cut(others[place], size), codes, values, boxes)

    def _cut(self, seed: int, size: Size) -> Cut:
        """A part of random size and proportions, resized to the square."""
        random.seed(seed)
        image = torch.empty(3, size[1], size[0], device="meta")  # of which the size alone is asked
        region = self._crop.get_params(image, self._crop.scale, self._crop.ratio)
        return Cut(region, self._size, self._size)

    def _steps(self) -> list[Step]:
        """Flip, and RandAugment's operations."""
        flip = "flip" if torch.rand(1).item() < 0.5 else ""
        augment: RandAugment = self._randaugment
        chosen = np.random.choice(len(augment.ops), augment.num_layers)
        return [(flip, 0.0), *(_randaugment_step(augment.ops[number]) for number in chosen)]

    def _erased(self) -> Box | None:
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


def _randaugment_step(operation: AugmentOp) -> Step:
    """What timm's operation draws when it is called."""
    deviation: Any = operation.magnitude_std
    if operation.prob < 1 and random.random() > operation.prob:
        return "", 0.0
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


def seeded(transform: Callable[[Image.Image], torch.Tensor], image: Image.Image, seed: int) -> torch.Tensor:
    """`transform(image)` with all of its random numbers drawn from `seed` (0 to 2**32 - 1, see `sample_seeds`)."""
    with own_randomness():
        seed_sample(seed)
        return transform(image)


def gathered(codes: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> Work | None:
    """The steps of a batch, both (n, steps), joined: each operation once for all samples that have it at that place.

    None where there is nothing to do.
    """
    count, places = codes.shape
    keys = (np.arange(places)[:, None] * len(NAMES) + codes.T).ravel()
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    something = keys % len(NAMES) > 0
    order, keys = order[something], keys[something]
    if not len(order):
        return None
    ends = np.append(np.flatnonzero(np.diff(keys)), len(keys) - 1)
    names = [NAMES[code] for code in (keys[ends] % len(NAMES)).tolist()]
    rows, parameters = order % count, values.T.ravel()[order].astype(np.float32)
    return Work(names, np.diff(ends, prepend=-1).tolist(), torch.from_numpy(rows), torch.from_numpy(parameters))


def erasures(boxes: Sequence[Box | None], seeds: npt.NDArray[np.int64]) -> Erase | None:
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
