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
