"""Alignment losses between the text head's output `pred` (B, D) and caption embeddings `target` (B, D).

All are pure functions that give a scalar. Formulas: TextTeacher (arXiv 2605.22098) and its code, unless said otherwise.
Some take more: `siglip` and `clip_learned` scalars that are learned with the text head (LEARNED_SCALARS), `borlan` and
`vl2lite` what the batch and the data know (NEEDS). `distillation` compares logits, and is none of them.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

AlignmentLoss = Callable[..., Tensor]
# Of the contrastive losses, unless text.temperature says otherwise; learned ones start there.
TEMPERATURES = {"clip": 1.0, "normclip": 1.0, "infonce": 0.1, "siglip": 0.1, "clip_learned": 0.07}
_VL2LITE_TEMPERATURE = 2.0
_BORLAN_TEMPERATURE = 0.07
# Where the learned scalars start: log of the scale, and SigLIP's bias, as in the papers.
_SIGLIP = (-math.log(TEMPERATURES["siglip"]), -10.0)
_CLIP = -math.log(TEMPERATURES["clip_learned"])


def clip(pred: Tensor, target: Tensor, temperature: float = TEMPERATURES["clip"]) -> Tensor:
    """Cross-entropy of S = pred target^T / T against the diagonal, mean of both directions; rows keep their length."""
    return _symmetric(pred / temperature @ target.T)


def normclip(pred: Tensor, target: Tensor, temperature: float = TEMPERATURES["normclip"]) -> Tensor:
    """`clip` on rows of unit length."""
    return _symmetric(_cosines(pred, target, temperature))


def infonce(pred: Tensor, target: Tensor, temperature: float = TEMPERATURES["infonce"]) -> Tensor:
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
    pred: Tensor, target: Tensor, log_scale: Tensor | float = _SIGLIP[0], bias: Tensor | float = _SIGLIP[1]
) -> Tensor:
    """Pairwise sigmoid loss on scaled, shifted cosines, summed over pairs, divided by B (arXiv 2303.15343)."""
    logits = _cosines(pred, target) * torch.as_tensor(log_scale).exp() + bias
    signs = 2 * torch.eye(len(pred), device=pred.device, dtype=pred.dtype) - 1
    return -F.logsigmoid(signs * logits).sum() / len(pred)


def clip_learned(pred: Tensor, target: Tensor, log_scale: Tensor | float = _CLIP) -> Tensor:
    """`normclip` with an inverse temperature exp(log_scale), at most 100 (CLIP, arXiv 2103.00020)."""
    scale = torch.as_tensor(log_scale).exp().clamp(max=100)
    return _symmetric(_cosines(pred, target) * scale)


def vl2litetext(pred: Tensor, target: Tensor) -> Tensor:
    """T² times `kl` of cosines over T = 2: those of pred and target towards those among the targets (VL2Lite)."""
    return _VL2LITE_TEMPERATURE**2 * _cosine_kl(pred, target, target)


def vl2lite(pred: Tensor, target: Tensor, teacher: Tensor) -> Tensor:
    """Text target and the embedding `teacher` (B, D) of a vision teacher that shares its space (VL2Lite).

    T²/2 times `kl` of cosines over T = 2, of pred and target towards those of teacher and target; and half the mean
    smooth L1 difference of the (B, B) distances among unit rows of pred and of teacher.
    """
    pairs = F.smooth_l1_loss(_distances(F.normalize(pred, dim=1)), _distances(F.normalize(teacher, dim=1)))
    return (_VL2LITE_TEMPERATURE**2 * _cosine_kl(pred, target, teacher) + pairs) / 2


def borlan(pred: Tensor, target: Tensor, labels: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """Cross-entropy towards a Gaussian of text for each class, T = 0.07 (BorLan); does not look at `target`.

    Logits are (p·m_c + p²·s_c / 2T) / T; the mean of p²·s_y / 2T² is added.

    Args:
        labels: class numbers (B,), or shares of classes (B, C).
        means, variances: m and s of the targets of each class, (C, D).
    """
    spread = pred.square() @ variances.T / (2 * _BORLAN_TEMPERATURE)
    shares = labels if labels.ndim == 2 else F.one_hot(labels, len(means)).to(pred.dtype)
    own = (shares * spread).sum(1).mean() / _BORLAN_TEMPERATURE
    return F.cross_entropy((pred @ means.T + spread) / _BORLAN_TEMPERATURE, shares) + own


def distillation(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T² times the mean KL divergence from softmax(logits / T) to softmax(target / T), (B, C) (arXiv 1503.02531)."""
    ours, theirs = (side.div(temperature).log_softmax(1) for side in (logits, target))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


ALIGNMENT_LOSSES: dict[str, AlignmentLoss] = {
    "clip": clip,
    "normclip": normclip,
    "infonce": infonce,
    "cos": cos,
    "lncos": lncos,
    "l2": l2,
    "kl": kl,
    "dist": dist,
    "siglip": siglip,
    "clip_learned": clip_learned,
    "vl2litetext": vl2litetext,
    "vl2lite": vl2lite,
    "borlan": borlan,
}
# Initial values of the arguments that follow (pred, target), in order.
LEARNED_SCALARS: dict[str, tuple[float, ...]] = {"siglip": _SIGLIP, "clip_learned": (_CLIP,)}
# Other arguments that follow (pred, target), by name.
NEEDS: dict[str, tuple[str, ...]] = {"vl2lite": ("teacher",), "borlan": ("labels", "means", "variances")}
# Means over images, each by itself: the mean over workers is that over the batch.
PER_IMAGE = ("cos", "lncos", "l2", "borlan")


def initial_scalars(loss: str, temperature: float = 0.0) -> tuple[float, ...]:
    """Where a loss's learned scalars start, at a temperature or (0) at its own; empty where it learns none."""
    scalars = LEARNED_SCALARS.get(loss, ())
    return (-math.log(temperature), *scalars[1:]) if scalars and temperature else scalars


def _diagonal(pred: Tensor) -> Tensor:
    return torch.arange(len(pred), device=pred.device)


def _symmetric(logits: Tensor) -> Tensor:
    matches = _diagonal(logits)
    return (F.cross_entropy(logits, matches) + F.cross_entropy(logits.T, matches)) / 2


def _cosines(pred: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    # Rows are divided, and not the (B, B) products, which for a large batch are far more.
    return F.normalize(pred, dim=1) / temperature @ F.normalize(target, dim=1).T


def _cosine_kl(pred: Tensor, target: Tensor, teacher: Tensor) -> Tensor:
    return kl(*(_cosines(side, target) / _VL2LITE_TEMPERATURE for side in (pred, teacher)))


def _distances(rows: Tensor) -> Tensor:
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


def _unit_distances(rows: Tensor) -> Tensor:
    # The official code divides the (B, B, D) differences by their norm; the norm of the distances is that same number.
    distances = _distances(rows)
    return distances / torch.linalg.matrix_norm(distances)
