"""Classification plus weighted alignment, with named parts: TextTeacher's total loss (arXiv 2605.22098)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tt_ray.config import Config
from tt_ray.losses import ALIGNMENT_LOSSES
from tt_ray.model import Outputs
from tt_ray.parallel import gather_rows, sum_over_workers, world_size

PARTS = ("loss", "loss_cls", "loss_text", "balance")


class Objective(NamedTuple):
    """L = lambda w L_text + (1 - lambda) L_cls, with w = |dL_cls/dz| / |dL_text/dz| at the features z."""

    loss: str
    balance: bool
    gather: bool
    label_smoothing: float
    eps: float
    shares: tuple[int, ...] = ()
    """Images of each worker in a step; empty where all have as many."""

    @classmethod
    def of(cls, config: Config) -> "Objective":
        text, optim = config.text, config.optim
        return cls(text.loss, text.balance, text.negatives == "global", optim.label_smoothing, optim.eps)

    def __call__(self, outputs: Outputs, labels: Tensor, text: Tensor | None, weight: float) -> tuple[Tensor, Tensor]:
        """The total loss and its detached parts, in the order of PARTS, shape (4,). Nothing waits for the device.

        Args:
            outputs: of the model; `features` must take part in the graph of `logits` and `text`.
            labels: class numbers (B,), or shares of classes (B, C).
            text: normalised embeddings (B, D), or None without a text head.
            weight: lambda.
        """
        loss_cls = self._classification(outputs.logits, labels) * self._part(len(labels))
        if outputs.text is None or text is None:
            return loss_cls, _parts(loss_cls, loss_cls, None, None)
        if weight == 0:
            # A weight that fell to 0: the head gets zero gradients, which DDP waits for, and the rest is the baseline.
            # Times 0 before the sum, which overflows in half precision.
            idle = sum((0 * root).sum() for root in (outputs.text, outputs.scalars) if root is not None)
            return loss_cls + idle, _parts(loss_cls, loss_cls, None, None)
        loss_text = self._alignment(outputs, text)
        ratio = self._ratio(loss_cls, loss_text, outputs.features) if self.balance else torch.ones_like(loss_cls)
        total = weight * ratio * loss_text + (1 - weight) * loss_cls
        return total, _parts(total, loss_cls, loss_text, ratio)

    def _classification(self, logits: Tensor, labels: Tensor) -> Tensor:
        # Mixed labels are smoothed where they are mixed.
        smoothing = self.label_smoothing if labels.ndim == 1 else 0.0
        return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)

    def _alignment(self, outputs: Outputs, text: Tensor) -> Tensor:
        assert outputs.text is not None
        pred = outputs.text.float()
        part = 1.0 if self.gather else self._part(len(pred))
        if self.gather:
            pred, text = gather_rows(pred, self.shares), gather_rows(text, self.shares)
        scalars = () if outputs.scalars is None else outputs.scalars.unbind()
        return ALIGNMENT_LOSSES[self.loss](pred, text, *scalars) * part

    def _part(self, rows: int) -> float:
        """What a worker's mean counts, so that the mean over workers is that over images."""
        return rows * len(self.shares) / sum(self.shares) if self.shares else 1.0

    def _ratio(self, loss_cls: Tensor, loss_text: Tensor, features: Tensor) -> Tensor:
        # Gradients of means shrink with the batch and would vanish in half precision: take them of sums instead.
        rows = sum(self.shares) or len(features) * world_size()
        losses = (loss_cls, loss_text)
        grads = [torch.autograd.grad(loss * rows, features, retain_graph=True)[0].float() for loss in losses]
        squares = sum_over_workers(torch.stack([grad.square().sum() for grad in grads]))
        # Each worker's gradient is `world` times its share of the global loss's (see gather_rows).
        norm_cls, norm_text = (squares.sqrt() / (rows * world_size())).unbind()
        return (norm_cls + self.eps) / (norm_text + self.eps)


def _parts(total: Tensor, loss_cls: Tensor, loss_text: Tensor | None, ratio: Tensor | None) -> Tensor:
    zero = torch.zeros_like(loss_cls)
    parts = (total, loss_cls, zero if loss_text is None else loss_text, zero if ratio is None else ratio)
    return torch.stack([part.detach() for part in parts])
