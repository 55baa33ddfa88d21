"""Alignment losses between the text head's output `pred` (B, D) and caption embeddings `target` (B, D).

A loss is one pure function that returns a scalar, and one row of ALIGNMENT_LOSSES, which the configuration's checks,
the model and the objective read. `text.loss` takes a row's name, or MODULE:NAME of a function or `Loss` of your own.
Formulas: TextTeacher (arXiv 2605.22098) and its code, unless said otherwise.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tt_ray.terminal.errors import UserError, nearest, one_line

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor
else:

    class _Later(ModuleType):
        """A module that is imported when it is first used: commands check `text.loss` without waiting for torch."""

        def __getattr__(self, name: str) -> Any:
            value = getattr(importlib.import_module(self.__name__), name)
            setattr(self, name, value)
            return value

    torch, F = _Later("torch"), _Later("torch.nn.functional")

VL2LITE_TEMPERATURE = 2.0
_BORLAN_TEMPERATURE = 0.07
# Where the learned scalars start: log of the scale, and SigLIP's bias, as in the papers.
SIGLIP_START = (-math.log(0.1), -10.0)
CLIP_START = -math.log(0.07)


@dataclass(frozen=True)
class Loss:
    """A row: a function of `pred`, `target`, the learned scalars and the needs, in this order."""

    function: Callable[..., Tensor]
    contrastive: bool = False
    """Divides similarities by a temperature, which text.temperature sets: by the function's argument of that name,
    or, where scalars are learned, as the start of the first one, the logarithm of its inverse."""
    per_image: bool = False
    """A mean over images, each by itself: workers then need not see one another's images."""
    learned: tuple[float, ...] = ()
    """Initial values of scalars that are learned with the text head."""
    needs: tuple[str, ...] = ()
    """What else it compares with: teacher (B, D), labels (B,) or (B, C), means and variances of classes (C, D)."""

    def __call__(self, pred: Tensor, target: Tensor, *more: Any, **options: Any) -> Tensor:
        return self.function(pred, target, *more, **options)

    def initial_scalars(self, temperature: float = 0.0) -> tuple[float, ...]:
        """Where the learned scalars start, at a temperature or (0) at the loss's own; empty where none is learned."""
        return (-math.log(temperature), *self.learned[1:]) if self.learned and temperature else self.learned


def find_loss(name: str) -> Loss:
    """The loss that `text.loss` names.

    Raises:
        UserError: There is no such row, or MODULE:NAME cannot be imported.
    """
    if name in ALIGNMENT_LOSSES:
        return ALIGNMENT_LOSSES[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(f"text.loss is {name!r}; {nearest(name, ALIGNMENT_LOSSES)}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a user's module raises
        raise UserError(f"text.loss {name} cannot be imported: {one_line(error)}") from None
    return found if isinstance(found, Loss) else Loss(found)


def clip(pred: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of S = pred target^T / T against the diagonal, mean of both directions; rows keep their length."""
    return _symmetric(pred / temperature @ target.T)


def normclip(pred: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """`clip` on rows of unit length."""
    return _symmetric(_cosines(pred, target, temperature))


def infonce(pred: Tensor, target: Tensor, temperature: float = 0.1) -> Tensor:
    """Image-to-text cross-entropy of cosines over the temperature (InfoNCE, arXiv 1807.03748)."""
    return F.cross_entropy(_cosines(pred, target, temperature), _diagonal(pred))


def cos(pred: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - cosine."""
    return (1 - F.cosine_similarity(pred, target)).mean()


def lncos(pred: Tensor, target: Tensor) -> Tensor:
    """Mean of -log(cosine / 2 + 1/2 + 1e-12)."""
    return -torch.log((0.5 * F.cosine_similarity(pred, target) + 0.5).clamp(min=0) + 1e-12).mean()


def l2(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all elements."""
    return F.mse_loss(pred, target)


def kl(pred: Tensor, target: Tensor) -> Tensor:
    """KL divergence from softmax(pred) to softmax(target), both over the batch axis, divided by B."""
    return F.kl_div(pred.log_softmax(0), target.log_softmax(0), reduction="batchmean", log_target=True)


def dist(pred: Tensor, target: Tensor) -> Tensor:
    """Frobenius norm of the difference of the two (B, B) distance matrices, each scaled to unit Frobenius norm."""
    return torch.linalg.matrix_norm(_unit_distances(pred) - _unit_distances(target))


def siglip(
    pred: Tensor, target: Tensor, log_scale: Tensor | float = SIGLIP_START[0], bias: Tensor | float = SIGLIP_START[1]
) -> Tensor:
    """Pairwise sigmoid loss on scaled, shifted cosines, summed over pairs, divided by B (arXiv 2303.15343)."""
    logits = _cosines(pred, target) * torch.as_tensor(log_scale).exp() + bias
    signs = 2 * torch.eye(len(pred), device=pred.device, dtype=pred.dtype) - 1
    return -F.logsigmoid(signs * logits).sum() / len(pred)


def clip_learned(pred: Tensor, target: Tensor, log_scale: Tensor | float = CLIP_START) -> Tensor:
    """`normclip` with an inverse temperature exp(log_scale), at most 100 (CLIP, arXiv 2103.00020)."""
    scale = torch.as_tensor(log_scale).exp().clamp(max=100)
    return _symmetric(_cosines(pred, target) * scale)


def vl2litetext(pred: Tensor, target: Tensor) -> Tensor:
    """T² times `kl` of cosines over T = 2: those of pred and target towards those among the targets (VL2Lite)."""
    return VL2LITE_TEMPERATURE**2 * _cosine_kl(pred, target, target)


def vl2lite(pred: Tensor, target: Tensor, teacher: Tensor) -> Tensor:
    """Text target and the embedding `teacher` (B, D) of a vision teacher that shares its space (VL2Lite).

    T²/2 times `kl` of cosines over T = 2, of pred and target towards those of teacher and target; and half the mean
    smooth L1 difference of the (B, B) distances among unit rows of pred and of teacher.
    """
    pairs = F.smooth_l1_loss(_distances(F.normalize(pred, dim=1)), _distances(F.normalize(teacher, dim=1)))
    return (VL2LITE_TEMPERATURE**2 * _cosine_kl(pred, target, teacher) + pairs) / 2


def borlan(
    pred: Tensor, target: Tensor, labels: Tensor, means: Tensor, variances: Tensor, argmax: bool = False
) -> Tensor:
    """Cross-entropy towards a Gaussian of text for each class, T = 0.07 (BorLan); does not look at `target`.

    Logits are (p·m_c + p²·s_c / 2T) / T; the mean of p²·s_y / 2T² is added.

    Args:
        labels: class numbers (B,), or shares of classes (B, C).
        means, variances: m and s of the targets of each class, (C, D).
        argmax: whether that mean is of the class with the largest share alone, as in TextTeacher's code, or of all.
    """
    spread = pred.square() @ variances.T / (2 * _BORLAN_TEMPERATURE)
    shares = labels if labels.ndim == 2 else F.one_hot(labels, len(means)).to(pred.dtype)
    added = F.one_hot(shares.argmax(1), len(means)).to(pred.dtype) if argmax else shares
    own = (added * spread).sum(1).mean() / _BORLAN_TEMPERATURE
    return F.cross_entropy((pred @ means.T + spread) / _BORLAN_TEMPERATURE, shares) + own


def distillation(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T² times the mean KL divergence from softmax(logits / T) to softmax(target / T), (B, C) (arXiv 1503.02531)."""
    ours, theirs = (side.div(temperature).log_softmax(1) for side in (logits, target))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


ALIGNMENT_LOSSES: dict[str, Loss] = {
    "clip": Loss(clip, contrastive=True),
    "normclip": Loss(normclip, contrastive=True),
    "infonce": Loss(infonce, contrastive=True),
    "cos": Loss(cos, per_image=True),
    "lncos": Loss(lncos, per_image=True),
    "l2": Loss(l2, per_image=True),
    "kl": Loss(kl),
    "dist": Loss(dist),
    "siglip": Loss(siglip, contrastive=True, learned=SIGLIP_START),
    "clip_learned": Loss(clip_learned, contrastive=True, learned=(CLIP_START,)),
    "vl2litetext": Loss(vl2litetext),
    "vl2lite": Loss(vl2lite, needs=("teacher",)),
    "borlan": Loss(borlan, per_image=True, needs=("labels", "means", "variances")),
}


def _diagonal(pred: Tensor) -> Tensor:
    return torch.arange(len(pred), device=pred.device)


def _symmetric(logits: Tensor) -> Tensor:
    matches = _diagonal(logits)
    return (F.cross_entropy(logits, matches) + F.cross_entropy(logits.T, matches)) / 2


def _cosines(pred: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    # Rows are divided, and not the (B, B) products, which for a large batch are far more.
    return F.normalize(pred, dim=1) / temperature @ F.normalize(target, dim=1).T


def _cosine_kl(pred: Tensor, target: Tensor, teacher: Tensor) -> Tensor:
    return kl(*(_cosines(side, target) / VL2LITE_TEMPERATURE for side in (pred, teacher)))


def _distances(rows: Tensor) -> Tensor:
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


def _unit_distances(rows: Tensor) -> Tensor:
    # The official code divides the (B, B, D) differences by their norm; the norm of the distances is that same number.
    distances = _distances(rows)
    return distances / torch.linalg.matrix_norm(distances)
