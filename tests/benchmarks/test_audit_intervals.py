"""Coverage of the audit's interval: the recorded rows stand on the page, and toy sizes run."""

import json

import numpy as np

from benchmarks.audit import RESULTS, table
from benchmarks.audit_intervals import Sample, coverage, covered
from tests.pages import ROOT


def test_a_sample_is_counted_for_each_noise_whose_estimate_is_known() -> None:
    labels = np.arange(90) % 3
    eye = np.eye(3, dtype=np.float32)[labels]
    noise = np.random.default_rng(0).standard_normal((90, 3), np.float32)
    rows = list(covered(Sample("x", 3, eye + np.float32(0.1) * noise, labels), 0))
    (own, every) = coverage(rows)
    assert own["data"] == "x" and every == {**own, "data": "all"} and 2 <= own["cases"] <= 6
    assert 0 <= own["above"] <= 1 - own["inside"]


def test_the_figures_of_the_page_are_those_of_its_rows() -> None:
    rows = json.loads((RESULTS / "audit_intervals.json").read_text())
    assert table(rows) in (ROOT / "docs" / "audit.md").read_text()
    assert rows[-1]["data"] == "all" and rows[-1]["inside"] >= 0.95 and rows[-1]["above"] <= 0.05
