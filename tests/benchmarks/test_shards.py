"""The benchmarks of shards at toy size; what they find here means nothing."""

import json
from pathlib import Path

import pytest

from benchmarks import packing, shard_index


@pytest.mark.slow
def test_shard_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "shard_index.json"
    shard_index.main(["--images", "2500", "--per-shard", "1000", "--repeats", "1", "--out", str(out)])
    (found,) = json.loads(out.read_text())["rounds"]
    assert found["images"] == 2500 and found["seconds"] > 0 and 0 < found["texts GB"] < 0.001
    assert "| 2,500 | " in capsys.readouterr().out


def test_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(packing, "rate", lambda work, count: (work(), float(count))[1])
    packing.main(["--images", "2", "--out", str(tmp_path / "packing.json")])
    found = json.loads((tmp_path / "packing.json").read_text())
    assert found.keys() == packing.WAYS.keys()
    assert 80 < found["kept"]["kB"] < 130, "as ImageNet's"
    assert found["short side 224, quality 90"]["kB"] < found["short side 256, quality 90"]["kB"] < found["kept"]["kB"]
    assert "| kept | 2 | " in capsys.readouterr().out
