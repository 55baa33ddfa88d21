"""Similarity, spread and rank of features against plain loops and definitions."""

import math
from typing import Any

import numpy as np
import pytest

from eval.feature_metrics import (
    alignment,
    effective_rank,
    hsic1,
    linear_cka,
    shuffled_batches,
    unbiased_cka,
    uniformity,
)
from tt_ray.terminal.errors import UserError


def _centred(gram: np.ndarray) -> np.ndarray:
    n = len(gram)
    centre = np.eye(n) - 1 / n
    return centre @ gram @ centre


def test_cka_equals_its_definition_by_gram_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.feature_metrics._BLOCK", 7)  # several blocks, the last one shorter
    rng = np.random.default_rng(0)
    x = rng.normal(2, 1, (40, 6)).astype(np.float32)
    y = np.hstack([x[:, :3] @ rng.normal(size=(3, 4)), rng.normal(size=(40, 2))]).astype(np.float32)
    k, l = (_centred(z.astype(np.float64) @ z.T.astype(np.float64)) for z in (x, y))  # noqa: E741
    expected = np.trace(k @ l) / math.sqrt(np.trace(k @ k) * np.trace(l @ l))
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-9)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert linear_cka(x, 3 * x @ turn - 5) == pytest.approx(1, abs=1e-6)
    assert linear_cka(y, x) == pytest.approx(linear_cka(x, y))
    assert math.isnan(linear_cka(x, np.ones((40, 2))))


def _hsic1(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """The mean of h over all ordered choices of four different rows, of which it is the closed form."""
    n, total, count = len(k), 0.0, 0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
                        count += 1
    return total / count


def test_unbiased_hsic_is_the_mean_over_four_rows() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(7, 2))
    assert hsic1(x @ x.T, y @ y.T) == pytest.approx(_hsic1(x @ x.T, y @ y.T), rel=1e-9)


def test_minibatches_take_the_bias_out_of_cka() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 400, 100))
    assert linear_cka(x, y) > 0.15  # independent, but 400 images in 100 dimensions
    assert abs(unbiased_cka(x, y, 100)) < 0.03
    assert unbiased_cka(x, 2 * x, 100) == pytest.approx(1)
    parts = [[z[rows] for rows in shuffled_batches(400, 100)] for z in (x, y)]
    terms = np.array([[hsic1(a @ a.T, b @ b.T), hsic1(a @ a.T, a @ a.T), hsic1(b @ b.T, b @ b.T)]
                      for a, b in zip(*parts, strict=True)]).mean(0)  # fmt: skip
    assert unbiased_cka(x, y, 100) == pytest.approx(terms[0] / math.sqrt(terms[1] * terms[2]), rel=1e-9)


@pytest.mark.parametrize("order", ["by class", "mixed", "backwards"])
def test_the_order_of_rows_does_not_matter(order: str) -> None:
    """Two models that agree on the classes and on little else: rows of one class show nothing of what they share."""
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(8), 100)
    centres = rng.normal(0, 2, (8, 12))
    x, y = (centres[labels] + rng.normal(size=(800, 12)) for _ in range(2))
    rows = {"by class": np.arange(800), "mixed": rng.permutation(800), "backwards": np.arange(800)[::-1]}[order]
    whole = unbiased_cka(x, y, 800)
    assert unbiased_cka(x[rows], y[rows], 100) == pytest.approx(whole, abs=0.02)
    parts = [hsic1(*(z[part] @ z[part].T for z in (x, y))) for part in np.arange(800).reshape(8, 100)]
    assert whole > 0.5 and abs(np.mean(parts)) < 0.1 * hsic1(x @ x.T, y @ y.T), "what consecutive rows would give"


@pytest.mark.parametrize(("count", "batch"), [(800, 100), (21, 7), (5, 256), (1000, 256)])
def test_batches_hold_every_row_once_and_are_drawn_at_random(count: int, batch: int) -> None:
    found = shuffled_batches(count, batch)
    assert sorted(np.concatenate(found)) == list(range(count)) and len(found) == max(1, count // batch)
    assert all(np.all(np.diff(rows) > 0) for rows in found), "files are read forwards"
    assert all(np.array_equal(*pair) for pair in zip(found, shuffled_batches(count, batch), strict=True))
    assert len(found) == 1 or any(rows[-1] - rows[0] >= len(rows) for rows in found)


def test_unbiased_cka_does_not_change_with_rotations_and_scales() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(2, 1, (60, 8))
    y = np.hstack([x[:, :3], rng.normal(size=(60, 3))])
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    assert unbiased_cka(3 * x @ turn, y, 20) == pytest.approx(unbiased_cka(x, y, 20))
    assert unbiased_cka(x, x @ turn, 20) == pytest.approx(1)


def test_minibatches_give_the_hsic_of_all_rows_in_expectation() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(64, 5))
    y = x @ rng.normal(size=(5, 4)) + rng.normal(size=(64, 4))
    k, l = x @ x.T, y @ y.T  # noqa: E741
    orders = [rng.permutation(64).reshape(8, 8) for _ in range(400)]
    found = [np.mean([hsic1(k[np.ix_(rows, rows)], l[np.ix_(rows, rows)]) for rows in order]) for order in orders]
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - hsic1(k, l)) < 4 * error < 0.05 * hsic1(k, l)


def _pairs(x: np.ndarray, labels: np.ndarray) -> tuple[list[float], list[float]]:
    """Squared distances on the unit sphere, of all ordered pairs and of those of one class."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    every, own = [], []
    for i in range(len(x)):
        for j in range(len(x)):
            if i != j:
                every.append(float(np.sum((x[i] - x[j]) ** 2)))
                own += [every[-1]] * bool(labels[i] == labels[j])
    return every, own


def test_alignment_and_uniformity_equal_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.feature_metrics._BLOCK", 7)
    rng = np.random.default_rng(6)
    x, labels = rng.normal(1, 1, (30, 5)).astype(np.float32), rng.integers(0, 4, 30)
    every, own = _pairs(x.astype(np.float64), labels)
    assert alignment(x, labels) == pytest.approx(np.mean(own))
    assert uniformity(x) == pytest.approx(math.log(np.mean([math.exp(-2 * each) for each in every])))
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    scales = rng.uniform(0.1, 9, (30, 1))
    assert alignment(scales * x @ turn, labels) == pytest.approx(alignment(x, labels))
    assert uniformity(scales * x @ turn) == pytest.approx(uniformity(x))


def test_alignment_and_uniformity_at_their_ends() -> None:
    points = np.eye(3)[[0, 0, 1, 1, 2]]
    assert alignment(points, np.array([0, 0, 1, 1, 2])) == pytest.approx(0, abs=1e-12)
    assert alignment(points, np.array([0, 1, 0, 1, 2])) == pytest.approx(2)
    assert math.isnan(alignment(points, np.arange(5)))
    assert uniformity(np.ones((9, 4))) == pytest.approx(0, abs=1e-12)
    assert uniformity(np.random.default_rng(7).normal(size=(300, 2000))) == pytest.approx(-4, abs=0.05)


@pytest.mark.parametrize("call", [linear_cka, unbiased_cka])
def test_cka_wants_the_same_images(call: Any) -> None:
    with pytest.raises(UserError, match="same images, but there are 9 and 8"):
        call(np.ones((9, 2)), np.ones((8, 2)))
    with pytest.raises(UserError, match="at least 4 images"):
        unbiased_cka(np.ones((3, 2)), np.ones((3, 2)))


def test_effective_rank_is_the_entropy_of_singular_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.feature_metrics._BLOCK", 16)
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(50, 8)) * np.geomspace(1, 1e-3, 8)).astype(np.float32)
    values = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    entropy = -sum(value / values.sum() * math.log(value / values.sum()) for value in values)
    assert effective_rank(x) == pytest.approx(math.exp(entropy), rel=1e-6)
    assert effective_rank(np.linalg.qr(rng.normal(size=(50, 8)))[0]) == pytest.approx(8)
    assert effective_rank(np.ones((50, 8))) == pytest.approx(1, abs=1e-3)
    assert math.isnan(effective_rank(np.zeros((5, 2))))
