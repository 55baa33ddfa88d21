"""Means, differences, ranks and notes of a report, against plain loops."""

import csv
import dataclasses
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from eval.jobs.results import write_result
from eval.report.__main__ import write_report
from eval.report.numbers import doubts
from eval.report.text import summary, to_csv, to_latex, to_markdown
from tests.eval.sample_results import LABELS, Job, build, fail, finish, score, wrong
from tt_ray.compare.table import arm_figure
from tt_ray.terminal.errors import UserError


def test_values_are_those_of_plain_loops(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 150)
    scores: dict[tuple[str, str], list[float]] = {}
    for model in ("base", "mine"):
        for seed in range(3):
            predictions = np.where(rng.random((2, 150)) < 0.7, labels, 0)
            finish(tmp_path, Job(model, "a", seed=seed, metric="mean_per_class"), labels, predictions)
            for metric, value in score(labels, predictions).items():
                scores.setdefault((model, metric), []).append(value)
    section = build(tmp_path).sections[0]
    assert section.metric("a") == "mean_per_class" and set(section.others) == {"top1"}
    for model in ("base", "mine"):
        for cell, metric in (
            (section.cells["a", model], "mean_per_class"),
            (section.others["top1"]["a", model], "top1"),
        ):
            assert np.isclose(cell.mean, np.mean(scores[model, metric]))
            assert cell.std is not None and np.isclose(cell.std, np.std(scores[model, metric], ddof=1))
            assert cell.seeds == (0, 1, 2) and cell.n == 150
    found = section.cells["a", "mine"].difference
    assert found is not None and found.interval is not None
    assert np.isclose(found.value, section.cells["a", "mine"].mean - section.cells["a", "base"].mean)
    assert found.interval.low < found.value < found.interval.high


def test_equal_predictions_do_not_differ_and_share_their_rank(tmp_path: Path) -> None:
    for model in ("base", "same"):
        finish(tmp_path, Job(model), LABELS, wrong(0, 20))
    section = build(tmp_path).sections[0]
    cell = section.cells["digits", "same"]
    assert cell.difference is not None and cell.difference.interval == (0.0, 0.0, 0)
    assert cell.difference.value == 0 and cell.difference.mark == 0 and cell.std is None
    assert section.rank("base") == section.rank("same") == 1.5


@pytest.mark.parametrize(("mended", "mark"), [(30, 1), (5, 0)])
def test_marks_need_an_interval_without_0_and_enough_images(tmp_path: Path, mended: int, mark: int) -> None:
    finish(tmp_path, Job("base"), LABELS, wrong(0, 50))
    finish(tmp_path, Job("better"), LABELS, wrong(mended, 50))
    difference = build(tmp_path).sections[0].cells["digits", "better"].difference
    assert difference is not None and difference.interval is not None and difference.interval.low > 0
    assert difference.mark == mark
    reverse = build(tmp_path, "better").sections[0].cells["digits", "base"].difference
    assert reverse is not None and reverse.mark == -mark and reverse.value == -difference.value


def test_a_missing_result_is_a_dash_and_counts_for_nobody(tmp_path: Path) -> None:
    for task, ends in {"a": (20, 10, 30), "b": (40, 30, 20), "c": (30, 20, 10)}.items():
        for model, end in zip(("base", "half", "whole"), ends, strict=True):
            if (model, task) != ("half", "b"):
                finish(tmp_path, Job(model, task), LABELS, wrong(0, end))
    report = build(tmp_path)
    section = report.sections[0]
    assert section.common == ("a", "c") and ("b", "half") not in section.cells
    assert [section.rank(model) for model in section.models] == [2.5, 1.5, 2.0]
    assert section.mean("half") == pytest.approx(92.5) and section.cells["b", "whole"].rank is None
    row = next(line for line in to_markdown(report).splitlines() if line.startswith("| b |"))
    assert [cell.strip() for cell in row.split("|")][5] == "—"
    rows = csv.DictReader(io.StringIO(to_csv(report)))
    assert [row["rank"] for row in rows if row["task"] == "b" and row["main_metric"] == "yes"] == ["", ""]


def test_a_baseline_without_a_result_leaves_the_others_without_difference(tmp_path: Path) -> None:
    finish(tmp_path, Job("base", "a"), LABELS, wrong(0, 10))
    for task in ("a", "b"):
        finish(tmp_path, Job("mine", task), LABELS, wrong(0, 20))
    finish(tmp_path, Job("mine", "a", "knn"), LABELS, wrong(0, 20))
    linear, knn = build(tmp_path).sections
    assert linear.cells["a", "mine"].difference is not None and linear.cells["b", "mine"].difference is None
    assert knn.models == ("mine",) and knn.cells["a", "mine"].difference is None
    write_report(tmp_path)
    rows = [row[:2] + row[-2:] for row in summary(build(tmp_path), knn)]
    assert rows == [["knn", "mine", "—", "—"]], "nothing was compared, so that none is better and none is worse"


def test_default_baseline_and_order_are_the_commands(tmp_path: Path) -> None:
    for model in ("deit", "aaa", "zzz"):
        command = "python -m eval --models zzz=runs/a deit=b --tasks digits"
        finish(tmp_path, Job(model, command=command), LABELS, LABELS)
    assert build(tmp_path).models == ("zzz", "deit", "aaa")
    assert build(tmp_path, "aaa").models == ("aaa", "zzz", "deit")
    finish(tmp_path, Job("base"), LABELS, LABELS)
    assert build(tmp_path).baseline == "base"


def test_one_name_for_several_things_is_taken_apart(tmp_path: Path) -> None:
    finish(tmp_path, Job("base", weights="aaaaaaaa1"), LABELS, LABELS)
    finish(tmp_path, Job("base", weights="bbbbbbbb2"), LABELS, LABELS)
    finish(tmp_path, Job("other", task_version=2, protocol_hash="cccccccc3"), LABELS, LABELS)
    report = build(tmp_path)
    assert report.models == ("base (aaaaaaaa)", "base (bbbbbbbb)", "other")
    with pytest.raises(UserError, match=r"'base' is the name of 2 models, .*: choose base \(aaaaaaaa\) or base \(bbbb"):
        build(tmp_path, "base")
    finish(tmp_path, Job("aaa", command="python -m eval --models aaa=a base=b"), LABELS, LABELS)
    assert build(tmp_path).baseline == "base (aaaaaaaa)", "whichever model commands name first"
    assert [section.label for section in report.sections] == ["linear (7f2fe580)", "linear (cccccccc)"]
    assert report.sections[1].tasks == ("digits (version 2)",)


def test_the_last_of_two_results_counts(tmp_path: Path) -> None:
    job = Job(created="2026-01-02")
    finish(tmp_path, job, LABELS, wrong(0, 20))
    rows = [dataclasses.replace(job.row("top1", 10.0, 200), created="2026-01-01")]
    write_result(tmp_path, "older", rows)
    report = build(tmp_path)
    assert report.sections[0].cells["digits", "base"].mean == 90 and "computed again" in report.notes[0]


def test_values_that_are_no_numbers_are_left_out_and_noted(tmp_path: Path) -> None:
    finish(tmp_path, Job(), LABELS, LABELS, {"cka": float("nan")})
    report = build(tmp_path)
    assert not report.sections[0].others.get("cka") and "no numbers" in report.notes[0]
    assert "nan" not in to_csv(report)


def test_failures_are_told_until_a_rerun_succeeds(tmp_path: Path) -> None:
    finish(tmp_path, Job("base"), LABELS, LABELS)
    fail(tmp_path, Job("mine"), "no folder runs/mine")
    nameless = dataclasses.replace(Job("mine").row("", float("nan"), 0, "failed", "no folder"), weights="", seed=1)
    write_result(tmp_path, "before-weights", [nameless])
    report = build(tmp_path)
    assert [(each.model, each.seed, each.reason) for each in report.failures] == [
        ("mine", 0, "no folder runs/mine"),
        ("mine", 1, "no folder"),
    ]
    for text in (to_markdown(report), to_csv(report), to_latex(report)):
        assert "no folder runs/mine" in text
    for seed in (0, 1):
        finish(tmp_path, Job("mine", seed=seed), LABELS, LABELS)
    assert not build(tmp_path).failures


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda out, job: (out / "predictions" / f"{job}.npy").unlink(), "kept no predictions"),
        (lambda out, job: (out / "predictions" / f"{job}.npy").write_bytes(b"x"), "cannot be read"),
        (
            lambda out, job: np.save(out / "predictions" / f"{job}.npy", np.int32([LABELS, LABELS])),
            "do not reproduce its top1",
        ),
        (
            lambda out, job: np.save(out / "predictions" / f"{job}.npy", np.int32([LABELS[::-1], wrong(0, 9)[::-1]])),
            "images",
        ),
    ],
)
def test_no_interval_comes_with_its_reason(tmp_path: Path, spoil: object, why: str) -> None:
    finish(tmp_path, Job("base"), LABELS, LABELS)
    finish(tmp_path, Job("mine"), LABELS, wrong(0, 9))
    assert callable(spoil)
    spoil(tmp_path, Job("mine").key)
    report = build(tmp_path)
    difference = report.sections[0].cells["digits", "mine"].difference
    assert difference is not None and difference.interval is None and difference.mark == 0
    assert difference.value == pytest.approx(-4.5) and any(why in note for note in report.notes)


def test_other_seeds_than_the_baselines_are_noted(tmp_path: Path) -> None:
    for model, seed in (("base", 0), ("base", 1), ("mine", 0)):
        finish(tmp_path, Job(model, seed=seed), LABELS, LABELS)
    assert "mine has seeds 0 against 0, 1 of base; the difference is over 0." in build(tmp_path).notes[0]
    finish(tmp_path, Job("late", seed=7), LABELS, LABELS)
    report = build(tmp_path)
    assert report.sections[0].cells["digits", "late"].difference is None
    assert any("late has seeds 7 against 0, 1 of base; there is no difference." in note for note in report.notes)


@pytest.mark.parametrize("missing", [(), (("base", 3),), (("mine", 0), ("base", 4))])
def test_differences_are_those_of_a_comparison(tmp_path: Path, missing: tuple[tuple[str, int], ...]) -> None:
    """python -m tt_ray.compare takes the same numbers for the same difference, seeds of one side alone included."""
    rng = np.random.default_rng(0)
    values: dict[str, dict[int, float]] = {"base": {}, "mine": {}}
    for model, seed in itertools.product(values, range(5)):
        if (model, seed) not in missing:
            predictions = wrong(0, int(rng.integers(20, 80)))
            finish(tmp_path, Job(model, seed=seed), LABELS, predictions)
            values[model][seed] = 100 * float((predictions == LABELS).mean())
    cell = build(tmp_path).sections[0].cells["digits", "mine"]
    by_arm = {(model, seed): value for model, own in values.items() for seed, value in own.items()}
    found = arm_figure(by_arm, "mine", "base")
    assert cell.difference is not None and cell.difference.value == pytest.approx(found.difference)
    assert (cell.mean, cell.std) == (pytest.approx(found.mean), pytest.approx(found.std))
    assert found.pairs == 5 - len(missing)
    assert cell.difference.interval is not None and cell.difference.interval.low <= cell.difference.value


def test_doubtful_fits_are_told() -> None:
    row = Job().row("top1", 90.0, 10)
    path = [[0.1, 80.0, 3], [1.0, 90.0, 4], [10.0, 85.0, 5]]
    fine = {"C": 1.0, "converged": True, "gradient": 1e-6, "path": path}
    chosen = [fine, {**fine, "C": 10.0}, {**fine, "converged": False, "gradient": 3e-4}, {"lr": 0.003, "at_edge": True}]
    changed = dataclasses.replace
    rows = [changed(row, job=str(seed), seed=seed, chosen=json.dumps(each)) for seed, each in enumerate(chosen)]
    assert doubts([rows[0], changed(row, job="x", chosen="[]"), changed(row, job="y", chosen="{")]) == []
    fit, edge, rate = doubts([*rows, *rows])
    assert "best C is the lowest or highest" in edge and "digits base seed 1 (C 10)" in edge
    assert "best rate is the lowest or highest" in rate and "digits base seed 3 (0.003)" in rate
    assert "not all fits converged" in fit and "digits base seed 2 (gradient 3.0e-04)" in fit
