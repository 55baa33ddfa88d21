"""The benchmark of the audit at toy size; what it finds here means nothing."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import audit
from tests.pages import ROOT
from tt_ray.audit.verdict import measured


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["audit", *words])
    audit.main()


@pytest.mark.slow
def test_known_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(audit, "NOISES", ((0.2, "symmetric"),))
    out = tmp_path / "noise.json"
    run(monkeypatch, "noise", "--images", "300", "--storage", str(tmp_path), "--out", str(out))
    shapes, drawings = json.loads(out.read_text())
    assert all(row["low"] <= row["share"] <= row["high"] and row["auc"] > 0.8 for row in (shapes, drawings))
    assert "| data | wrong, % | confident joint |" in capsys.readouterr().out


def test_the_figures_of_the_page_are_those_of_its_rows() -> None:
    rows = json.loads((audit.RESULTS / "audit_noise.json").read_text())
    assert audit.noise_table(rows) in (ROOT / "docs" / "audit.md").read_text()


def test_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "scale.json"
    run(monkeypatch, "scale", "--rows", "2000", "--dim", "32", "--classes", "4", "--out", str(out))
    (row,) = json.loads(out.read_text())
    assert abs(row["share"] - row["noise"]) < 0.1 and row["seconds"] > 0


def test_the_measured_settings_are_those_of_the_recorded_rows() -> None:
    settings = {(setting.data, setting.name): setting for setting in audit.SETTINGS}
    rows = measured()
    assert {(row["data"], row["setting"]) for row in rows} == settings.keys()
    for row in rows:
        gains = settings[row["data"], row["setting"]].gains()
        assert abs(row["gain"] - np.mean(gains)) < 1e-4 and row["seeds"] == len(gains), row["setting"]
