"""Mixup and cutmix of images, labels and text targets with one coefficient (arXiv 2605.22098)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from timm.data.mixup import mixup_target
from torch import Tensor

from tt_ray.config import Config
from tt_ray.stateless_random import seed_of

_MIXING_SEED = 3


class _Draw(NamedTuple):
    """How a batch is mixed with its flip."""

    share: float
    """Share of each image that is its own."""
    box: tuple[slice, slice] | None = None
    """Rows and columns that cutmix takes from the partner; None blends whole images."""


@dataclass(frozen=True)
class Mixing:
    """timm's Mixup of a batch and its flip, bit for bit, drawn from (seed, step) alone, with text mixed likewise."""

    mixup: float
    """Parameter of mixup's Beta distribution; 0 is off."""
    cutmix: float
    """The same of cutmix; where both are on, each step tosses a coin."""
    label_smoothing: float
    classes: int
    per_worker: bool = False
    """Each of several workers draws a coefficient and a box of its own, from (seed, step, its number)."""

    def mix(
        self,
        images: Tensor,
        labels: Tensor,
        text: Tensor | None,
        seed: int,
        step: int,
        shares: Sequence[int] = (),
        rank: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mixes `images` (B, 3, H, W) in place, `labels` (B,) to (B, C), `text` (B, D); B must be even.

        Every worker draws the same coefficient and box, unless `per_worker`. Cutmix boxes lie anywhere, so the text
        coefficient is the share of pixels, as for labels. Pairs that are not labelled (-1) get shares of 0; an image
        and its partner are both labelled, or neither (see Order). `text` may be that of all workers in rank order,
        who have `shares` of the images: each mixes its own. `rank` is this worker's number among them.
        """
        own = self.per_worker and len(shares) > 1
        size = (images.shape[-2], images.shape[-1])
        workers = [(number,) for number in range(len(shares))] if own else [()]
        draws = [self._draw(size, seed, step, *worker) for worker in workers]
        draw = draws[rank if own else 0]
        _mix_images(images, draw)
        mixed = mixup_target(labels.clamp(min=0), self.classes, draw.share, self.label_smoothing)
        mixed *= (labels >= 0)[:, None]
        if text is None:
            return images, mixed, text
        if len(text) == len(images):
            return images, mixed, _mix_text(text, draw.share)
        parts = zip(text.split(list(shares)), draws if own else [draw] * len(shares), strict=True)
        return images, mixed, torch.cat([_mix_text(part, each.share) for part, each in parts])

    def _draw(self, size: tuple[int, int], seed: int, step: int, *worker: int) -> _Draw:
        """Draws for images of a size. The order of draws is timm's."""
        random = np.random.RandomState(seed_of(seed, _MIXING_SEED, step, *worker))
        random.rand()  # timm's toss of whether to mix at all
        cuts = random.rand() < 0.5 if self.mixup and self.cutmix else bool(self.cutmix)
        alpha = self.cutmix if cuts else self.mixup
        share = float(random.beta(alpha, alpha))
        if share == 1 or not cuts:
            return _Draw(share)
        (top, bottom), (left, right) = (_cut(side, share, random) for side in size)
        lost = (bottom - top) * (right - left) / (size[0] * size[1])
        return _Draw(1 - lost, (slice(top, bottom), slice(left, right)))


def build_mixing(config: Config, num_classes: int) -> Mixing | None:
    """None when both coefficients are 0."""
    data = config.data
    if not (data.mixup or data.cutmix):
        return None
    per_worker = config.text.scope == "worker"
    return Mixing(data.mixup, data.cutmix, config.optim.label_smoothing, num_classes, per_worker)


def _mix_images(images: Tensor, draw: _Draw) -> None:
    """Mixes images (B, 3, H, W) with their flip, in place."""
    if draw.box is not None:
        rows, columns = draw.box
        images[:, :, rows, columns] = images.flip(0)[:, :, rows, columns]
    elif draw.share != 1:
        partners = images.flip(0).mul_(1 - draw.share)
        images.mul_(draw.share).add_(partners)


def _mix_text(text: Tensor, share: float) -> Tensor:
    return text if share == 1 else text * share + text.flip(0) * (1 - share)


def _cut(size: int, share: float, random: np.random.RandomState) -> tuple[int, int]:
    """Start and end of a cut of sqrt(1 - share) of `size` around a random centre; what lies outside is lost."""
    length, centre = int(size * np.sqrt(1 - share)), random.randint(0, size)
    return max(centre - length // 2, 0), min(centre + (length + 1) // 2, size)
