"""Each metric against an implementation written out in loops, and against what it must not depend on."""

from typing import Any

import numpy as np
import pytest

from eval.metrics import calibration_error, confidence_bins, expected_calibration_error, mean_per_class, score, top1


def _draw(seed: int, n: int = 200, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes - 1, n)  # the last class is absent
    return labels, np.where(rng.random(n) < 0.6, labels, rng.integers(0, classes, n))


@pytest.mark.parametrize("seed", range(3))
def test_accuracies_equal_loops(seed: int) -> None:
    labels, predictions = _draw(seed)
    right = sum(int(a == b) for a, b in zip(labels, predictions, strict=True))
    shares = []
    for number in range(7):
        own = [b for a, b in zip(labels, predictions, strict=True) if a == number]
        if own:
            shares.append(sum(int(b == number) for b in own) / len(own))
    assert len(shares) == 6
    assert top1(labels, predictions) == pytest.approx(100 * right / len(labels), rel=1e-12)
    assert mean_per_class(labels, predictions, 7) == pytest.approx(100 * sum(shares) / len(shares), rel=1e-12)


def test_mean_per_class_weighs_classes_not_images() -> None:
    labels = np.array([0] * 98 + [1] * 2)
    assert top1(labels, np.zeros(100, int)) == 98
    assert mean_per_class(labels, np.zeros(100, int), 2) == 50
    task: Any = type("Task", (), {"classes": 2})
    assert score(task, labels, np.zeros(100, int)) == {"top1": 98, "mean_per_class": 50}


def _ece(probs: np.ndarray, labels: np.ndarray, bins: int) -> float:
    total = 0.0
    for m in range(1, bins + 1):
        inside = [i for i, row in enumerate(probs) if (m - 1) / bins < max(row) <= m / bins]
        if inside:
            accuracy = sum(int(np.argmax(probs[i]) == labels[i]) for i in inside) / len(inside)
            confidence = sum(float(max(probs[i])) for i in inside) / len(inside)
            total += len(inside) / len(probs) * abs(accuracy - confidence)
    return 100 * total


@pytest.mark.parametrize(("bins", "seed"), [(15, 0), (15, 1), (4, 2), (1, 3)])
def test_calibration_error_equals_a_loop(bins: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(300, 5))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = rng.integers(0, 5, 300)
    expected = _ece(probs, labels, bins)
    assert expected_calibration_error(probs, labels, bins) == pytest.approx(expected, rel=1e-9)
    assert expected_calibration_error(probs, probs.argmax(1) == labels, bins) == pytest.approx(expected, rel=1e-9)


def test_calibration_of_a_sure_and_right_and_of_a_sure_and_wrong_model() -> None:
    probs = np.eye(3)[[0, 1, 2, 0]]
    assert expected_calibration_error(probs, np.array([0, 1, 2, 0])) == 0
    assert expected_calibration_error(probs, np.array([1, 2, 0, 1])) == 100


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_a_calibrated_model_has_no_error_and_a_sure_wrong_one_all_of_it(bins: int) -> None:
    """Of n images with confidence k/20, as many are right as that says."""
    twentieths = np.arange(10, 21)
    confidence = np.repeat(twentieths / 20, 200)
    right = np.concatenate([np.arange(200) < 10 * number for number in twentieths])
    assert calibration_error(confidence, right, bins) == pytest.approx(0, abs=1e-9)
    assert calibration_error(np.ones(50), np.zeros(50, bool), bins) == 100


def test_bins_are_open_below_and_every_image_has_one() -> None:
    edges = np.linspace(0, 1, 16)
    assert confidence_bins(edges[1:]).tolist() == list(range(15)), "an upper edge belongs to its bin"
    assert confidence_bins(np.nextafter(edges[:-1], 1)).tolist() == list(range(15))
    assert confidence_bins(np.float32([0.0, 1.0, 1.0000001])).tolist() == [0, 14, 14]
