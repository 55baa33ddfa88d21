"""The closed form against the normal equations, and the draws."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.contract import EvalConfig
from eval.protocols import few_shot
from eval.protocols.few_shot import Options, draw_order, fit_ridge
from tests.eval.protocols.test_knn import Features, Toy, features
from tt_ray.terminal.errors import UserError


def run(found: Features, monkeypatch: pytest.MonkeyPatch, seed: int = 0, **options: Any) -> Any:
    monkeypatch.setattr(few_shot, "task_features", lambda *_: found)
    none: Any = None
    return few_shot.evaluate(none, Toy(metric="mean_per_class"), EvalConfig(Options(**options), Path(), seed))


def solved(x: np.ndarray, labels: np.ndarray, test: np.ndarray, l2: float) -> np.ndarray:
    """Scores (m, 4) by the normal equations, entry by entry where that is cheap."""
    mean, std = x.mean(0), x.std(0) + 1e-5
    rows = np.array([[*((row - mean) / std), 100.0] for row in x])
    targets = np.array([[1.0 if label == c else -1.0 for c in range(4)] for label in labels])
    weights = np.linalg.solve(rows.T @ rows + l2 * np.eye(rows.shape[1]), rows.T @ targets)
    return np.array([[*((row - mean) / std), 100.0] for row in test]) @ weights


@pytest.mark.parametrize("images", [4, 8, 9, 60])  # fewer, one fewer than, as many, and more than dimensions
@pytest.mark.parametrize("l2", [1024.0, 0.5])
def test_equals_the_normal_equations(images: int, l2: float) -> None:
    found = features(0)
    x, labels = found.x[:images].astype(np.float64), found.y[:images]
    fit = fit_ridge(found.x[:images], labels, 4, l2)
    scores = solved(x, labels, found.test_x.astype(np.float64), l2)
    ours = np.hstack([(found.test_x - fit.mean) / fit.std, np.full((60, 1), 100.0)]) @ fit.weights
    np.testing.assert_allclose(ours, scores, rtol=1e-7, atol=1e-9)
    assert (fit.predict(found.test_x) == scores.argmax(1)).all()


def test_a_draw_has_its_number_of_images_of_each_class_and_holds_the_smaller_ones() -> None:
    labels = np.array([0] * 30 + [1] * 3 + [2] * 30)
    order = draw_order(labels, 5)
    assert [len(rows) for rows in order] == [30, 3, 30]
    for number, rows in enumerate(order):
        assert (labels[rows] == number).all() and len(set(rows)) == len(rows)
    again, other = draw_order(labels, 5), draw_order(labels, 6)
    assert all((a == b).all() for a, b in zip(order, again, strict=True))
    assert (order[0] != other[0]).any()


def test_metrics_are_means_over_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    found = features(1)
    result = run(found, monkeypatch, draws=4)
    assert result.predictions.shape == (4, 60) and (result.labels == found.test_y).all()
    top1 = [100 * (row == found.test_y).mean() for row in result.predictions]
    assert len(set(top1)) > 1
    assert result.metrics["top1"] == result.metrics["top1@10shot"] == pytest.approx(np.mean(top1))
    assert result.metrics["top1@10shot_std"] == pytest.approx(np.std(top1, ddof=1))
    names = {f"{m}@{s}shot{e}" for m in ("top1", "mean_per_class") for s in (1, 5, 10, 25) for e in ("", "_std")}
    assert result.metrics.keys() == names | {"top1", "mean_per_class"}
    assert result.metrics["top1@25shot"] > result.metrics["top1@1shot"]


def test_the_seed_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    found = features(2)
    first, again, other = (run(found, monkeypatch, seed) for seed in (0, 0, 1))
    assert first.metrics == again.metrics != other.metrics
    rows = {row.tobytes() for result in (first, other) for row in result.predictions}
    assert len(rows) == 6  # every draw of every seed is its own


def test_classes_with_few_images_give_what_they_have(monkeypatch: pytest.MonkeyPatch) -> None:
    found = features(3, n=40)
    result = run(found, monkeypatch, shots=(2, 500), draws=1)
    fit = fit_ridge(found.x, found.y, 4, 1024.0)
    assert (result.predictions == fit.predict(found.test_x)).all()  # 500 shots, the largest, are all images
    assert result.chosen["report"] == 500 and result.chosen["smallest_class"] == np.bincount(found.y).min()
    assert result.metrics["top1@500shot_std"] == 0


@pytest.mark.parametrize("options", [{"shots": ()}, {"shots": (0,)}, {"draws": 0}, {"l2": 0.0}])
def test_numbers_that_cannot_be_drawn_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="few_shot: "):
        Options(**options)
