"""LinearProbe is an estimator as scikit-learn wants one, and finds what the protocol finds."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils.estimator_checks import parametrize_with_checks

import tt_ray
from eval.metrics import top1
from eval.protocols.estimator import LinearProbe, probe
from eval.protocols.linear import Options, select, spaced
from eval.tasks.origins import mark_share

NAMES = np.array(["cat", "dog", "eel", "fox"])


def drawn(seed: int, distance: float = 3.0, count: int = 400) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Features around four centres, each scaled and shifted in its own way, and names of their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    features = distance * np.eye(4, 8)[labels] + rng.normal(size=(count, 8))
    return (features * np.arange(1, 9) + 100).astype(np.float32), NAMES[labels]


@parametrize_with_checks([LinearProbe(6)])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_separable_features_are_solved_and_noise_is_chance() -> None:
    assert probe(*drawn(0, 8), Cs=12).score(*drawn(1, 8)) > 0.97
    assert 0.15 < probe(*drawn(0, 0), Cs=12).score(*drawn(1, 0)) < 0.35


def test_it_chooses_and_fits_as_the_protocol_does() -> None:
    x, y = drawn(0)
    _, labels = np.unique(y, return_inverse=True)
    held_out = mark_share(labels, 0.2, 3)
    rows = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    found = select(x, labels, *rows, top1, classes=4, options=Options(spaced(-6, 5, 12)))
    ours = LinearProbe(12, random_state=3).fit(x, y)
    assert found.best.fit.strength == ours.C_ and ours.chosen_["validation"] == found.best.score
    assert np.array_equal(ours.predict_proba(x), found.predict(x))
    assert list(ours.scores_.values()) == [tried.score for tried in found.path]
    # Weights in scikit-learn's terms, for features that nobody has standardised.
    np.testing.assert_allclose(softmax(x @ ours.coef_.T + ours.intercept_, 1), ours.predict_proba(x), atol=1e-4)


def test_given_validation_rows_choose_and_are_fitted_too() -> None:
    (x, y), (val_x, val_y) = drawn(0), drawn(1)
    given = probe(x, y, Cs=[0.01, 1.0], X_val=val_x, y_val=val_y)
    _, labels = np.unique(np.concatenate([y, val_y]), return_inverse=True)
    both, rows = np.concatenate([x, val_x]), np.arange(800)
    found = select(both, labels, rows[:400], rows[400:], top1, classes=4, options=Options((0.01, 1.0)))
    assert found.best.fit.strength == given.C_ and np.array_equal(given.predict_proba(x), found.predict(x))
    with pytest.raises(ValueError, match="pass both, or neither"):
        probe(x, y, X_val=val_x)
    with pytest.raises(ValueError, match="y_val has labels that y lacks: gnu"):
        probe(x, y, X_val=val_x, y_val=np.where(val_y == "cat", "gnu", val_y))


def test_it_lives_in_pipelines_and_takes_tensors() -> None:
    x, y = drawn(0)
    assert cross_val_score(make_pipeline(Normalizer(), LinearProbe(6)), x, y, cv=2).min() > 0.8
    copied = pickle.loads(pickle.dumps(probe(torch.from_numpy(x).requires_grad_(), y, Cs=6)))
    assert np.array_equal(copied.predict(torch.from_numpy(x)), clone(copied).fit(x, y).predict(x))


def test_it_is_the_librarys() -> None:
    assert tt_ray.LinearProbe is LinearProbe and tt_ray.probe is probe


X, Y = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32), np.arange(40) % 3
HOLED = np.where(np.arange(200).reshape(40, 5) == 7, np.nan, X)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": HOLED}, "X contains NaN"),
        ({"features": np.where(np.isnan(HOLED), -np.inf, X)}, "X contains infinity"),
        ({"features": torch.from_numpy(HOLED)}, "X contains NaN"),
        ({"features": X[:, 0]}, "Expected 2D array, got 1D"),
        ({"features": X[None]}, "dim 3"),
        ({"features": X[:0], "labels": Y[:0]}, "0 sample"),
        ({"labels": Y[:-1]}, r"inconsistent numbers of samples: \[40, 39\]"),
        ({"labels": np.eye(3)[Y]}, "1d array"),
        ({"labels": np.where(Y == 0, np.nan, Y)}, "y contains NaN"),
        ({"labels": np.array(["a", None] * 20, object)}, "several kinds"),
        ({"labels": X[:, 0]}, "continuous"),
        ({"X_val": HOLED, "y_val": Y}, "X_val contains NaN"),
        ({"X_val": X[:, 0], "y_val": Y}, "got 1D"),
        ({"X_val": X[:, :3], "y_val": Y}, "3 features, but LinearProbe is expecting 5"),
        ({"X_val": X, "y_val": Y[:-1]}, r"\[40, 39\]"),
        ({"X_val": X, "y_val": np.eye(3)[Y]}, "1d array"),
        ({"X_val": X, "y_val": None}, "pass both"),
        ({"Cs": 0}, "Cs is 0"),
        ({"Cs": [1.0, float("nan")]}, "positive numbers"),
        ({"Cs": [1.0, -1.0]}, "positive numbers"),
        ({"Cs": "a"}, "positive numbers"),
        ({"validation_share": 2.0}, "validation_share"),
        ({"tol": 0.0}, "tol"),
        ({"max_iter": 0}, "max_iter"),
        ({"device": "gpu"}, "cpu or cuda"),
    ],
)
def test_what_cannot_be_fitted_is_a_value_error_that_says_why(change: dict[str, Any], words: str) -> None:
    given = {"features": X, "labels": Y, "Cs": 3, **change}
    with pytest.raises(ValueError, match=words):
        probe(**given)


def test_half_precision_as_backbones_give_it() -> None:
    half = torch.from_numpy(X).bfloat16()
    assert np.array_equal(probe(half, Y, Cs=3).predict(half), probe(half.float().numpy(), Y, Cs=3).predict(half))
