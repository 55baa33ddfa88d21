"""What stored predictions say of classes and images, against plain loops."""

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from eval.jobs.results import read_table
from eval.report.__main__ import write_report
from eval.report.classes import confusion_csv, confusions
from eval.report.content import Report
from eval.report.numbers import build_report
from tests.eval.sample_results import Job, finish

CLASSES, IMAGES = 5, 120


def drawn(out: Path, models: tuple[str, ...] = ("base", "mine")) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Labels and predictions of two seeds of two draws, by model."""
    rng = np.random.default_rng(0)
    labels, found = rng.integers(0, CLASSES, IMAGES), {}
    for model in models:
        found[model] = labels, np.where(rng.random((2, 2, IMAGES)) < 0.6, labels, rng.integers(0, 3, (2, 2, IMAGES)))
        for seed in range(2):
            finish(out, Job(model, seed=seed), labels, found[model][1][seed])
    return found


def report(out: Path) -> Report:
    return build_report(out, read_table(out), None, lambda what, done, of: None)


def test_confusions_are_counted_over_seeds_and_draws(tmp_path: Path) -> None:
    expected = drawn(tmp_path)
    found = report(tmp_path).confusions
    assert [(each.protocol, each.task, each.model) for each in found] == [
        ("linear", "digits", name) for name in expected
    ]
    for each in found:
        labels, predictions = expected[each.model]
        matrix = np.zeros((CLASSES, CLASSES))
        for row in predictions.reshape(4, IMAGES):
            for label, predicted in zip(labels, row, strict=True):
                matrix[label, predicted] += 1 / 4
        dense = np.zeros_like(matrix)
        dense[each.labels, each.predicted] = each.images
        assert dense == pytest.approx(matrix) and each.images.min() > 0 and each.classes == CLASSES
        assert each.right == pytest.approx((predictions == labels).mean((0, 1)))
        recalls = np.diag(matrix) / matrix.sum(1)
        worst, right, taken = each.hardest()
        assert (worst, right) == (int(recalls.argmin()), pytest.approx(100 * recalls.min()))
        wrong = matrix[worst].copy()
        wrong[worst] = 0
        assert taken is not None and wrong[taken] == wrong.max()


def test_files_hold_every_pair_and_every_image(tmp_path: Path) -> None:
    expected = drawn(tmp_path)
    write_report(tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "confusion.csv").read_text())))
    for model, (labels, predictions) in expected.items():
        own = [row for row in rows if row["model"] == model]
        assert sum(float(row["images"]) for row in own) == pytest.approx(IMAGES)
        right = sum(float(row["images"]) for row in own if row["class"] == row["predicted"])
        assert right == pytest.approx((predictions == labels).mean() * IMAGES)
        images = [row for row in pq.read_table(tmp_path / "images.parquet").to_pylist() if row["model"] == model]
        assert [row["image"] for row in images] == list(range(IMAGES))
        assert [row["class"] for row in images] == labels.tolist()
        assert [row["right"] for row in images] == pytest.approx((predictions == labels).mean((0, 1)).tolist())


def test_the_page_draws_few_classes_and_names_the_hardest(tmp_path: Path) -> None:
    drawn(tmp_path)
    many = np.arange(200) % 40
    finish(tmp_path, Job("base", "birds"), many, np.where(many == 7, 8, many))
    page = write_report(tmp_path)[-1].read_text()
    assert page.count("Confusion matrix of ") == 2, "not of 40 classes"
    row = next(
        line for line in page.splitlines() if 'data-task="birds"' in line and "<td" in line and ">7</td>" in line
    )
    assert ">0.00</td>" in row and ">8</td>" in row


def test_shades_are_shares_of_the_true_class(tmp_path: Path) -> None:
    labels = np.repeat([0, 1, 2], 9)
    predictions = labels.copy()
    predictions[9:13] = 2
    finish(tmp_path, Job(), labels, predictions)
    (found,) = report(tmp_path).confusions
    assert found.shades() == {1.0: "M0 0h1v1h-1zM2 2h1v1h-1z", 0.44: "M2 1h1v1h-1z", 0.56: "M1 1h1v1h-1z"}


def test_what_has_no_predictions_is_left_out(tmp_path: Path) -> None:
    drawn(tmp_path)
    (tmp_path / "predictions" / f"{Job('mine', seed=0).key}.npy").write_bytes(b"x")
    (tmp_path / "predictions" / f"{Job('mine', seed=1).key}.npy").unlink()
    assert [each.model for each in report(tmp_path).confusions] == ["base"]
    other = np.arange(IMAGES) % CLASSES
    np.save(tmp_path / "predictions" / f"{Job('base', seed=1).key}.npy", np.stack([other, other]).astype(np.int32))
    assert not report(tmp_path).confusions, "its seeds were tested on different images"
    assert confusion_csv(confusions(tmp_path, {})).count("\n") == 1
    write_report(tmp_path)
    assert "<summary>Classes</summary>" not in (tmp_path / "report.html").read_text()
