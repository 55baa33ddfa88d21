"""Mixup and cutmix of images, labels and text targets with one coefficient (arXiv 2605.22098)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from timm.data.mixup import mixup_target
from torch import Tensor

from tt_ray.config import Config
from tt_ray.stateless_random import seed_of

_MIXING_SEED = 3


@dataclass(frozen=True)
class Mixing:
    """timm's Mixup of a batch and its flip, bit for bit, drawn from (seed, step) alone, with text mixed likewise."""

    mixup: float
    """Parameter of mixup's Beta distribution; 0 is off."""
    cutmix: float
    """The same of cutmix; where both are on, each step tosses a coin."""
    label_smoothing: float
    classes: int

    def mix(
        self,
        images: Tensor,
        labels: Tensor,
        text: Tensor | None,
        seed: int,
        step: int,
        shares: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mixes `images` (B, 3, H, W) in place, `labels` (B,) to (B, C), `text` (B, D); B must be even.

        Every worker draws the same coefficient and box. Cutmix boxes lie anywhere, so the text coefficient is the
        share of pixels, as for labels. Pairs that are not labelled (-1) get shares of 0; an image and its partner are
        both labelled, or neither (see Order). `text` may be that of all workers in rank order,
        who have `shares` of the images: each mixes its own.
        """
        share = self._mix_images(images, np.random.RandomState(seed_of(seed, _MIXING_SEED, step)))
        mixed = mixup_target(labels.clamp(min=0), self.classes, share, self.label_smoothing)
        mixed *= (labels >= 0)[:, None]
        if text is not None and share != 1:
            parts = [text] if len(text) == len(images) else text.split(list(shares))
            text = text * share + torch.cat([part.flip(0) for part in parts]) * (1 - share)
        return images, mixed, text

    def _mix_images(self, images: Tensor, random: np.random.RandomState) -> float:
        """Mixes in place; returns the share of each image that is its own. The order of draws is timm's."""
        random.rand()  # timm's toss of whether to mix at all
        cuts = random.rand() < 0.5 if self.mixup and self.cutmix else bool(self.cutmix)
        alpha = self.cutmix if cuts else self.mixup
        share = float(random.beta(alpha, alpha))
        if share == 1:
            return share
        if not cuts:
            partners = images.flip(0).mul_(1 - share)
            images.mul_(share).add_(partners)
            return share
        height, width = images.shape[-2:]
        (top, bottom), (left, right) = (_cut(size, share, random) for size in (height, width))
        images[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
        return 1 - (bottom - top) * (right - left) / (height * width)


def build_mixing(config: Config, num_classes: int) -> Mixing | None:
    """None when both coefficients are 0."""
    data = config.data
    if not (data.mixup or data.cutmix):
        return None
    return Mixing(data.mixup, data.cutmix, config.optim.label_smoothing, num_classes)


def _cut(size: int, share: float, random: np.random.RandomState) -> tuple[int, int]:
    """Start and end of a cut of sqrt(1 - share) of `size` around a random centre; what lies outside is lost."""
    length, centre = int(size * np.sqrt(1 - share)), random.randint(0, size)
    return max(centre - length // 2, 0), min(centre + (length + 1) // 2, size)
