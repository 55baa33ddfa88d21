"""Corrupted images in the manner of ImageNet-C, computed as they are read: kinds of corruption at severities 1 to 5.

Hendrycks and Dietterich, 2019, arXiv 1903.12261. An image is corrupted as the model would see it: after it is resized
and cut out, at the model's input size, in 8 bits, before normalisation; ImageNet-C is made so, at 224 px. Parameters
are ImageNet-C's at 224 px and CIFAR-10-C's at 32 px (their code: github.com/hendrycks/robustness), between these two
interpolated on a logarithmic scale of parameter and size, and below 32 px as there; above 224 px lengths in pixels
grow with the size.

What is random is a function of the kind and the image's id alone: the same for every model of one input size, in every
batch and process, at every severity. Images are corrupted one by one, so that not even rounding depends on a batch.

Differences from ImageNet-C: its glass and zoom blur, snow, frost and elastic transform are left out, and its Gaussian
blur is in, instead of defocus; motion blur goes both ways along its line; fog adds up bilinear octaves in place of
diamonds and squares; contrast falls towards the mean grey level; blocks of `pixelate` are the means of their own
pixels; results are not stored as JPEGs of quality 85. So that a higher severity is always more, `saturate` takes
colours towards grey alone, as ImageNet-C's first two severities do, and the last two of `fog` are 2.75 and 3 with
decays 1.6 and 1.5 at 224 px. Absolute figures therefore do not compare with ImageNet-C's.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as transforms

from eval.contract import Corruption
from tt_ray.terminal.errors import UserError, nearest

VERSION = 1
"""Part of features' and protocols' hashes: a change that changes a pixel needs a new one."""
SEVERITIES = (1, 2, 3, 4, 5)
_SMALL, _LARGE = 32, 224
Parameters = tuple[tuple[float, ...], ...]


def gaussian_noise(image: Tensor, generator: Generator, deviation: float) -> Tensor:
    """Adds normal noise. v2.GaussianNoise draws from torch's one generator, which threads would share."""
    return image + deviation * torch.randn(image.shape, generator=generator)


def shot_noise(image: Tensor, generator: Generator, photons: float) -> Tensor:
    """Counts photons, of which white has so many on average."""
    return torch.poisson(image * photons, generator) / photons


def impulse_noise(image: Tensor, generator: Generator, share: float) -> Tensor:
    """Sets a share of all values to 0 or 1."""
    drawn = torch.rand(image.shape, generator=generator)
    return image.masked_fill(drawn < share / 2, 0).masked_fill(drawn >= 1 - share / 2, 1)


def gaussian_blur(image: Tensor, generator: Generator, sigma: float) -> Tensor:
    """Blurs by a Gaussian of this deviation in pixels."""
    width = 2 * min(math.ceil(4 * sigma), image.shape[-1] - 1) + 1
    for shape in ([width, 1], [1, width]):  # as one kernel, it takes many times as long
        image = transforms.gaussian_blur(image, shape, [sigma, sigma])
    return image


def motion_blur(image: Tensor, generator: Generator, reach: float, sigma: float) -> Tensor:
    """Blurs along a line at most 45 degrees from the horizontal, by a Gaussian that is cut off at `reach` pixels."""
    angle = (2 * torch.rand((), generator=generator).item() - 1) * math.pi / 4
    pad = math.ceil(reach)
    steps = torch.arange(-pad, pad + 1, dtype=torch.float32)
    along = math.cos(angle) * steps + math.sin(angle) * steps[:, None]
    across = math.cos(angle) * steps[:, None] - math.sin(angle) * steps
    weights = torch.exp(-((along / sigma) ** 2) / 2) * (1 - across.abs()).clamp(min=0) * (along.abs() <= reach)
    weights /= weights.sum()
    padded, size, blurred = (
        F.pad(image, (pad, pad, pad, pad), mode="replicate"),
        image.shape[-1],
        torch.zeros_like(image),
    )
    for top, left in weights.nonzero().tolist():  # few weights of the square are on the line
        blurred += weights[top, left] * padded[:, top : top + size, left : left + size]
    return blurred


def fog(image: Tensor, generator: Generator, amount: float, decay: float) -> Tensor:
    """Adds clouds, and darkens so that the brightest stay as bright; each finer octave is `decay` times weaker."""
    size = image.shape[-1]
    clouds = torch.zeros(1, 1, size, size)
    for octave in range(math.ceil(math.log2(size)) + 1):
        drawn = 2 * torch.rand(1, 1, 2**octave + 1, 2**octave + 1, generator=generator) - 1
        clouds += decay**-octave * F.interpolate(drawn, size=(size, size), mode="bilinear", align_corners=True)
    clouds = (clouds - clouds.min()) / (clouds.max() - clouds.min())
    brightest = image.max()
    return (image + amount * clouds[0]) * brightest / (brightest + amount)


def brightness(image: Tensor, generator: Generator, added: float) -> Tensor:
    """Adds to the value of HSV. v2.adjust_brightness multiplies instead, which leaves black as it is."""
    value = image.amax(0, keepdim=True)
    lit = (value + added).clamp(max=1)
    return torch.where(value > 0, image * (lit / value), lit)


def contrast(image: Tensor, generator: Generator, factor: float) -> Tensor:
    """Keeps this part of the contrast."""
    return transforms.adjust_contrast(image, factor)


def saturate(image: Tensor, generator: Generator, factor: float) -> Tensor:
    """Keeps this part of the colours' saturation."""
    return transforms.adjust_saturation(image, factor)


def pixelate(image: Tensor, generator: Generator, share: float) -> Tensor:
    """Makes blocks of one colour, their number in a line this share of the size."""
    size = image.shape[-1]
    blocks = max(1, int(size * share))
    block = torch.arange(size) * blocks // size  # of each pixel of a line
    means = F.one_hot(block, blocks).float()
    means /= means.sum(0)
    return (means.T @ image @ means)[:, block][:, :, block]


def jpeg(image: Tensor, generator: Generator, quality: float) -> Tensor:
    """Compresses by JPEG of this quality, in Pillow: torchvision's v2.JPEG is deprecated since 0.29."""
    file = BytesIO()
    Image.fromarray(_eight_bits(image).permute(1, 2, 0).numpy()).save(file, "JPEG", quality=round(quality))
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 255


@dataclass(frozen=True)
class Kind:
    """One kind of corruption."""

    apply: Callable[..., Tensor]
    """Corrupts a float32 image (3, S, S) in [0, 1] by a generator and parameters; values may leave [0, 1]."""
    small: Parameters
    """Parameters at 32 px, by severity."""
    large: Parameters
    """Parameters at 224 px."""
    grows: int = 0
    """1 for lengths in pixels, -1 for shares that make them longer."""


def _each(*values: float) -> Parameters:
    return tuple((value,) for value in values)


KINDS: dict[str, Kind] = {
    "gaussian_noise": Kind(gaussian_noise, _each(0.04, 0.06, 0.08, 0.09, 0.1), _each(0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": Kind(shot_noise, _each(500, 250, 100, 75, 50), _each(60, 25, 12, 5, 3)),
    "impulse_noise": Kind(impulse_noise, _each(0.01, 0.02, 0.03, 0.05, 0.07), _each(0.03, 0.06, 0.09, 0.17, 0.27)),
    "gaussian_blur": Kind(gaussian_blur, _each(0.4, 0.6, 0.7, 0.8, 1), _each(1, 2, 3, 4, 6), grows=1),
    "motion_blur": Kind(
        motion_blur,
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        grows=1,
    ),
    "fog": Kind(
        fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.75, 1.6), (3, 1.5)),
    ),
    "brightness": Kind(brightness, _each(0.05, 0.1, 0.15, 0.2, 0.3), _each(0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Kind(contrast, _each(0.75, 0.5, 0.4, 0.3, 0.15), _each(0.4, 0.3, 0.2, 0.1, 0.05)),
    "saturate": Kind(saturate, _each(0.6, 0.45, 0.3, 0.1, 0), _each(0.6, 0.45, 0.3, 0.1, 0)),
    "pixelate": Kind(pixelate, _each(0.95, 0.9, 0.85, 0.75, 0.65), _each(0.6, 0.5, 0.4, 0.3, 0.25), grows=-1),
    "jpeg": Kind(jpeg, _each(80, 65, 58, 50, 40), _each(25, 18, 15, 10, 7)),
}
"""Kinds by name."""


def parse_corruptions(kinds: Sequence[str], severities: Sequence[int]) -> tuple[Corruption, ...]:
    """Every kind at every severity, kinds in the order of `KINDS`; `all` stands for all of them.

    Raises UserError on kinds that there are not, and severities that are not 1 to 5.
    """
    for kind in kinds:
        if kind not in (*KINDS, "all"):
            raise UserError(f"--corruptions has no kind {kind!r}; {nearest(kind, [*KINDS, 'all'])}")
    for severity in severities:
        if severity not in SEVERITIES:
            raise UserError(f"--severities {severity} must be 1 to 5; images as they are are tested in any case")
    chosen = [kind for kind in KINDS if kind in kinds or "all" in kinds]
    return tuple(Corruption(kind, severity) for kind in chosen for severity in sorted(severities))


def parameters(corruption: Corruption, size: int) -> tuple[float, ...]:
    """Parameters of a corruption of images of `size` x `size` pixels; severity 1 to 5."""
    kind, place = KINDS[corruption.kind], corruption.severity - 1
    part = min(max(math.log(size / _SMALL) / math.log(_LARGE / _SMALL), 0), 1)
    growth = max(size / _LARGE, 1) ** kind.grows
    pairs = zip(kind.small[place], kind.large[place], strict=True)
    between = (small if small == large else small ** (1 - part) * large**part for small, large in pairs)
    return tuple(value * growth for value in between)


def corrupt(image: Tensor, corruption: Corruption, seed: int) -> Tensor:
    """A corrupted image, uint8 (3, S, S) as it was; severity 0 returns the image itself."""
    if not corruption.severity:
        return image
    generator = torch.Generator().manual_seed(seed)
    given = parameters(corruption, image.shape[-1])
    return _eight_bits(KINDS[corruption.kind].apply(image.float() / 255, generator, *given))


def corrupt_all(images: Tensor, ids: Sequence[str], corruption: Corruption) -> Tensor:
    """Corrupted images, uint8 (n, 3, S, S), each by the seed of its id."""
    pairs = zip(images, ids, strict=True)
    return torch.stack([corrupt(image, corruption, seed_of_image(name, corruption.kind)) for image, name in pairs])


def seed_of_image(name: str, kind: str) -> int:
    """32 bits from an image's id and the kind of corruption."""
    return int.from_bytes(hashlib.sha256(f"{kind} {name}".encode()).digest()[:4])


def _eight_bits(image: Tensor) -> Tensor:
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)
