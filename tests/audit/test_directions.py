import numpy as np

from tt_ray.audit.directions import directions
from tt_ray.audit.out_of_fold import Embedded


def measure(table: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    found = directions(Embedded(table.astype(np.float32), np.arange(len(table)), labels, int(labels.max()) + 1))
    return found.effective, found.within, found.left


def test_the_share_within_classes_and_effective_dimensions_are_those_of_the_covariance() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 3000)
    centres = np.array([[4, 0, 0, 0], [0, 4, 0, 0], [-4, -4, 0, 0]])
    table = centres[labels] + random.normal(size=(3000, 4)) * [1, 1, 2, 0.5] + 100
    effective, within, left = measure(table, labels)
    values = np.linalg.eigvalsh(np.cov(table.T))
    assert abs(effective - values.sum() ** 2 / (values**2).sum()) < 0.01
    inside = np.array([1, 1, 4, 0.25])
    assert abs(within - inside.sum() ** 2 / (inside**2).sum()) < 0.1
    assert abs(left - inside.sum() / np.trace(np.cov(table.T))) < 0.02


def test_captions_that_tell_the_class_alone_leave_nothing() -> None:
    labels = np.arange(300) % 3
    _, within, left = measure(np.eye(5)[labels], labels)
    assert left < 1e-6 and within >= 0


def test_class_means_of_few_images_take_no_part_of_the_rest_with_them() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(400) // 2  # two images a class, and nothing that classes have in common
    _, _, left = measure(random.normal(size=(400, 50)), labels)
    assert abs(left - 1) < 0.1
