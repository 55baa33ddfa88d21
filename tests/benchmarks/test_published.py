"""The study of the published setting's differences: arms that differ, and a small one by two workers."""

from pathlib import Path

import pytest

from benchmarks import published
from tests.pages import ROOT
from tests.toy import FORKS
from tt_ray.config import Config


def test_an_arm_is_ours_with_one_difference_and_the_last_has_all(tmp_path: Path) -> None:
    ours = published.configure("ours", 0, "", tmp_path)
    changed = {}
    for arm, fields in published.ARMS.items():
        config = published.configure(arm, 0, "", tmp_path)
        changed[arm] = {path for path in Config.paths() if config.get(path) != ours.get(path)} - {"run.name"}
        assert changed[arm] == fields.keys()
    assert changed["all of them"] == set().union(*changed.values())


def test_figures_of_the_page_are_those_of_the_rows() -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    for line in published.table(published.OUT, "shapes"):
        assert line in text


@pytest.mark.slow
def test_two_workers_run_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"data.shapes.train_size": 64, "data.shapes.val_size": 24, "train.batch_size": 16, "train.epochs": 3}
    kwargs = {"patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2}
    monkeypatch.setattr(published.multiprocessing, "get_context", lambda _: FORKS)
    monkeypatch.setattr(published, "_SHAPES", {**small, "data.label_noise": 0.0, "model.kwargs": kwargs})
    given = ["--seeds", "0", "--out", str(tmp_path / "rows.jsonl"), "--arms"]
    published.main([*given, "ours"])
    assert "| ours | " in capsys.readouterr().out
    before = (tmp_path / "rows.jsonl").read_text()
    published.main([*given, "ours"])
    assert (tmp_path / "rows.jsonl").read_text() == before
