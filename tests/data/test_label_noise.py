"""Label noise and stratified parts: exact shares, no dependence on the order of rows."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from tt_ray.data.label_noise import replace_labels, stratified
from tt_ray.terminal.errors import UserError

COUNT, CLASSES = 5000, 5
IDS = pa.array([f"vendor/{i}.jpg" for i in range(COUNT)])
LABELS = np.arange(COUNT, dtype=np.int64) % CLASSES


@pytest.mark.parametrize("share", [0.0, 0.1234, 0.5, 1.0])
def test_exactly_the_share_is_replaced_by_another_class(share: float) -> None:
    noisy = replace_labels(LABELS, IDS, CLASSES, share, seed=0)
    assert (noisy != LABELS).sum() == round(share * COUNT)
    assert noisy.dtype == np.int64 and noisy.min() >= 0 and noisy.max() < CLASSES
    assert (np.arange(COUNT) % CLASSES == LABELS).all(), "the input was changed"


def test_other_classes_are_equally_likely() -> None:
    noisy = replace_labels(LABELS, IDS, CLASSES, 1.0, seed=3)
    counts = np.bincount((noisy - LABELS) % CLASSES, minlength=CLASSES)
    assert counts[0] == 0
    assert abs(counts[1:] - COUNT / 4).max() < 5 * (COUNT * 3 / 16) ** 0.5  # five standard deviations


def test_pairs_are_the_next_class_of_the_same_images() -> None:
    noisy, pair = (replace_labels(LABELS, IDS, CLASSES, 0.4, 0, kind) for kind in ("symmetric", "pair"))
    assert ((noisy != LABELS) == (pair != LABELS)).all()
    assert ((pair - LABELS) % CLASSES == (pair != LABELS)).all()


def test_follows_ids_and_not_the_order_of_rows() -> None:
    order = np.random.default_rng(0).permutation(COUNT)
    noisy = replace_labels(LABELS, IDS, CLASSES, 0.5, seed=0)
    assert (replace_labels(LABELS[order], IDS.take(pa.array(order)), CLASSES, 0.5, seed=0) == noisy[order]).all()


def test_seed_changes_the_images_and_a_smaller_share_is_part_of_a_larger() -> None:
    half = replace_labels(LABELS, IDS, CLASSES, 0.5, seed=0)
    other = replace_labels(LABELS, IDS, CLASSES, 0.5, seed=1)
    assert 0.4 < np.mean((half != LABELS) == (other != LABELS)) < 0.6
    tenth = replace_labels(LABELS, IDS, CLASSES, 0.1, seed=0)
    changed = tenth != LABELS
    assert (half[changed] == tenth[changed]).all()


def test_is_the_same_in_every_version() -> None:
    """A changed hash would make reported noise runs irreproducible."""
    noisy = replace_labels(np.zeros(8, np.int64), pa.array(list("abcdefgh")), 4, 0.5, seed=0)
    assert noisy.tolist() == [0, 0, 2, 1, 1, 2, 0, 0]


def test_one_class_cannot_be_noisy() -> None:
    assert (replace_labels(LABELS * 0, IDS, 1, 0.0, seed=0) == 0).all()
    with pytest.raises(UserError, match="data.label_noise needs another class"):
        replace_labels(LABELS * 0, IDS, 1, 0.5, seed=0)


# Classes of 5 to 2500 images.
UNEVEN = np.repeat(np.arange(CLASSES), [5, 95, 900, 1500, 2500])


@pytest.mark.parametrize("count", [0, 1, 4, 5, 77, 2500, 5000])
@pytest.mark.parametrize("labels", [LABELS, UNEVEN], ids=["even", "uneven"])
def test_a_part_is_exact_and_alike_in_each_class(count: int, labels: np.ndarray) -> None:
    rows = stratified(labels, IDS, count, 0, "subset")
    assert len(np.unique(rows)) == count and (np.diff(rows) > 0).all()
    counts, sizes = np.bincount(labels[rows], minlength=CLASSES), np.bincount(labels)
    assert (counts >= np.minimum(1, count // CLASSES)).all(), "a class has none while another has two"
    # As large a share of each class, to within an image of it and what the small classes' first images take.
    assert (np.abs(counts - count * sizes / COUNT) <= 1 + CLASSES * sizes / COUNT).all()


def test_a_smaller_part_is_within_a_larger_one() -> None:
    parts = [set(stratified(UNEVEN, IDS, count, 0, "subset")) for count in (3, 40, 41, 1000, 4000)]
    assert all(small < large for small, large in itertools.pairwise(parts))


def test_a_part_follows_ids_seed_and_purpose() -> None:
    order = np.random.default_rng(0).permutation(COUNT)
    rows = stratified(UNEVEN, IDS, 1000, 0, "subset")
    moved = stratified(UNEVEN[order], IDS.take(pa.array(order)), 1000, 0, "subset")
    assert set(order[moved]) == set(rows)
    for other in (stratified(UNEVEN, IDS, 1000, 1, "subset"), stratified(UNEVEN, IDS, 1000, 0, "unlabelled")):
        # Independent parts of a fifth have a 25th in common.
        assert 120 < len(np.intersect1d(rows, other)) < 290


def test_a_part_is_the_same_in_every_version() -> None:
    assert stratified(np.array([0, 0, 0, 1, 1, 1]), list("abcdef"), 3, 0, "subset").tolist() == [0, 1, 4]
