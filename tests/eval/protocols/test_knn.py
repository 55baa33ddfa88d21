"""The vote against a loop over all training images, its ties, and what it may look at."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from eval.contract import EvalConfig
from eval.protocols import knn
from eval.protocols.knn import Bank, Options, class_votes, neighbours
from tt_ray.terminal.errors import UserError


class Features(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    fit: np.ndarray
    val: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


class Toy(NamedTuple):
    classes: int = 4
    metric: str = "top1"


TOP1 = Toy()


def features(seed: int, n: int = 120, m: int = 60, d: int = 8, spread: float = 1.5) -> Features:
    rng = np.random.default_rng(seed)
    y, test_y = rng.integers(0, 4, n), rng.integers(0, 4, m)
    centres = rng.normal(size=(4, d))
    x, test_x = (centres[z] + spread * rng.normal(size=(len(z), d)) for z in (y, test_y))
    order = rng.permutation(n)
    fit, val = np.sort(order[n // 5 :]), np.sort(order[: n // 5])
    return Features(x.astype(np.float32), y, fit, val, test_x.astype(np.float32), test_y)


def brute(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int, temperature: float = 0.07) -> np.ndarray:
    """Predicted classes, one query at a time."""
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    found = []
    for query in queries:
        cosines = bank @ (query / np.linalg.norm(query))
        nearest = np.argsort(-cosines, kind="stable")[:k]
        weights = np.exp(cosines[nearest] / temperature)
        votes = [sum(w for w, row in zip(weights, nearest, strict=True) if labels[row] == c) for c in range(4)]
        found.append(int(np.argmax(votes)))
    return np.array(found)


def run(found: Features, monkeypatch: pytest.MonkeyPatch, task: Any = TOP1, **options: Any) -> Any:
    monkeypatch.setattr(knn, "task_features", lambda *_: found)
    none: Any = None
    return knn.evaluate(none, task, EvalConfig(Options(**options), Path()))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks, the last ones shorter."""
    monkeypatch.setattr(knn, "_QUERIES", 7)
    monkeypatch.setattr(knn, "_BANK", 11)


@pytest.mark.parametrize("k", [1, 5, 20, 500])
def test_equals_brute_force(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = features(0)
    result = run(found, monkeypatch, k=k)
    expected = brute(found.x, found.y, found.test_x, k)
    assert (result.predictions == expected).all()
    assert result.metrics["top1"] == pytest.approx(100 * (expected == found.test_y).mean())
    assert result.chosen == {"k": k} and result.n == 60 and 0 <= result.metrics["ece"] <= 100
    assert (result.labels == found.test_y).all() and result.predictions.dtype == np.int32


@pytest.mark.parametrize("metric", ["top1", "mean_per_class"])
def test_k_is_the_best_on_validation_images(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = features(1)
    result = run(found, monkeypatch, Toy(metric=metric), ks=(1, 3, 10, 50, 200))
    scores = {}
    for k in (1, 3, 10, 50, 200):
        predictions = brute(found.x[found.fit], found.y[found.fit], found.x[found.val], k)
        right = predictions == found.y[found.val]
        per_class = [right[found.y[found.val] == c].mean() for c in range(4)]
        scores[k] = 100 * float(right.mean() if metric == "top1" else np.mean(per_class))
    assert result.chosen["validation"] == pytest.approx(scores)
    assert result.chosen["k"] == max(scores, key=lambda k: (scores[k], -k))
    assert (result.predictions == brute(found.x, found.y, found.test_x, result.chosen["k"])).all()
    assert metric in result.metrics


def test_numbers_above_the_images_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(run(features(2, n=50), monkeypatch).chosen["validation"]) == [10, 20, 100]  # 40 images to fit on


def test_test_labels_have_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    found = features(3)
    first, second = run(found, monkeypatch), run(found._replace(test_y=(found.test_y + 1) % 4), monkeypatch)
    assert first.chosen == second.chosen and (first.predictions == second.predictions).all()
    assert first.metrics["top1"] != second.metrics["top1"]


def test_equally_near_images_come_in_their_order() -> None:
    rng = np.random.default_rng(4)
    # Entries of +-1 in 16 dimensions: cosines are exact sixteenths, and most of them tie.
    bank, queries = (rng.choice([-1.0, 1.0], (n, 16)).astype(np.float32) for n in (90, 20))
    near = neighbours(Bank(bank), Bank(queries), 10)
    cosines = queries @ bank.T / 16
    for query in range(20):
        assert near.rows[query].tolist() == np.argsort(-cosines[query], kind="stable")[:10].tolist()
    assert torch.equal(near.cosines, torch.from_numpy(np.take_along_axis(cosines, near.rows.numpy(), 1)))


def test_features_of_zeros_are_near_to_nothing() -> None:
    near = neighbours(Bank(np.eye(3, dtype=np.float32)), Bank(np.zeros((1, 3), np.float32)), 2)
    assert near.cosines.tolist() == [[0, 0]] and near.rows.tolist() == [[0, 1]]


def test_votes_are_shares_of_all_neighbours() -> None:
    found = features(5)
    near = neighbours(Bank(found.x), Bank(found.test_x), 40)
    votes = class_votes(near, found.y, 4, (40, 10), 0.07)
    assert list(votes) == [10, 40]
    assert votes[40].sum(1) == pytest.approx(np.ones(60)) and (votes[10] <= votes[40] + 1e-12).all()


@pytest.mark.parametrize("options", [{"k": -1}, {"ks": ()}, {"ks": (0, 5)}, {"temperature": 0.0}])
def test_numbers_that_cannot_vote_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="knn: "):
        Options(**options)
