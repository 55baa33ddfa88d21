"""No image is judged by a model that has seen it, or a copy of its caption."""

import numpy as np
import pytest

from tests.audit.test_noise import CLASSES, embedded, silent
from tt_ray.audit import out_of_fold as module
from tt_ray.audit.out_of_fold import Embedded, copies, draw, out_of_fold
from tt_ray.terminal.errors import UserError


def test_an_images_own_label_never_decides() -> None:
    random = np.random.default_rng(0)
    table = random.normal(size=(400, 300)).astype(np.float32)  # a model of so many features remembers every image
    labels = random.integers(0, 2, 400)
    data = Embedded(table, np.arange(400), labels, 2)
    found = out_of_fold(data, np.arange(400), silent)
    assert abs((found.classes[:, 0] == labels).mean() - 0.5) < 0.1


def test_copies_of_a_caption_stay_together_and_frequent_captions_do_not() -> None:
    times = [1, 2, 4, 10, 11, 40, *[1] * 6]
    table = np.repeat(np.arange(len(times), dtype=np.float32), times)[:, None]
    groups = copies(Embedded(table, np.arange(len(table)), np.zeros(len(table), np.int64), 1))
    counts = [len(np.unique(groups[table[:, 0] == number])) for number in range(len(times))]
    assert counts == [1, 1, 1, 1, 11, 40, *[1] * 6]


def test_classes_of_one_caption_are_learned_all_the_same() -> None:
    labels = np.repeat([0, 1], 6)
    data = Embedded(np.eye(2, dtype=np.float32)[labels], np.arange(12), labels, 2)
    assert (out_of_fold(data, copies(data), silent).classes[:, 0] == labels).all()
    with pytest.raises(UserError, match="nothing to learn from"):
        out_of_fold(data, labels, silent)


def test_copies_teach_nothing_of_one_another() -> None:
    random = np.random.default_rng(0)
    table = np.repeat(random.normal(size=(200, 300)), 3, 0).astype(np.float32)
    labels = np.repeat(random.integers(0, 2, 200), 3)
    data = Embedded(table, np.arange(600), labels, 2)
    apart = out_of_fold(data, np.arange(600), silent)
    together = out_of_fold(data, copies(data), silent)
    assert (apart.classes[:, 0] == labels).mean() > 0.75 and (together.classes[:, 0] == labels).mean() < 0.65


def test_large_sets_are_fitted_on_a_sample_and_predicted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = embedded(0.2)
    whole = out_of_fold(data, np.arange(len(data)), silent)
    monkeypatch.setattr(module, "_WORK", 400 * data.table.shape[1] * CLASSES)
    monkeypatch.setattr(module, "_CHUNK", 100 * CLASSES)
    sampled = out_of_fold(data, np.arange(len(data)), silent)
    assert (whole.folds, round(whole.fitted, -2)) == (5, 1200) and (sampled.folds, sampled.fitted) == (2, 400)
    assert (whole.classes[:, 0] == sampled.classes[:, 0]).mean() > 0.9
    assert np.allclose(sampled.shares.sum(1), 1, atol=1e-4) and (np.diff(sampled.shares, axis=1) <= 0).all()


def test_a_class_of_one_image_does_not_choose_the_penalty_of_all() -> None:
    """No model has seen it: the stronger the penalty, the less surprising it is."""
    data, _ = embedded(0.2, count=300)
    table = np.concatenate([data.table, np.full((1, data.table.shape[1]), 5, np.float32)])
    labels = np.append(data.labels, CLASSES)
    more = out_of_fold(Embedded(table, np.arange(301), labels, CLASSES + 1), np.arange(301), silent)
    found = out_of_fold(data, np.arange(300), silent)
    assert more.strength == found.strength > module._STRENGTHS[0]
    assert (more.classes[:-1, 0] == found.classes[:, 0]).mean() > 0.95


@pytest.mark.parametrize("images", [20, 60])
def test_the_control_is_no_single_toss_where_images_are_few(images: int) -> None:
    """Of one caption for each class, one shuffle predicts all labels or none."""
    labels = np.arange(images) % 2
    data = Embedded(np.eye(2, dtype=np.float32)[labels], np.arange(images), labels, 2)
    found = out_of_fold(data, np.arange(images), silent)
    assert (found.classes[:, 0] == labels).all() and 0.2 < found.shuffled < 0.8


def test_only_the_likeliest_classes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = embedded(0.2)
    whole = out_of_fold(data, np.arange(len(data)), silent)
    monkeypatch.setattr(module, "KEPT", 2)
    kept = out_of_fold(data, np.arange(len(data)), silent)
    assert np.array_equal(kept.classes, whole.classes[:, :2]) and np.array_equal(kept.own, whole.own)


def test_a_sample_has_a_share_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    rows = draw(labels, np.arange(1000), 100)
    assert np.bincount(labels[rows]).tolist() == [60, 30, 10] and (np.diff(rows) > 0).all()
    assert draw(labels, np.arange(50), 100).tolist() == list(range(50))
