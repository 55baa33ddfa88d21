"""Losses of a global batch, of which each worker computes the rows of its own images: b x B products, never B x B.

Each function is the one of its name in tt_ray/losses.py, of the worker's own rows of `pred`, `target` and what else is
compared with. It returns the loss of the whole batch on every worker, with the gradient at the worker's own rows times
the number of workers, as `gather_rows` does. Softmaxes over the batch exchange two numbers for each column, in place of
the columns themselves; targets have no gradient, and pairs of features are symmetric, so no gradient is sent back.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tt_ray import losses
from tt_ray.training.collectives import all_sum, gather_rows, log_softmax_over_workers, rank, world_size


@dataclass(frozen=True)
class Part:
    """This worker's part of a global batch."""

    shares: tuple[int, ...]
    """Images of each worker, in rank order."""
    targets: Tensor | None = None
    """Targets of all images, (B, D), in rank order, where they have been looked up; None gathers them."""

    @property
    def size(self) -> int:
        """B, images of the global batch."""
        return sum(self.shares)

    @property
    def first(self) -> int:
        """The place of this worker's first image."""
        return sum(self.shares[: rank()])

    def all_targets(self, own: Tensor) -> Tensor:
        """Targets (B, D) of all images, of which `own` (b, D) are this worker's."""
        return gather_rows(own, self.shares) if self.targets is None else self.targets


class _WithGradient(torch.autograd.Function):
    """A loss, with its gradient computed at once.

    The balance and the total both go back through it: they share one pass and its exchanges, and the b x B products are
    freed before the backward pass begins.
    """

    @staticmethod
    def forward(ctx: Any, loss: Callable[..., Tensor], *given: Tensor) -> Tensor:
        with torch.enable_grad():
            leaves = [each.detach().requires_grad_() for each in given]
            value = loss(*leaves)
            ctx.save_for_backward(*torch.autograd.grad(value, leaves))
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(grads[0] * each for each in ctx.saved_tensors)


def loss_by_rows(
    loss: losses.Loss,
    part: Part,
    pred: Tensor,
    target: Tensor,
    scalars: tuple[Tensor, ...],
    *needs: Any,
    **options: Any,
) -> Tensor:
    """The loss of the global batch, which must be one of BY_ROWS, from this worker's rows of `pred` and `target`."""
    function = BY_ROWS[loss.function]

    def of(pred: Tensor, *scalars: Tensor) -> Tensor:
        return function(part, pred, target, *scalars, *needs, **options)

    value = _WithGradient.apply(of, pred, *scalars) if torch.is_grad_enabled() else of(pred, *scalars)
    assert isinstance(value, Tensor)
    return value


def clip(part: Part, pred: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Rows of S = pred target^T / T against the diagonal, and its columns."""
    return _symmetric(part, pred / temperature @ part.all_targets(target).T)


def normclip(part: Part, pred: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """`clip` on rows of unit length."""
    return _symmetric(part, _cosines(part, pred, target, temperature))


def infonce(part: Part, pred: Tensor, target: Tensor, temperature: float = 0.1) -> Tensor:
    """Rows alone."""
    return all_sum(_rows(part, _cosines(part, pred, target, temperature))) / part.size


def clip_learned(part: Part, pred: Tensor, target: Tensor, log_scale: Tensor | float = losses.CLIP_START) -> Tensor:
    """`normclip` with a learned inverse temperature, at most 100."""
    return _symmetric(part, _cosines(part, pred, target) * torch.as_tensor(log_scale).exp().clamp(max=100))


def siglip(
    part: Part,
    pred: Tensor,
    target: Tensor,
    log_scale: Tensor | float = losses.SIGLIP_START[0],
    bias: Tensor | float = losses.SIGLIP_START[1],
) -> Tensor:
    """Pairs of the worker's own images."""
    logits = _cosines(part, pred, target) * torch.as_tensor(log_scale).exp() + bias
    signs = torch.full_like(logits, -1)
    signs.diagonal(part.first).fill_(1)
    return all_sum(-F.logsigmoid(signs * logits).sum()) / part.size


def kl(part: Part, pred: Tensor, target: Tensor) -> Tensor:
    """Softmaxes over the batch axis; no product is needed."""
    ours, theirs = (log_softmax_over_workers(rows) for rows in (pred, target))
    return all_sum(F.kl_div(ours, theirs, reduction="sum", log_target=True)) / part.size


def dist(part: Part, pred: Tensor, target: Tensor) -> Tensor:
    """Rows of both distance matrices."""
    ours, theirs = (
        distances / _norm(distances)
        for distances in (_distances(part, pred), torch.cdist(target, part.all_targets(target), compute_mode=_EXACT))
    )
    return _norm(ours - theirs)


def vl2litetext(part: Part, pred: Tensor, target: Tensor) -> Tensor:
    """`kl` of rows of cosines."""
    return losses.VL2LITE_TEMPERATURE**2 * _cosine_kl(part, pred, target, target)


def vl2lite(part: Part, pred: Tensor, target: Tensor, teacher: Tensor) -> Tensor:
    """`kl` of rows of cosines, and rows of both distance matrices."""
    ours, theirs = (_distances(part, F.normalize(rows, dim=1)) for rows in (pred, teacher))
    pairs = all_sum(F.smooth_l1_loss(ours, theirs, reduction="sum")) / part.size**2
    return (losses.VL2LITE_TEMPERATURE**2 * _cosine_kl(part, pred, target, teacher) + pairs) / 2


BY_ROWS: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    losses.clip: clip,
    losses.normclip: normclip,
    losses.infonce: infonce,
    losses.clip_learned: clip_learned,
    losses.siglip: siglip,
    losses.kl: kl,
    losses.dist: dist,
    losses.vl2litetext: vl2litetext,
    losses.vl2lite: vl2lite,
}
"""By the function of the whole batch. A loss that is not here is computed from gathered rows, on every worker."""

_EXACT = "donot_use_mm_for_euclid_dist"


def _rows(part: Part, logits: Tensor) -> Tensor:
    """The sum of cross-entropies of own images among all captions, (b, B)."""
    matches = torch.arange(part.first, part.first + len(logits), device=logits.device)
    return F.cross_entropy(logits, matches, reduction="sum")


def _symmetric(part: Part, logits: Tensor) -> Tensor:
    # Own captions among all images: of the columns' softmax this worker has their entries at its own images.
    columns = -log_softmax_over_workers(logits).diagonal(part.first).sum()
    return all_sum(_rows(part, logits) + columns) / (2 * part.size)


def _cosines(part: Part, pred: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    targets = F.normalize(part.all_targets(target), dim=1)
    return F.normalize(pred, dim=1) / temperature @ targets.T


def _cosine_kl(part: Part, pred: Tensor, target: Tensor, teacher: Tensor) -> Tensor:
    targets = replace(part, targets=part.all_targets(target))  # once for both
    ours, theirs = (_cosines(targets, side, target, losses.VL2LITE_TEMPERATURE) for side in (pred, teacher))
    return kl(part, ours, theirs)


def _distances(part: Part, rows: Tensor) -> Tensor:
    """Distances (b, B) of own rows (b, D) to all workers', with the gradient of the whole matrix at own rows.

    The matrix is symmetric and so is every use of it here: what a row's gradient lacks, as others' column, is what it
    has as a row, hence twice the gradient and no other worker's.
    """
    twice = 2 * rows - rows.detach()
    return torch.cdist(twice, gather_rows(rows.detach(), part.shares), compute_mode=_EXACT)


def _norm(own: Tensor) -> Tensor:
    """The Frobenius norm of all workers' rows of a matrix: the norm of their norms, whose gradient at 0 is 0."""
    place = torch.zeros(world_size(), device=own.device, dtype=own.dtype)
    place[rank()] = 1
    return torch.linalg.vector_norm(all_sum(place * torch.linalg.matrix_norm(own)))
