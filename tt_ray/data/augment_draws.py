"""The presets for one image at a time, in two halves: the part of the image to cut out, and what is then done to it.

What is drawn for a sample follows from its seed alone, in the order in which `train_transform` draws: whoever does the
second half (Pillow in a loader, tensors in a loader, a GPU) gets the same numbers.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
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


class Preset(Protocol):
    """A preset; its methods draw from the global generators, seeded by `seed_sample`, and are called in order."""

    in_opencv: bool
    """`pixel_operations` has all of its operations."""
    by_pillow: Callable[[Any], Any]
    """Draws the steps, and does them to the square, an RGB image."""

    def cut(self, width: int, height: int) -> Cut:
        """The sample's part of an image of that size."""
        ...

    def steps(self) -> list[Step]:
        """What to do to the square, as many steps for each sample; NOTHING where there is nothing to do."""
        ...

    def erased(self) -> tuple[int, int, int, int] | None:
        """Top, left, bottom and right of the rectangle to erase."""
        ...


class Drawn(NamedTuple):
    """All that is drawn for a sample."""

    cut: Cut
    steps: list[Step]
    erased: tuple[int, int, int, int] | None


def drawn(preset: Preset, seed: int, size: tuple[int, int]) -> Drawn:
    """What a preset draws for a sample whose image has that width and height; within `own_randomness`."""
    seed_sample(seed)
    return Drawn(preset.cut(*size), preset.steps(), preset.erased())


def preset_of(config: DataConfig) -> Preset:
    """The preset `data.augment`, three_augment or deit."""
    return ThreeAugment(config) if config.augment == "three_augment" else Deit(config)


class ThreeAugment:
    """3-Augment; see `augment.train_transform`."""

    in_opencv = True

    def __init__(self, config: DataConfig) -> None:
        self._size = config.image_size
        _, _, *rest, _ = _steps_of(config)
        self.by_pillow: Callable[[Any], Any] = transforms.Compose(rest)
        self._strength: tuple[float, float] | None = rest[-1].brightness

    def cut(self, width: int, height: int) -> Cut:
        """The resized image, padded by 4 pixels, has the square at a random place."""
        size, short = self._size, min(width, height)
        high, wide = (size if side == short else int(size * side / short) for side in (height, width))
        top, left = (int(torch.randint(side + 2 * _PAD - size + 1, (1,)).item()) - _PAD for side in (high, wide))
        return Cut((0, 0, height, width), high, wide, top, left)

    def steps(self) -> list[Step]:
        """Flip, one of three, and the three parts of the jitter in random order."""
        flip = ("flip", 0.0) if torch.rand(1).item() < 0.5 else NOTHING
        (kind,) = random.choices(_THREE)
        value = random.uniform(0.2, 2.0) if kind == "blur" else _THRESHOLD
        kind = "wide_blur" if kind == "blur" and value >= WIDE_BLUR else kind
        order = torch.randperm(len(_JITTER) + 1).tolist()  # ColorJitter draws a place for the hue as well
        if self._strength is None:
            return [flip, (kind, value)]
        factors = torch.empty(len(_JITTER)).uniform_(*self._strength).tolist()
        return [flip, (kind, value), *((_JITTER[place], factors[place]) for place in order if place < len(_JITTER))]

    def erased(self) -> None:
        """Nothing is."""


class Deit:
    """DeiT's augmentation; see `augment.train_transform`."""

    in_opencv = False  # which rotates with another kernel than Pillow's

    def __init__(self, config: DataConfig) -> None:
        self._size = config.image_size
        steps = _steps_of(config)
        kinds = (RandomResizedCropAndInterpolation, transforms.RandomHorizontalFlip, RandAugment, RandomErasing)
        found: list[Any] = [next(step for step in steps if isinstance(step, kind)) for kind in kinds]
        self._crop, _, self._randaugment, self._erasing = found
        self.by_pillow: Callable[[Any], Any] = transforms.Compose(found[1:3])

    def cut(self, width: int, height: int) -> Cut:
        """A part of random size and proportions, resized to the square."""
        image = torch.empty(3, height, width, device="meta")  # of which the size alone is asked
        region = self._crop.get_params(image, self._crop.scale, self._crop.ratio)
        return Cut(region, self._size, self._size)

    def steps(self) -> list[Step]:
        """Flip, and RandAugment's operations."""
        flip = ("flip", 0.0) if torch.rand(1).item() < 0.5 else NOTHING
        augment: RandAugment = self._randaugment
        chosen = np.random.choice(len(augment.ops), augment.num_layers)
        return [flip, *(_randaugment_step(augment.ops[number]) for number in chosen)]

    def erased(self) -> tuple[int, int, int, int] | None:
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


def gathered(steps: Sequence[list[Step]]) -> tuple[Work, ...]:
    """The steps of a batch's samples, joined: each operation once for all samples that have it at that place."""
    found: dict[tuple[int, str], tuple[list[int], list[float]]] = {}
    for row, each in enumerate(steps):
        for place, (name, value) in enumerate(each):
            if name:
                rows, values = found.setdefault((place, name), ([], []))
                rows.append(row)
                values.append(value)
    if not found:
        return ()
    # Parts of two tensors, which travel between processes as two.
    keys, parts = zip(*sorted(found.items()), strict=True)
    sizes = [len(rows) for rows, _ in parts]
    rows = torch.tensor([row for rows, _ in parts for row in rows]).split(sizes)
    values = torch.tensor([value for _, values in parts for value in values], dtype=torch.float32).split(sizes)
    return tuple(Work(name, *part) for (_, name), *part in zip(keys, rows, values, strict=True))


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
