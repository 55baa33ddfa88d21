"""Wrong labels that are known: the estimate and its interval, and clean labels that stay clean."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from tt_ray.audit.learning import Learned, agreement_of, learn
from tt_ray.audit.noise import _rows_of, anchor_rows, confident_classes, estimate_noise, of_few, spread_of
from tt_ray.audit.out_of_fold import Embedded, Guesses, out_of_fold
from tt_ray.audit.words import estimate

CLASSES, DIM = 5, 16


def silent(*_: object) -> None:
    pass


def embedded(
    noise: float, overlap: float = 1.0, count: int = 1500, kind: str = "symmetric"
) -> tuple[Embedded, np.ndarray]:
    """Gaussian classes that overlap, so that a model has mistakes of its own; and the true labels."""
    random = np.random.default_rng(0)
    clean = random.integers(0, CLASSES, count)
    centres = 3 * random.normal(size=(CLASSES, DIM)) / np.sqrt(DIM)
    table = (centres[clean] + overlap * random.normal(size=(count, DIM))).astype(np.float32)
    wrong = random.random(count) < noise
    shift = 1 if kind == "pair" else random.integers(1, CLASSES, count)
    labels = np.where(wrong, (clean + shift) % CLASSES, clean)
    return Embedded(table, np.arange(count), labels, CLASSES), clean


@pytest.fixture(scope="module")
def learned() -> dict[float, tuple[Learned, np.ndarray]]:
    found = {}
    for noise in (0.0, 0.2, 0.5):
        data, clean = embedded(noise)
        found[noise] = learn(data, silent), clean
    return found


def test_known_noise_lies_in_the_interval(learned: dict[float, tuple[Learned, np.ndarray]]) -> None:
    for result, clean in learned.values():
        true, share = float((result.data.labels != clean).mean()), result.noise.share
        assert share.low <= true <= share.high, (true, share)
        assert share.high - share.low < 0.12


def test_mistakes_of_the_model_are_no_noise(learned: dict[float, tuple[Learned, np.ndarray]]) -> None:
    result, _ = learned[0.0]
    mistakes = float((result.guesses.classes[:, 0] != result.data.labels).mean())
    assert mistakes > 0.05, "the classes overlap"
    assert result.noise.confident.value > 0.02, "the confident joint counts some of them"
    assert result.noise.share.value < 0.01 and (result.suspects.wrong >= 0.5).mean() < 0.005


@pytest.mark.parametrize("rare", [60, 20])
def test_captions_know_a_rare_class_too(rare: int) -> None:
    """Naming the frequent class is right for 97 or 99 % of the images, so that five points more cannot be."""
    labels = (np.arange(2000) < rare).astype(np.int64)
    table = (2 * np.eye(8)[labels] + 0.2 * np.random.default_rng(0).normal(size=(2000, 8))).astype(np.float32)
    known = learn(Embedded(table, np.arange(2000), labels, 2), silent)
    assert known.knows and known.noise.share.value == 0
    random = Embedded(np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32), np.arange(2000), labels, 2)
    assert not learn(random, silent).knows


@pytest.mark.parametrize(("classes", "rare"), [(2, 0.03), (5, 0.1)])
def test_wrong_labels_do_not_hide_what_captions_know_of_rare_classes(classes: int, rare: float) -> None:
    """With 5 % of the labels wrong, most labels of the rarest class are: its captions hardly show in accuracy."""
    random = np.random.default_rng(1)
    clean = np.where(random.random(2000) < rare, random.integers(1, classes, 2000), 0)
    labels = np.where(random.random(2000) < 0.05, (clean + random.integers(1, classes, 2000)) % classes, clean)
    table = (2 * np.eye(8)[clean] + 0.2 * random.normal(size=(2000, 8))).astype(np.float32)
    known = learn(Embedded(table, np.arange(2000), labels, classes), silent)
    share, wrong = known.noise.share, labels != clean
    assert known.knows and share.low <= wrong.mean() <= share.high and share.high - share.low < 0.1
    listed = known.suspects.rows[known.suspects.wrong >= 0.5]
    assert wrong[listed].mean() > 0.9 and len(listed) > 0.7 * wrong.sum()
    blind = Embedded(table[random.permutation(2000)], np.arange(2000), labels, classes)
    assert not learn(blind, silent).knows


def test_labels_of_one_class_are_not_known() -> None:
    table = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    assert not learn(Embedded(table, np.arange(100), np.zeros(100, np.int64), 5), silent).knows


def test_agreement_is_cohens_kappa_and_its_spread_that_of_any_order() -> None:
    random = np.random.default_rng(0)
    labels = random.choice(3, 300, p=[0.8, 0.15, 0.05])
    predicted = np.where(random.random(300) < 0.5, labels, random.choice(3, 300, p=[0.9, 0.05, 0.05]))
    kappa, surprise = agreement_of(labels, predicted, 3)
    assert kappa == pytest.approx(cohen_kappa_score(labels, predicted))
    orders = np.array([(random.permutation(labels) == predicted).sum() for _ in range(4000)])
    deviations = ((labels == predicted).sum() - 0.5 - orders.mean()) / orders.std()
    assert surprise == pytest.approx(deviations, rel=0.05)
    assert agreement_of(labels, np.zeros(300, np.int64), 3) == (0.0, 0.0)
    assert agreement_of(labels, labels, 3)[0] == 1.0


def test_captions_of_other_images_know_nothing(learned: dict[float, tuple[Learned, np.ndarray]]) -> None:
    for result, _ in learned.values():
        assert result.guesses.shuffled < 0.4
        assert (result.guesses.classes[:, 0] == result.data.labels).mean() > result.guesses.shuffled


SIZES = ((60, 3), (500, 100), (1000, 10))


def few(count: int, classes: int, distance: float, noise: float, uneven: bool) -> tuple[Embedded, float]:
    """Gaussian classes that may overlap; and the share of wrong labels among the classes that are judged."""
    random = np.random.default_rng(1)
    sizes = 1 / np.arange(1, classes + 1) if uneven else np.ones(classes)
    clean = random.choice(classes, count, p=sizes / sizes.sum())
    centres = distance * random.normal(size=(classes, 128))
    table = (centres[clean] + 3 * random.normal(size=(count, 128))).astype(np.float32)
    wrong = random.random(count) < noise
    labels = np.where(wrong, (clean + random.integers(1, classes, count)) % classes, clean)
    return Embedded(table, np.arange(count), labels, classes), float(wrong[~of_few(labels, classes)].mean())


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("distance", [0.7, 4.0])
@pytest.mark.parametrize(("count", "classes"), SIZES)
def test_the_interval_is_honest_where_images_are_few(
    count: int, classes: int, distance: float, noise: float, uneven: bool
) -> None:
    """Neither mistakes of a model that saw 4 images of a class nor the choice of anchors pass for wrong labels."""
    data, true = few(count, classes, distance, noise, uneven)
    found = estimate_noise(data.labels, out_of_fold(data, np.arange(count), silent), classes)
    share = found.share
    assert found.anchors and share.low <= share.value <= share.high
    assert share.low - 0.01 <= true <= share.high, (true, share)


def test_anchors_are_not_those_of_the_folds_with_the_most_wrong_labels() -> None:
    """Models of the other folds are surest there: across folds, 29 % of anchors are wrong where 20 % are."""
    data, true = few(1000, 100, 4.0, 0.2, False)
    found = out_of_fold(data, np.arange(1000), silent)
    predicted = found.classes[:, 0]
    anchors = anchor_rows(found, 100)
    across = anchor_rows(replace(found, fold=np.zeros_like(found.fold)), 100)
    wrong = [float((data.labels != predicted)[rows].mean()) for rows in (anchors, across)]
    assert abs(wrong[0] - true) < 0.05 and wrong[1] - true > 0.05, (wrong, true)


def test_no_more_labels_are_wrong_than_captions_do_not_predict() -> None:
    data, _ = few(60, 3, 4.0, 0.2, False)
    found = out_of_fold(data, np.arange(60), silent)
    share = estimate_noise(data.labels, found, 3).share
    assert share.value <= (found.classes[:, 0] != data.labels).mean()


def test_the_bound_on_wrong_labels_is_no_surer_than_the_images_it_is_counted_on() -> None:
    """Where all anchors have another label, the share of all images with another one is left: an estimate itself."""
    labels = np.arange(200) % 2
    wrong = np.arange(200) < 40
    sure = np.where(wrong, 0.91, 0.9)  # of the class that captions suggest
    first = np.where((labels == 0) ^ wrong, sure, 1 - sure)
    given = replace(guesses(np.stack([first, 1 - first], 1).tolist(), labels.tolist()), fitted=160)
    share = estimate_noise(labels, given, 2).share
    assert share.value == 0.2 and share.low < 0.16 and share.high > 0.24, share


def test_wrong_labels_are_spread_as_images_show_beyond_chance() -> None:
    random = np.random.default_rng(0)
    true = np.repeat(np.arange(6), 300)
    wrong = random.random(1800) < 0.3
    even = spread_of(true, np.where(wrong, (true + random.integers(1, 6, 1800)) % 6, true), 6)
    following = spread_of(true, np.where(wrong, (true + 1) % 6, true), 6)
    assert np.abs(even[~np.eye(6, dtype=bool)] - 1 / 5).max() < 0.06
    assert following[np.arange(6), (np.arange(6) + 1) % 6].min() > 0.9
    for spread in (even, following, spread_of(true, true, 6), spread_of(np.array([0]), np.array([1]), 2)):
        assert np.allclose(spread.sum(1), 1) and not spread.diagonal().any()


def guesses(shares: list[list[float]], labels: list[int]) -> Guesses:
    table = np.array(shares, np.float32)
    order = np.argsort(-table, 1)
    own = table[np.arange(len(labels)), labels]
    fold = np.zeros(len(labels), np.int64)
    return Guesses(order.astype(np.int32), np.take_along_axis(table, order, 1), own, fold, 1.0, 5, 1, 0.0)


def test_the_confident_joint_is_that_of_the_paper() -> None:
    labels = [0, 0, 1, 1, 1]
    given = guesses([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4], [0.45, 0.55]], labels)
    # Thresholds: the means 0.55 of class 0 and 0.55 of class 1; 0.55 passes that of class 1 in float32 too.
    assert confident_classes(np.array(labels), given, 2).tolist() == [0, 1, 1, 0, 1]


def test_anchors_are_the_surest_of_each_predicted_class() -> None:
    given = guesses([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.45, 0.55]], [0] * 5)
    assert anchor_rows(given, 2, 0.5).tolist() == [0, 1, 3]


def test_classes_of_few_images_are_not_judged() -> None:
    data, _ = embedded(0.2)
    labels = data.labels.copy()
    labels[labels == 4] = 3
    labels[:2] = 4  # two images of a class that looks like none
    result = learn(Embedded(data.table, data.rows, labels, CLASSES), silent)
    few = np.isin(result.suspects.rows, [0, 1])
    assert (result.suspects.wrong[few] == 0).all() and result.noise.by_class[4] is None
    joint = result.noise.joint
    assert joint[4, 4] == joint[4].sum() == joint[:, 4].sum() == 2, "nor suspected, nor anybody's likeliest class"
    own = confident_classes(labels[2:], _rows_of(result.guesses, np.arange(2, len(labels))), CLASSES)
    assert result.noise.confident.value == (own != labels[2:]).mean()


@pytest.mark.parametrize("many", [0, 20])
def test_right_labels_of_classes_of_few_images_do_not_look_wrong(many: int) -> None:
    """Two images each of 150 classes, and one class of `many`: models have seen one image of a class, or none."""
    random = np.random.default_rng(0)
    labels = np.concatenate([np.repeat(np.arange(150), 2), np.full(many, 150), [151]])
    table = (2 * np.eye(152)[labels] + 0.25 * random.normal(size=(len(labels), 152))).astype(np.float32)
    noise = learn(Embedded(table, np.arange(len(labels)), labels, 152), silent).noise
    assert (noise.anchors > 0) is (many > 0) and noise.share.value == 0 and noise.share.low < 1e-9
    assert (noise.share.high == 1) is (many == 0), "nothing is known"
    assert ("not known" in estimate(noise)) is (many == 0)


def test_a_store_of_half_precision_and_rows_in_any_order(tmp_path: Path) -> None:
    data, _ = embedded(0.2)
    order = np.random.default_rng(1).permutation(len(data))
    place = np.argsort(order)
    np.save(tmp_path / "table.npy", data.table[order].astype(np.float16))
    table = np.load(tmp_path / "table.npy", mmap_mode="r")
    first, second = (learn(each, silent) for each in (data, Embedded(table, place, data.labels, CLASSES)))
    same = first.guesses.classes[:, 0] == second.guesses.classes[:, 0]
    assert same.mean() > 0.99 and abs(first.noise.share.value - second.noise.share.value) < 0.02
