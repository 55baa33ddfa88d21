"""The ranking of wrong labels, suggestions and probabilities, of labels that are any other class or the next one."""

import numpy as np
import pytest

from tests.audit.test_noise import CLASSES, embedded, guesses, silent
from tt_ray.audit import suspects as module
from tt_ray.audit.learning import Learned, learn
from tt_ray.audit.out_of_fold import Guesses
from tt_ray.audit.suspects import rank_suspects

SETTINGS = [(0.2, "symmetric"), (0.5, "symmetric"), (0.2, "pair"), (0.4, "pair")]


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def learned(request: pytest.FixtureRequest) -> tuple[Learned, np.ndarray, float]:
    noise, kind = request.param
    data, clean = embedded(noise, 0.6, kind=kind)
    return learn(data, silent), clean, noise


def test_suspects_are_wrong_labels_and_suggestions_right(learned: tuple[Learned, np.ndarray, float]) -> None:
    """With a spread taken for even, next to none of the labels of the next class would be found."""
    result, clean, noise = learned
    suspects = result.suspects
    bad, hit = (result.data.labels != clean)[suspects.rows], suspects.suggestion == clean[suspects.rows]
    auc = np.cumsum(bad)[~bad].sum() / (bad.sum() * (~bad).sum())
    listed, fixed = suspects.wrong >= 0.5, suspects.right >= 0.9
    assert auc > 0.9 and bad[listed].mean() > 0.8 and listed[bad].mean() > 0.5
    assert hit[fixed].mean() > 0.9 and fixed.sum() > 20
    assert abs(suspects.wrong.mean() - noise) < 0.1, "probabilities add up to the estimate"
    assert (np.diff(suspects.wrong) <= 0).all() and sorted(suspects.rows) == list(range(len(clean)))
    assert (suspects.suggestion != result.data.labels[suspects.rows]).all()
    assert (suspects.right <= suspects.wrong).all()


def moved(true: np.ndarray, noise: float, spread: np.ndarray, labels: list[int]) -> Guesses:
    """What a perfect model of such labels says of images with probabilities `true` (N, C) of classes."""
    return guesses(((1 - noise) * true + noise * true @ spread).tolist(), labels)


@pytest.mark.parametrize("pair", [False, True])
def test_probabilities_are_those_of_bayes(pair: bool) -> None:
    next_class = np.roll(np.eye(4), 1, 1)
    spread = (next_class if pair else (1 - np.eye(4)) / 3).astype(np.float32)
    true = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0.6, 0.4, 0, 0]])
    labels = [0, 1, 1]
    found = rank_suspects(np.array(labels * 5), moved(np.tile(true, (5, 1)), 0.3, spread, labels * 5), 0.3, spread)
    wrong = dict(zip(found.rows.tolist(), found.wrong.tolist(), strict=True))
    share = 0.3 * (1 if pair else 1 / 3)
    expected = [0, 0.99, 0.6 * share / (0.6 * share + 0.4 * 0.7)]
    assert np.allclose([wrong[row] for row in range(3)], expected, atol=0.03)
    assert (found.suggestion[np.isin(found.rows, [1, 2])] == 0).all()


def test_without_noise_no_label_is_wrong_however_odd() -> None:
    labels = [0, 1] * 5
    given = guesses([[1.0, 0.0], [1.0, 0.0]] * 5, labels)
    assert not rank_suspects(np.array(labels), given, 0.0, (1 - np.eye(2)).astype(np.float32)).wrong.any()


def test_blocks_and_classes_that_are_not_kept_change_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = embedded(0.2)
    result = learn(data, silent)
    few = Guesses(
        result.guesses.classes[:, :3], result.guesses.shares[:, :3], result.guesses.own, result.guesses.fold, 1, 5, 1, 0
    )
    monkeypatch.setattr(module, "_BLOCK", 100)
    first, second = (
        rank_suspects(data.labels, each, 0.2, ((1 - np.eye(CLASSES)) / (CLASSES - 1)).astype(np.float32))
        for each in (result.guesses, few)
    )
    wrong = [each.wrong[np.argsort(each.rows)] for each in (first, second)]
    assert np.abs(wrong[0] - wrong[1]).mean() < 0.03
