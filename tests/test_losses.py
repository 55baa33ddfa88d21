"""Alignment losses against loops and explicit sums written from the method's table, and what must not change them."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tt_ray import losses
from tt_ray.losses import ALIGNMENT_LOSSES

LEARNED = [name for name, loss in ALIGNMENT_LOSSES.items() if loss.learned]

SHAPES = [(2, 3), (5, 4), (7, 16)]


def _rows(batch: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pred, target = torch.randn(2, batch, dim, generator=generator, dtype=torch.float64)
    return 1.5 * pred, target + 0.1


def _cross_entropy(scores: np.ndarray) -> float:
    """Mean over rows of -log softmax at the diagonal."""
    terms = []
    for i, row in enumerate(scores):
        terms.append(math.log(sum(math.exp(value) for value in row)) - row[i])
    return sum(terms) / len(terms)


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.stack([row / math.sqrt(sum(value**2 for value in row)) for row in rows])


def _naive_clip(p: np.ndarray, e: np.ndarray) -> float:
    scores = np.array([[sum(a * b for a, b in zip(u, v, strict=True)) for v in e] for u in p])
    return (_cross_entropy(scores) + _cross_entropy(scores.T)) / 2


def _cosine(u: np.ndarray, v: np.ndarray) -> float:
    return float(u @ v / math.sqrt((u @ u) * (v @ v)))


def _naive_kl(p: np.ndarray, e: np.ndarray) -> float:
    total = 0.0
    for column in range(p.shape[1]):
        exp_p, exp_e = np.exp(p[:, column]), np.exp(e[:, column])
        for i in range(len(p)):
            q, t = exp_p[i] / exp_p.sum(), exp_e[i] / exp_e.sum()
            total += t * (math.log(t) - math.log(q))
    return total / len(p)


def _naive_dist(p: np.ndarray, e: np.ndarray) -> float:
    sides = []
    for rows in (p, e):
        differences = np.array([[u - v for v in rows] for u in rows])
        differences /= math.sqrt((differences**2).sum())
        sides.append(np.sqrt((differences**2).sum(-1)))
    return math.sqrt(((sides[0] - sides[1]) ** 2).sum())


def _naive_siglip(p: np.ndarray, e: np.ndarray, log_scale: float = math.log(10), bias: float = -10.0) -> float:
    total = 0.0
    for i, u in enumerate(p):
        for j, v in enumerate(e):
            sign = 1 if i == j else -1
            total -= math.log(1 / (1 + math.exp(-sign * (math.exp(log_scale) * _cosine(u, v) + bias))))
    return total / len(p)


def _naive_cosine_kl(p: np.ndarray, e: np.ndarray, t: np.ndarray) -> float:
    """KL over the batch axis, divided by B, of softmax(p e^T / 2) against softmax(t e^T / 2), rows of unit length."""
    sides = [np.array([[_cosine(u, v) / 2 for v in e] for u in rows]) for rows in (p, t)]
    return _naive_kl(*sides)


def _naive_vl2lite(p: np.ndarray, e: np.ndarray, t: np.ndarray) -> float:
    units, total = (_unit(p), _unit(t)), 0.0
    for i in range(len(p)):
        for j in range(len(p)):
            ours, theirs = (math.sqrt(((rows[i] - rows[j]) ** 2).sum()) for rows in units)
            gap = abs(ours - theirs)
            total += gap**2 / 2 if gap < 1 else gap - 0.5
    return 2 * _naive_cosine_kl(p, e, t) + total / len(p) ** 2 / 2


def _naive_borlan(
    p: np.ndarray, e: np.ndarray, y: np.ndarray, means: np.ndarray, variances: np.ndarray, temperature: float = 0.07
) -> float:
    total = 0.0
    for row, label in zip(p, y, strict=True):
        logits = [
            (sum(a * b for a, b in zip(row, m, strict=True)) + 0.5 * sum(row**2 * s / temperature)) / temperature
            for m, s in zip(means, variances, strict=True)
        ]
        # Shares of classes, 1 for a hard label.
        shares = np.eye(len(means))[label] if np.ndim(label) == 0 else label
        highest = max(logits)
        log_sum = highest + math.log(sum(math.exp(value - highest) for value in logits))
        total += sum(share * (log_sum - value) for share, value in zip(shares, logits, strict=True))
        total += 0.5 * sum(row**2 * (shares @ variances) / temperature) / temperature
    return total / len(p)


def extras(name: str, batch: int, dim: int, classes: int = 3) -> tuple[Tensor, ...]:
    """What a loss needs beside pred and target, in double precision."""
    generator = torch.Generator().manual_seed(7)
    known = {
        "means": torch.randn(classes, dim, generator=generator, dtype=torch.float64),
        "variances": torch.rand(classes, dim, generator=generator, dtype=torch.float64),
        "labels": torch.arange(batch) % classes,
        "teacher": torch.randn(batch, dim, generator=generator, dtype=torch.float64),
    }
    return tuple(known[need] for need in ALIGNMENT_LOSSES[name].needs)


def _loss(name: str, pred: Tensor, target: Tensor, *scalars: Tensor, order: Tensor | None = None) -> Tensor:
    """The loss with what it needs, whose rows are in `order`."""
    more = [
        (each if order is None or need not in ("teacher", "labels") else each[order])
        for need, each in zip(ALIGNMENT_LOSSES[name].needs, extras(name, *pred.shape), strict=True)
    ]
    more = [each.to(pred.dtype) if each.is_floating_point() else each for each in more]
    return ALIGNMENT_LOSSES[name](pred, target, *scalars, *more)


NAIVE = {
    "clip": _naive_clip,
    "normclip": lambda p, e: _naive_clip(_unit(p), _unit(e)),
    "infonce": lambda p, e: _cross_entropy(_unit(p) @ _unit(e).T / 0.1),
    "cos": lambda p, e: np.mean([1 - _cosine(u, v) for u, v in zip(p, e, strict=True)]),
    "lncos": lambda p, e: np.mean([-math.log(0.5 * _cosine(u, v) + 0.5 + 1e-12) for u, v in zip(p, e, strict=True)]),
    "l2": lambda p, e: sum((a - b) ** 2 for a, b in zip(p.flat, e.flat, strict=True)) / p.size,
    "kl": _naive_kl,
    "dist": _naive_dist,
    "siglip": _naive_siglip,
    "clip_learned": lambda p, e: _naive_clip(_unit(p) / 0.07, _unit(e)),
    "vl2litetext": lambda p, e: 4 * _naive_cosine_kl(p, e, e),
    "vl2lite": _naive_vl2lite,
    "borlan": _naive_borlan,
}


def test_every_loss_has_its_naive_twin() -> None:
    assert set(NAIVE) == set(ALIGNMENT_LOSSES)


@pytest.mark.parametrize("name", NAIVE)
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_is_that_of_the_table(name: str, shape: tuple[int, int]) -> None:
    pred, target = _rows(*shape)
    more = extras(name, *shape)
    value = ALIGNMENT_LOSSES[name](pred, target, *more)
    assert value.shape == () and value.dtype == torch.float64
    # Default scalars are single precision.
    assert value.item() == pytest.approx(NAIVE[name](*(each.numpy() for each in (pred, target, *more))), rel=1e-6)


@pytest.mark.parametrize(("log_scale", "bias"), [(0.0, 0.0), (1.0, -3.0), (-1.0, 2.0)])
def test_siglip_takes_scale_and_bias(log_scale: float, bias: float) -> None:
    pred, target = _rows(4, 3)
    value = losses.siglip(pred, target, torch.tensor(log_scale), torch.tensor(bias))
    assert value.item() == pytest.approx(_naive_siglip(pred.numpy(), target.numpy(), log_scale, bias), rel=1e-6)


@pytest.mark.parametrize("log_scale", [0.0, 2.0, math.log(100), math.log(100) + 1, 50.0])
def test_learned_scale_is_at_most_100(log_scale: float) -> None:
    pred, target = _rows(4, 3)
    value = losses.clip_learned(pred, target, torch.tensor(log_scale, dtype=torch.float64))
    scale = min(math.exp(log_scale), 100)
    assert value.item() == pytest.approx(_naive_clip(_unit(pred.numpy()) * scale, _unit(target.numpy())), rel=1e-9)


@pytest.mark.parametrize("name", ["clip", "normclip", "infonce"])
def test_similarities_are_divided_by_the_temperature(name: str) -> None:
    pred, target = (each.numpy() for each in _rows(5, 4))
    if name == "clip":
        expected = _naive_clip(pred / 0.3, target)
    elif name == "normclip":
        expected = _naive_clip(_unit(pred) / 0.3, _unit(target))
    else:
        logits = _unit(pred) @ _unit(target).T / 0.3
        expected = np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))
    value = ALIGNMENT_LOSSES[name](*_rows(5, 4), temperature=0.3)
    assert value.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_temperature_starts_where_it_is_told(name: str) -> None:
    assert ALIGNMENT_LOSSES[name].initial_scalars() == ALIGNMENT_LOSSES[name].learned
    own = {"siglip": 0.1, "clip_learned": 0.07}[name]
    assert ALIGNMENT_LOSSES[name].initial_scalars() == pytest.approx(ALIGNMENT_LOSSES[name].initial_scalars(own))
    assert math.exp(-ALIGNMENT_LOSSES[name].initial_scalars(0.5)[0]) == pytest.approx(0.5)
    assert ALIGNMENT_LOSSES["l2"].initial_scalars(0.5) == ()


@pytest.mark.parametrize("name", LEARNED)
def test_learned_scalars_start_at_the_default_and_get_gradients(name: str) -> None:
    pred, target = _rows(4, 3)
    scalars = torch.tensor(ALIGNMENT_LOSSES[name].learned, dtype=torch.float64, requires_grad=True)
    value = ALIGNMENT_LOSSES[name](pred, target, *scalars.unbind())
    assert value.item() == pytest.approx(ALIGNMENT_LOSSES[name](pred, target).item(), rel=1e-6)
    value.backward()
    assert scalars.grad is not None and (scalars.grad != 0).all()


@pytest.mark.parametrize("name", ["normclip", "infonce", "cos", "lncos", "siglip", "clip_learned"])
def test_length_of_rows_does_not_matter(name: str) -> None:
    pred, target = _rows(5, 4)
    lengths = torch.tensor([[0.1], [3.0], [1.0], [20.0], [0.5]], dtype=torch.float64)
    expected = ALIGNMENT_LOSSES[name](pred, target).item()
    assert ALIGNMENT_LOSSES[name](pred * lengths, target * lengths.flip(0)).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["clip", "l2", "kl"])
def test_length_of_rows_matters(name: str) -> None:
    pred, target = _rows(5, 4)
    different = ALIGNMENT_LOSSES[name](2 * pred, target).item()
    assert different != pytest.approx(ALIGNMENT_LOSSES[name](pred, target).item(), rel=1e-3)


def test_dist_knows_neither_scale_nor_shift_nor_rotation() -> None:
    pred, target = _rows(6, 4)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    assert losses.dist(7 * pred @ rotation + 3, target).item() == pytest.approx(losses.dist(pred, target).item())
    assert losses.dist(7 * pred @ rotation + 3, pred).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["l2", "cos", "lncos", "dist", "kl"])
def test_equal_rows_are_the_minimum(name: str) -> None:
    pred, target = _rows(6, 4)
    assert ALIGNMENT_LOSSES[name](target, target).item() == pytest.approx(0, abs=1e-10)
    assert ALIGNMENT_LOSSES[name](pred, target).item() > 0.01


@pytest.mark.parametrize("name", ALIGNMENT_LOSSES)
def test_order_of_the_batch_does_not_matter(name: str) -> None:
    pred, target = _rows(6, 4)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    expected = _loss(name, pred, target).item()
    assert _loss(name, pred[order], target[order], order=order).item() == pytest.approx(expected, rel=1e-9)
    assert _loss(name, pred, target[order], order=order).item() != pytest.approx(expected, rel=1e-6)


def _degenerate(kind: str) -> tuple[Tensor, Tensor]:
    pred, target = (rows.float() for rows in _rows(6, 4))
    if kind == "twin rows":
        pred[1], target[2] = pred[0], target[0]
    elif kind == "zero row":
        pred[0], target[1] = 0, 0
    elif kind == "pred is target":
        pred = target.clone()
    elif kind == "opposite":
        pred = -target
    else:
        pred, target = 100 * pred, 100 * target
    return pred.requires_grad_(), target


@pytest.mark.parametrize("name", ALIGNMENT_LOSSES)
@pytest.mark.parametrize("kind", ["twin rows", "zero row", "pred is target", "opposite", "large"])
def test_gradients_are_finite(name: str, kind: str) -> None:
    pred, target = _degenerate(kind)
    value = _loss(name, pred, target)
    (grad,) = torch.autograd.grad(value, pred)
    assert torch.isfinite(value) and torch.isfinite(grad).all()


@pytest.mark.parametrize("name", ALIGNMENT_LOSSES)
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    pred, target = _rows(4, 3)
    learned = torch.tensor(ALIGNMENT_LOSSES[name].learned, dtype=torch.float64, requires_grad=True)
    inputs = [pred.requires_grad_(), *([learned] if len(learned) else [])]

    def loss(pred: Tensor, *scalars: Tensor) -> Tensor:
        return _loss(name, pred, target, *(scalars[0].unbind() if scalars else ()))

    assert torch.autograd.gradcheck(loss, inputs)


def test_borlan_takes_shares_of_classes() -> None:
    pred, target = _rows(5, 4)
    labels, means, variances = extras("borlan", 5, 4)
    hard = torch.nn.functional.one_hot(labels, 3).double()
    mixed = 0.7 * hard + 0.3 * hard.flip(0)
    for shares in (hard, mixed):
        value = losses.borlan(pred, target, shares, means, variances)
        naive = _naive_borlan(*(each.numpy() for each in (pred, target, shares, means, variances)))
        assert value.item() == pytest.approx(naive, rel=1e-6)


@pytest.mark.parametrize("name", [name for name, loss in ALIGNMENT_LOSSES.items() if loss.per_image])
def test_losses_of_images_by_themselves_are_means_over_parts(name: str) -> None:
    pred, target = _rows(6, 4)
    halves = [_loss(name, pred[rows], target[rows]).item() for rows in (slice(0, 3), slice(3, 6))]
    assert _loss(name, pred, target).item() == pytest.approx(sum(halves) / 2, rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_that_of_the_paper(temperature: float) -> None:
    logits, target = _rows(5, 4)
    total = 0.0
    for ours, theirs in zip(logits.numpy(), target.numpy(), strict=True):
        q, t = (np.exp(row / temperature) / np.exp(row / temperature).sum() for row in (ours, theirs))
        total += sum(t * (np.log(t) - np.log(q)))
    expected = temperature**2 * total / 5
    assert losses.distillation(logits, target, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_distillations_gradient_is_that_of_logits_where_the_temperature_is_high() -> None:
    """Hinton et al., section 2.1: (z - v) / C for logits of mean 0, as T squared undoes the temperature."""
    logits, target = (rows - rows.mean(1, keepdim=True) for rows in _rows(5, 4))
    (grad,) = torch.autograd.grad(losses.distillation(logits.requires_grad_(), target, 1e4), logits)
    torch.testing.assert_close(grad * len(logits), (logits - target).detach() / 4, rtol=1e-3, atol=1e-4)


def test_borlan_adds_the_term_of_the_larger_class_alone_where_it_is_told_to() -> None:
    """As in TextTeacher's code: cross-entropy of shares, and the argmax's variances in the term that is added."""
    pred, target = _rows(5, 4)
    labels, means, variances = extras("borlan", 5, 4)
    hard = torch.nn.functional.one_hot(labels, 3).double()
    shares, T = 0.7 * hard + 0.3 * hard.flip(0), 0.07
    covs = variances / T
    logits = (pred @ means.T + 0.5 * pred.pow(2) @ covs.T) / T
    loss = torch.nn.functional.cross_entropy(logits, shares, reduction="none")
    loss = loss + 0.5 * (pred.pow(2) * covs[shares.argmax(1)]).sum(1) / T
    found = losses.borlan(pred, target, shares, means, variances, argmax=True)
    assert found.item() == pytest.approx(loss.mean().item(), rel=1e-9)
    assert found.item() != pytest.approx(losses.borlan(pred, target, shares, means, variances).item(), rel=1e-3)
    hard_labels = (losses.borlan(pred, target, labels, means, variances, argmax=each) for each in (True, False))
    assert len({round(value.item(), 9) for value in hard_labels}) == 1
