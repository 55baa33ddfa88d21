"""Label noise: exact shares, no dependence on the order of rows."""

import numpy as np
import pyarrow as pa
import pytest

from tt_ray.data.corruption import replace_labels
from tt_ray.errors import UserError

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
