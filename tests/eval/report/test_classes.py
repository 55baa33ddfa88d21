"""What stored predictions say of classes and images, against plain loops."""

import csv
import io
from html import escape
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from eval.report.__main__ import write_report
from eval.report.classes import confusion_csv
from tests.eval.sample_results import Job, build, finish

CLASSES, IMAGES = 5, 120


def drawn(
    out: Path, models: tuple[str, ...] = ("base", "mine"), classes: tuple[str, ...] = ()
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Labels and predictions of two seeds of two draws, by model."""
    rng = np.random.default_rng(0)
    labels, found = rng.integers(0, CLASSES, IMAGES), {}
    for model in models:
        found[model] = labels, np.where(rng.random((2, 2, IMAGES)) < 0.6, labels, rng.integers(0, 3, (2, 2, IMAGES)))
        for seed in range(2):
            finish(out, Job(model, seed=seed), labels, found[model][1][seed], classes=classes)
    return found


def test_confusions_are_counted_over_seeds_and_draws(tmp_path: Path) -> None:
    expected = drawn(tmp_path)
    found = build(tmp_path).examples.confusions
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
    (found,) = build(tmp_path).examples.confusions
    assert found.shades() == {1.0: "M0 0h1v1h-1zM2 2h1v1h-1z", 0.44: "M2 1h1v1h-1z", 0.56: "M1 1h1v1h-1z"}


NAMES = ("zero", "one", "zwei", "<b>3</b>", "fo,ur")


def test_classes_equal_loops_and_keep_their_names(tmp_path: Path) -> None:
    expected = drawn(tmp_path, classes=NAMES)
    write_report(tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "classes.csv").read_text())))
    assert [(row["model"], row["class"], row["class_name"]) for row in rows] == [
        (model, str(number), name) for model in expected for number, name in enumerate(NAMES)
    ]
    base = expected["base"][1].reshape(4, IMAGES)
    for row in rows:
        labels, predictions = expected[row["model"]]
        flat, number = predictions.reshape(4, IMAGES), int(row["class"])
        mine = np.flatnonzero(labels == number)
        assert int(row["images"]) == len(mine)
        assert float(row["accuracy"]) == pytest.approx(100 * np.mean([flat[:, i] == number for i in mine]))
        named = [labels[i] for draw in flat for i in range(IMAGES) if draw[i] == number]
        assert float(row["precision"]) == pytest.approx(100 * np.mean([label == number for label in named]))
        if row["model"] == "base":
            assert row["difference"] == row["better"] == row["p_holm"] == row["significant"] == ""
            continue
        gains = [int((flat[:, i] == number).sum()) - int((base[:, i] == number).sum()) for i in mine]
        assert float(row["difference"]) == pytest.approx(100 * np.mean(gains) / 4)
        assert (int(row["better"]), int(row["worse"])) == (sum(g > 0 for g in gains), sum(g < 0 for g in gains))
        assert float(row["p_holm"]) >= binomtest(int(row["better"]), sum(g != 0 for g in gains)).pvalue - 1e-9
    page = (tmp_path / "report.html").read_text()
    assert all(page.count(f">{escape(name)}</td>") >= 2 for name in NAMES) and "<b>3</b>" not in page
    images = pq.read_table(tmp_path / "images.parquet").to_pylist()
    assert [row["class_name"] for row in images] == [NAMES[row["class"]] for row in images]
    assert images[1]["id"] == "digits/1.png" and images[0]["confidence"] is None


def test_a_class_that_one_model_never_names_is_marked_and_no_other(tmp_path: Path) -> None:
    labels = np.arange(200) % 4
    finish(tmp_path, Job("base"), labels, labels)
    finish(tmp_path, Job("mine"), labels, np.where(labels == 2, 1, labels))
    ((_, base), (_, mine)) = build(tmp_path).examples.shown_classes()
    assert [row.mark for row in base] == [0] * 4 and [row.difference for row in base] == [None] * 4
    assert [(row.number, row.difference, row.mark) for row in mine] == [
        (2, -100.0, -1),
        (0, 0, 0),
        (1, 0, 0),
        (3, 0, 0),
    ]
    assert mine[0].precision is None and mine[2].precision == 50 and mine[0].name == "2"


def test_of_many_classes_those_that_lost_and_gained_most_are_shown(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(60), 60)
    places = np.tile(np.arange(60), 60)
    finish(tmp_path, Job("base"), labels, np.where(places < 30, labels, (labels + 1) % 60))
    finish(tmp_path, Job("mine"), labels, np.where(places < labels, labels, (labels + 1) % 60))
    (_, (_, shown)) = build(tmp_path).examples.shown_classes()
    assert [row.number for row in shown] == [*range(10), *range(50, 60)]
    assert shown[0].difference == -50 and shown[-1].difference == pytest.approx(100 * 29 / 60)


def test_results_that_are_older_than_names_are_reported_by_number(tmp_path: Path) -> None:
    drawn(tmp_path, classes=NAMES)
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    (row, *_) = csv.DictReader(io.StringIO((write_report(tmp_path)[0].parent / "classes.csv").read_text()))
    assert row["class"] == "0" and row["class_name"] == ""
    assert pq.read_table(tmp_path / "images.parquet")["id"].null_count == 2 * IMAGES


def test_what_has_no_predictions_is_left_out(tmp_path: Path) -> None:
    drawn(tmp_path)
    (tmp_path / "predictions" / f"{Job('mine', seed=0).key}.npy").write_bytes(b"x")
    (tmp_path / "predictions" / f"{Job('mine', seed=1).key}.npy").unlink()
    assert [each.model for each in build(tmp_path).examples.confusions] == ["base"]
    other = np.arange(IMAGES) % CLASSES
    np.save(tmp_path / "predictions" / f"{Job('base', seed=1).key}.npy", np.stack([other, other]).astype(np.int32))
    assert not build(tmp_path).examples.confusions, "its seeds were tested on different images"
    assert confusion_csv(()).count("\n") == 1
    write_report(tmp_path)
    assert "<summary>Classes</summary>" not in (tmp_path / "report.html").read_text()
