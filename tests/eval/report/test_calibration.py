"""Reliability diagrams against plain loops, and words where there is none."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from eval.metrics import BINS, calibration_error
from eval.report.__main__ import write_report
from eval.report.calibration import Reliability
from eval.report.charts import reliability_diagram
from tests.eval.sample_results import LABELS, Job, build, finish, wrong

LINEAR, FEW = Job(), Job(protocol="few_shot")


def drawn(out: Path, draws: int = 1, seeds: int = 2) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Confidence and right answers of each seed, (draws, n), of one model."""
    rng = np.random.default_rng(0)
    confidence, right = [], []
    for seed in range(seeds):
        sure = rng.random((draws, len(LABELS))).astype(np.float32)
        predictions = np.where(rng.random(sure.shape) < sure, LABELS, (LABELS + 1) % 4)
        finish(out, Job(seed=seed), LABELS, predictions, confidence=sure)
        confidence.append(sure)
        right.append(predictions == LABELS)
    return confidence, right


@pytest.mark.parametrize("draws", [1, 3])
def test_a_diagram_equals_a_loop(tmp_path: Path, draws: int) -> None:
    confidence, right = drawn(tmp_path, draws)
    (found,) = build(tmp_path).examples.reliabilities
    assert found.images.sum() == pytest.approx(len(LABELS))
    pairs = [pair for side in zip(confidence, right, strict=True) for pair in zip(*map(np.ravel, side), strict=True)]
    for number in range(BINS):
        inside = [pair for pair in pairs if number / BINS < pair[0] <= (number + 1) / BINS]
        assert found.images[number] == pytest.approx(len(inside) / 2 / draws)
        assert found.confidence[number] == pytest.approx(np.mean([sure for sure, _ in inside]))
        assert found.accuracy[number] == pytest.approx(np.mean([each for _, each in inside]))
    errors = [
        np.mean([calibration_error(*draw) for draw in zip(*each, strict=True)])
        for each in zip(confidence, right, strict=True)
    ]
    assert found.ece == pytest.approx(np.mean(errors)) and found.ece_std == pytest.approx(np.std(errors, ddof=1))
    assert found.means() == pytest.approx((100 * np.mean(confidence), 100 * np.mean(right)), rel=1e-5)


def test_a_calibrated_model_has_no_gaps_and_empty_bins_no_bars(tmp_path: Path) -> None:
    """Three quarters of predictions with confidence 3/4 are right."""
    finish(tmp_path, LINEAR, LABELS, wrong(0, 50), confidence=np.full(len(LABELS), 0.75))
    (found,) = build(tmp_path).examples.reliabilities
    assert found.ece == pytest.approx(0, abs=1e-9) and found.ece_std is None
    assert np.count_nonzero(found.images) == 1 and np.isnan(found.accuracy).sum() == BINS - 1
    paths = reliability_diagram(found)
    assert [path.count("M") for path in paths] == [1, 1, 1] and "v0.0h" in paths.gaps
    assert paths.bars.startswith("M73.3 25.0h6.2v75.0")


def test_the_page_draws_each_with_its_numbers_in_words(sample: Path, tmp_path: Path) -> None:
    page = write_report(sample, out=tmp_path)[-1].read_text()
    assert page.count('aria-label="Reliability diagram of ') == 9, "three models on three tasks by linear"
    assert page.count("<summary>Calibration</summary>") == 1, "knn of the sample has no probabilities"
    report = build(sample)
    found: Reliability = report.examples.reliabilities[0]
    confidence, accuracy = found.means()
    words = f"ECE {found.ece:.2f} ± {found.ece_std:.2f}, confidence {confidence:.2f}, accuracy {accuracy:.2f} %"
    assert page.count(words) == 2, "in the caption and as the picture's text"
    rows = list(csv.DictReader(io.StringIO((tmp_path / "reliability.csv").read_text())))
    own = [row for row in rows if (row["task"], row["model"]) == (found.task, found.model)]
    assert [float(row["images"]) for row in own] == found.images.tolist()
    assert [row["accuracy"] == "" for row in own] == np.isnan(found.accuracy).tolist()
    section = next(section for section in report.sections if section.label == "linear")
    for each in report.examples.reliabilities:
        assert each.ece == pytest.approx(section.others["ece"][each.task, each.model].mean)


def test_what_has_no_diagram_says_why(tmp_path: Path) -> None:
    finish(tmp_path, LINEAR, LABELS, LABELS, {"ece": 1.5})
    finish(tmp_path, FEW, LABELS, LABELS)
    report = build(tmp_path)
    old, never = report.notes[-2:]
    assert not report.examples.reliabilities and len(report.examples.confusions) == 2
    assert old.startswith("linear was evaluated before probabilities were kept") and "(base on digits)" in old
    assert never.startswith("few_shot gives no probabilities") and "(base on digits)" in never
    for file in write_report(tmp_path):
        text = file.read_text()
        assert "Reliability diagram" not in text and "<summary>Calibration</summary>" not in text
        assert ("few_shot gives no probabilities" in text) == (file.suffix in (".md", ".html"))


def test_damaged_probabilities_are_told_and_cost_only_the_diagram(tmp_path: Path) -> None:
    for model in ("base", "mine"):
        finish(tmp_path, Job(model), LABELS, LABELS, {"ece": 0.0}, confidence=np.ones(len(LABELS)))
    (tmp_path / "confidence" / f"{Job('mine').key}.npy").write_bytes(b"x")
    report = build(tmp_path)
    assert [each.model for each in report.examples.reliabilities] == ["base"] and len(report.examples.pairs) == 1
    assert any(f"confidence/{Job('mine').key}.npy cannot be read" in note for note in report.notes)
