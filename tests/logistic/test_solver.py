import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from tt_ray.logistic.design import Design, moments, read_blocks
from tt_ray.logistic.solver import Fit, Pairs, Solver, line_search, predict
from tt_ray.terminal.errors import UserError

STRENGTHS = (1e-5, 1e-3, 1e-2, 0.1, 1.0)


def problem(
    rows: int = 240, dim: int = 12, classes: int = 4, distance: float = 0.8, seed: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Correlated features of unlike sizes and offsets, whose classes overlap unless `distance` is large."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    centres = distance * rng.normal(size=(classes, dim))
    x = (centres[labels] + rng.normal(size=(rows, dim))) @ rng.normal(size=(dim, dim))
    return (x * rng.uniform(0.1, 9, dim) + rng.uniform(-20, 20, dim)).astype(np.float32), labels


def solver(x: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], **kwargs: Any) -> Solver:
    rows = np.arange(len(x))
    resident = kwargs.pop("resident_bytes", None)
    design = Design(x, rows, moments(x, rows), len(x), resident_bytes=resident)
    return Solver(design, labels, int(labels.max()) + 1, **kwargs)


def shares(x: npt.NDArray[np.float32], fit: Fit) -> npt.NDArray[np.float32]:
    return predict(x, np.arange(len(x)), moments(x, np.arange(len(x))), fit.weights)


def reference(x: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], strength: float) -> LogisticRegression:
    scaling = moments(x, np.arange(len(x)))
    model = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit((x - scaling.mean) / scaling.scale, labels)


def objective(model: LogisticRegression, x: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """scikit-learn's, of its own solution, in float64."""
    scaling = moments(x, np.arange(len(x)))
    own = model.predict_log_proba((x - scaling.mean) / scaling.scale)[np.arange(len(x)), labels]
    return float(-own.mean() + np.square(model.coef_).sum() / 2 / model.C / len(x))


@pytest.mark.parametrize("distance", [0.8, 8.0], ids=["overlapping", "separable"])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_path_is_scikit_learns(distance: float, classes: int) -> None:
    x, labels = problem(distance=distance, classes=classes)
    path = solver(x, labels)
    for strength in STRENGTHS:
        fit, model = path.fit(strength), reference(x, labels, strength)
        scaling = moments(x, np.arange(len(x)))
        assert fit.converged and fit.gradient <= 1e-5
        assert fit.objective == pytest.approx(objective(model, x, labels), rel=1e-4, abs=1e-6)
        expected = model.predict_proba((x - scaling.mean) / scaling.scale)
        assert np.abs(shares(x, fit) - expected).max() < 2e-3


def test_a_warm_path_ends_where_a_cold_fit_ends() -> None:
    x, labels = problem()
    path = solver(x, labels, tolerance=1e-6)
    for strength in STRENGTHS:
        warm, cold = path.fit(strength), solver(x, labels, tolerance=1e-6).fit(strength)
        assert warm.objective == pytest.approx(cold.objective, rel=1e-6)
        assert np.abs(shares(x, warm) - shares(x, cold)).max() < 1e-3


def test_the_same_bits_again() -> None:
    x, labels = problem()
    paths = [solver(x, labels), solver(x, labels)]
    for strength in STRENGTHS:
        first, second = (path.fit(strength) for path in paths)
        assert torch.equal(first.weights, second.weights) and first[2:] == second[2:]


def test_the_order_of_rows_does_not_matter() -> None:
    x, labels = problem()
    order = np.random.default_rng(1).permutation(len(x))
    plain, mixed = solver(x, labels, tolerance=1e-6), solver(x[order], labels[order], tolerance=1e-6)
    for strength in STRENGTHS:
        first, second = plain.fit(strength), mixed.fit(strength)
        assert first.objective == pytest.approx(second.objective, rel=1e-6)
        assert torch.allclose(first.weights, second.weights, atol=2e-3)


def test_a_memory_map_read_in_blocks_is_one_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = problem(rows=1000)
    whole = solver(x, labels, tolerance=1e-6)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    monkeypatch.setattr("tt_ray.logistic.design._BLOCK_BYTES", 4 * 12 * 64)
    monkeypatch.setattr("tt_ray.logistic.design._READ_BYTES", 4 * 12 * 100)
    for resident in (0, 1 << 30):
        blocks = solver(mapped, labels, tolerance=1e-6, resident_bytes=resident)
        assert (blocks.objective.design.data is None) == (resident == 0)
        for strength in STRENGTHS:
            fit, expected = blocks.fit(strength), whole.fit(strength)
            assert fit.converged and fit.objective == pytest.approx(expected.objective, rel=1e-5)
            assert np.abs(shares(x, fit) - shares(x, expected)).max() < 1e-3
        whole = solver(x, labels, tolerance=1e-6)


def test_the_bias_is_free() -> None:
    x, _ = problem(classes=3)
    labels = np.array([0] * 12 + [1] * 48 + [2] * 180)
    fit = solver(x, labels).fit(1e-9)
    assert fit.weights[:, :-1].abs().max() < 1e-4
    assert np.allclose(shares(x, fit).mean(0), [0.05, 0.2, 0.75], atol=1e-4)


def test_constant_features_change_nothing() -> None:
    x, labels = problem()
    more = np.concatenate([x, np.full((len(x), 2), 7.1, np.float32), np.zeros((len(x), 1), np.float32)], 1)
    scaling = moments(more, np.arange(len(x)))
    assert (scaling.scale[-3:] == 1).all()
    first, second = solver(x, labels).fit(0.1), solver(more, labels).fit(0.1)
    assert second.converged and second.objective == pytest.approx(first.objective, rel=1e-5)
    assert second.weights[:, -4:-1].abs().max() < 1e-6


def test_more_features_than_images() -> None:
    x, labels = problem(rows=20, dim=50)
    for strength in STRENGTHS:
        fit = solver(x, labels).fit(strength)
        assert fit.converged
        model = reference(x, labels, strength)
        assert fit.objective == pytest.approx(objective(model, x, labels), rel=1e-4, abs=2e-6)


def test_features_that_are_not_numbers_are_refused() -> None:
    x, _ = problem()
    x[7, 3] = np.nan
    with pytest.raises(UserError, match="1 of 12 features are NaN or infinite"):
        moments(x, np.arange(len(x)))
    x[7, 3] = np.inf
    with pytest.raises(UserError, match="1 of 12 features are NaN or infinite"):
        moments(x, np.arange(len(x)))
    moments(x, np.arange(7))  # those rows alone


def test_an_iteration_limit_is_told() -> None:
    x, labels = problem()
    fit = solver(x, labels, max_iterations=2).fit(1.0)
    assert not fit.converged and fit.iterations == 2 and fit.gradient > 1e-5


def test_the_gradient_is_that_of_the_features_own_basis() -> None:
    x, labels = problem()
    one = solver(x, labels)
    fit = one.fit(0.1)
    scaled = torch.from_numpy((x - x.mean(0)) / x.std(0))
    weights = fit.weights.clone().requires_grad_()
    logits = scaled @ weights[:, :-1].T + weights[:, -1]
    penalty = weights[:, :-1].square().sum() / 2 / 0.1 / len(x)
    value = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)) + penalty
    (gradient,) = torch.autograd.grad(value, weights)
    assert float(value.detach()) == pytest.approx(fit.objective, rel=1e-5)
    assert float(gradient.abs().max()) == pytest.approx(fit.gradient, abs=1e-6)


def test_line_searches_end_where_it_is_lower_and_flatter() -> None:
    x, labels = problem()
    one = solver(x, labels)
    one.fit(0.01)
    start = one.objective(torch.zeros_like(one.point.weights))
    for factor in (1e-3, 0.1, 1.0, 30.0):
        direction = -factor * one.precondition(start.gradient)
        there = line_search(one.objective, start, direction)
        assert there is not None and there.value < start.value
        slope = float((direction * start.gradient).sum())
        assert abs(float((direction * there.gradient).sum())) <= 0.9 * abs(slope)
    assert line_search(one.objective, start, start.gradient) is None


def test_pairs_invert_a_quadratic_and_follow_its_penalty() -> None:
    """As many pairs as dimensions, along conjugate directions, make L-BFGS exact."""
    size = 6
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    curvature = root @ root.T + torch.eye(size)
    _, vectors = torch.linalg.eigh(curvature)
    shape = torch.Size((1, size + 1))
    pairs = Pairs(shape, size + 1, torch.device("cpu"))
    steps = torch.cat([torch.cat([vectors.T, torch.zeros(size, 1)], 1), torch.eye(size + 1)[-1:]])
    full = torch.block_diag(curvature, torch.ones(1, 1))
    for step in steps:
        pairs.add(step[None], (full @ step)[None])
    gradient = torch.arange(1.0, size + 2)[None]
    identity: Any = torch.clone
    torch.testing.assert_close(full @ pairs.solve(gradient, identity)[0], gradient[0], rtol=1e-3, atol=1e-3)
    pairs.shift(2.0)
    full[:-1, :-1] += 2 * torch.eye(size)
    torch.testing.assert_close(full @ pairs.solve(gradient, identity)[0], gradient[0], rtol=1e-3, atol=1e-3)


def test_pairs_that_were_all_penalty_are_forgotten() -> None:
    pairs = Pairs(torch.Size((1, 4)), 3, torch.device("cpu"))
    flat, steep = torch.eye(4)[:1], torch.eye(4)[1:2]
    pairs.add(flat, 100 * flat)
    pairs.add(steep, 150 * steep)
    pairs.shift(-100.0)
    assert pairs.order == [0] and torch.equal(pairs.steps[0], steep[0]) and torch.equal(pairs.changes[0], 50 * steep[0])
    identity: Any = torch.clone
    torch.testing.assert_close(pairs.solve(steep, identity), steep / 50)
    pairs.add(flat, 2 * flat)
    assert pairs.order == [0, 1]


def test_blocks_are_the_rows_asked_for() -> None:
    x, _ = problem()
    rows = np.array([5, 3, 200, 7])
    parts = list(read_blocks(x, rows, block_bytes=4 * 12 * 3))
    assert [place for place, _ in parts] == [slice(0, 3), slice(3, 4)]
    assert np.array_equal(np.concatenate([part for _, part in parts]), x[rows])


def test_memory_maps_are_read_by_their_file(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(4000, 64)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    rows = np.concatenate([np.arange(0, 4000, 3), np.arange(3999, 0, -7), [2, 2, 3]])
    before = _mapped("x.npy")
    assert np.array_equal(np.concatenate([block for _, block in read_blocks(mapped, rows, 5000)]), x[rows])
    assert _mapped("x.npy") == before
    for part, whole in ((mapped[5:2000], x[5:2000]), (mapped[:, 3:20], x[:, 3:20])):
        parts = [block for _, block in read_blocks(part, rows[:500], 5000)]
        assert np.array_equal(np.concatenate(parts), whole[rows[:500]])


def _mapped(name: str) -> int:
    """Resident KiB of the map of a file, which is mapped once."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    next(line for line in lines if name in line)
    return int(next(line for line in lines if line.startswith("Rss:")).split()[1])


def test_a_features_file_that_ends_early_is_told(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((100, 8), np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    os.truncate(tmp_path / "x.npy", 1000)
    with pytest.raises(UserError, match="ends early"):
        list(read_blocks(mapped, np.arange(100)))
