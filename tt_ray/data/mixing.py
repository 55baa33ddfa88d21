"""Mixup and cutmix of images, labels and text targets with one coefficient (arXiv 2605.22098)."""

import numpy as np
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from tt_ray.config import Config
from tt_ray.stateless_random import seed_of

_MIXING_SEED = 3


class TextMixup(Mixup):
    """timm's Mixup on a batch and its flip, drawn from (seed, step) alone, with text targets mixed likewise."""

    def mix(
        self, images: Tensor, labels: Tensor, text: Tensor | None, seed: int, step: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mixes `images` (B, 3, H, W) in place, `labels` (B,) to (B, C), `text` (B, D); B must be even.

        Every worker draws the same coefficient and box. Cutmix boxes lie anywhere, so the text coefficient is the
        share of pixels, as for labels. Pairs that are not labelled (-1) get shares of 0; an image and its partner are
        both labelled, or neither (see Order).
        """
        np.random.seed(seed_of(seed, _MIXING_SEED, step))
        share = float(self._mix_batch(images))
        mixed = mixup_target(labels.clamp(min=0), self.num_classes, share, self.label_smoothing)
        mixed *= (labels >= 0)[:, None]
        if text is not None and share != 1:
            text = text * share + text.flip(0) * (1 - share)
        return images, mixed, text


def build_mixing(config: Config, num_classes: int) -> TextMixup | None:
    """None when both coefficients are 0."""
    data = config.data
    if not (data.mixup or data.cutmix):
        return None
    smoothing = config.optim.label_smoothing
    return TextMixup(data.mixup, data.cutmix, label_smoothing=smoothing, num_classes=num_classes)
