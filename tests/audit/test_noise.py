"""Wrong labels that are known: the estimate, the ranking, the probabilities, and clean labels that stay clean."""

from pathlib import Path

import numpy as np
import pytest

from tt_ray.audit.learning import Learned, learn
from tt_ray.audit.noise import anchor_rows, confident_classes
from tt_ray.audit.out_of_fold import Embedded, Guesses
from tt_ray.audit.words import estimate

CLASSES, DIM = 5, 16


def silent(*_: object) -> None:
    pass


def embedded(noise: float, overlap: float = 1.0, count: int = 1500) -> tuple[Embedded, np.ndarray]:
    """Gaussian classes that overlap, so that a model has mistakes of its own; and the true labels."""
    random = np.random.default_rng(0)
    clean = random.integers(0, CLASSES, count)
    centres = 3 * random.normal(size=(CLASSES, DIM)) / np.sqrt(DIM)
    table = (centres[clean] + overlap * random.normal(size=(count, DIM))).astype(np.float32)
    wrong = random.random(count) < noise
    labels = np.where(wrong, (clean + random.integers(1, CLASSES, count)) % CLASSES, clean)
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


@pytest.mark.parametrize("noise", [0.2, 0.5])
def test_suspects_are_wrong_labels_and_suggestions_right(
    noise: float, learned: dict[float, tuple[Learned, np.ndarray]]
) -> None:
    result, clean = learned[noise]
    suspects = result.suspects
    bad, hit = (result.data.labels != clean)[suspects.rows], suspects.suggestion == clean[suspects.rows]
    auc = np.cumsum(bad)[~bad].sum() / (bad.sum() * (~bad).sum())
    assert auc > 0.9
    listed, fixed = suspects.wrong >= 0.5, suspects.right >= 0.9
    assert bad[listed].mean() > 0.8 and hit[fixed].mean() > 0.9 and fixed.sum() > 20
    assert abs(suspects.wrong.mean() - noise) < 0.1, "probabilities add up to the estimate"
    assert (np.diff(suspects.wrong) <= 0).all() and sorted(suspects.rows) == list(range(len(clean)))
    assert (suspects.suggestion != result.data.labels[suspects.rows]).all()


def test_captions_of_other_images_know_nothing(learned: dict[float, tuple[Learned, np.ndarray]]) -> None:
    for result, _ in learned.values():
        assert result.guesses.shuffled < 0.4
        assert (result.guesses.classes[:, 0] == result.data.labels).mean() > result.guesses.shuffled


def guesses(shares: list[list[float]], labels: list[int]) -> Guesses:
    table = np.array(shares, np.float32)
    order = np.argsort(-table, 1)
    own = table[np.arange(len(labels)), labels]
    return Guesses(order.astype(np.int32), np.take_along_axis(table, order, 1), own, 1.0, 5, 1, 0.0)


def test_the_confident_joint_is_that_of_the_paper() -> None:
    labels = [0, 0, 1, 1, 1]
    given = guesses([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4], [0.45, 0.55]], labels)
    # Thresholds: the means 0.55 of class 0 and 0.55 of class 1; 0.55 passes that of class 1 in float32 too.
    assert confident_classes(np.array(labels), given, 2).tolist() == [0, 1, 1, 0, 1]


def test_anchors_are_the_surest_of_each_predicted_class() -> None:
    given = guesses([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.45, 0.55]], [0] * 5)
    assert anchor_rows(given, 0.5).tolist() == [0, 1, 3]


def test_classes_of_few_images_are_not_judged() -> None:
    data, _ = embedded(0.2)
    labels = data.labels.copy()
    labels[labels == 4] = 3
    labels[:2] = 4  # two images of a class that looks like none
    result = learn(Embedded(data.table, data.rows, labels, CLASSES), silent)
    few = np.isin(result.suspects.rows, [0, 1])
    assert (result.suspects.wrong[few] == 0).all() and result.noise.by_class[4] is None


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
