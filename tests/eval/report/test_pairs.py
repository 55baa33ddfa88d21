"""Which images a model names right and the baseline does not, against plain loops and scipy's tests."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from eval.report.__main__ import write_report
from eval.report.kept import most_frequent
from eval.report.pairs import sign_test
from tests.eval.sample_results import LABELS, Job, build, finish, wrong


def test_one_seed_is_mcnemars_table(tmp_path: Path) -> None:
    finish(tmp_path, Job("base"), LABELS, wrong(0, 30))
    finish(tmp_path, Job("mine"), LABELS, wrong(20, 38))
    (pair,) = build(tmp_path).examples.pairs
    assert pair.counts() == [200, 162, 10, 20, 8], "images, both right, both wrong, better, worse"
    assert pair.p == pytest.approx(binomtest(8, 28).pvalue) and pair.p < 0.05
    (reverse,) = build(tmp_path, "mine").examples.pairs
    assert reverse.counts() == [200, 162, 10, 8, 20] and reverse.p == pair.p


@pytest.mark.parametrize("seeds", [2, 5])
def test_more_seeds_of_the_same_predictions_make_nothing_surer(tmp_path: Path, seeds: int) -> None:
    """Images count, not predictions: pooling these would make p small."""
    for seed in range(seeds):
        finish(tmp_path, Job("base", seed=seed), LABELS, wrong(0, 9))
        finish(tmp_path, Job("mine", seed=seed), LABELS, wrong(6, 10))
    (pair,) = build(tmp_path).examples.pairs
    assert pair.counts() == [200, 190, 3, 6, 1] and pair.p == pytest.approx(binomtest(1, 7).pvalue)
    assert pair.seeds == tuple(range(seeds))


def test_seeds_and_draws_are_averaged_by_image_over_those_that_both_have(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    right: dict[str, list[np.ndarray]] = {"base": [], "mine": []}
    for model, seeds in (("base", (0, 1, 2)), ("mine", (1, 2, 3))):
        for seed in seeds:
            predictions = np.where(rng.random((3, 200)) < 0.6, LABELS, (LABELS + 1) % 4)
            finish(tmp_path, Job(model, seed=seed), LABELS, predictions)
            if seed in (1, 2):
                right[model] += list(predictions == LABELS)
    (pair,) = build(tmp_path).examples.pairs
    shares = {model: [sum(int(draw[row]) for draw in own) for row in range(200)] for model, own in right.items()}
    signs = [int(np.sign(mine - base)) for mine, base in zip(shares["mine"], shares["base"], strict=True)]
    assert pair.seeds == (1, 2) and pair.counts()[3:] == [signs.count(1), signs.count(-1)]


def test_no_pair_without_a_common_seed_or_the_same_images(tmp_path: Path) -> None:
    finish(tmp_path, Job("base"), LABELS, LABELS)
    finish(tmp_path, Job("late", seed=7), LABELS, LABELS)
    finish(tmp_path, Job("other"), LABELS[::-1], LABELS)
    finish(tmp_path, Job("alone", "pets"), LABELS, LABELS)
    examples = build(tmp_path).examples
    assert not examples.pairs and len(examples.confusions) == 4


def test_every_image_that_differs_is_in_the_table_by_its_name(tmp_path: Path) -> None:
    names = ["cat", "dog, big", "<b>", "é"]
    finish(tmp_path, Job("base"), LABELS, wrong(0, 3), classes=names)
    finish(tmp_path, Job("mine"), LABELS, wrong(2, 5), classes=names)
    write_report(tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "differing.csv").read_text())))
    assert [(row["image"], row["id"], row["class_name"]) for row in rows] == [
        (str(image), f"digits/{image}.png", names[LABELS[image]]) for image in (0, 1, 3, 4)
    ]
    assert [(row["baseline_right"], row["right"]) for row in rows] == [("0.0", "1.0")] * 2 + [("1.0", "0.0")] * 2
    assert [row["predicted"] for row in rows] == [str(each) for each in wrong(2, 5)[[0, 1, 3, 4]]]
    page = (tmp_path / "report.html").read_text()
    assert 'href="differing.csv"' in page and "<summary>Images</summary>" in page
    row = next(line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| digits | mine"))
    assert [cell.strip() for cell in row.split("|")[3:-1]] == ["200", "195", "1", "2", "2", "1"]


def test_the_sign_test_is_exact_for_any_numbers() -> None:
    rng = np.random.default_rng(0)
    better, worse = rng.integers(0, 40, 50), rng.integers(0, 40, 50)
    expected = [binomtest(int(a), int(a + b)).pvalue if a + b else 1.0 for a, b in zip(better, worse, strict=True)]
    assert sign_test(better, worse) == pytest.approx(expected)
    assert sign_test(np.array(0), np.array(0)) == 1 and sign_test(np.array(3), np.array(3)) == 1


def test_the_most_frequent_prediction_and_the_first_of_equals() -> None:
    assert most_frequent(np.int32([[1, 2, 3], [2, 2, 4], [2, 1, 5]])).tolist() == [2, 2, 3]
