"""The benchmark at toy size: both sides run in their own process, and the table has what it promises."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import linear_probe


@pytest.mark.slow
def test_the_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "linear_probe.json"
    linear_probe.main(["--sizes", "toy", "--out", str(out)])
    result = json.loads(out.read_text())["sizes"]["toy"]
    assert result["ratio"] > 0 and result["same C"]
    assert abs(result["test difference (points)"]) < 0.1
    assert result["objective above scikit-learn's (relative)"] < 1e-4
    # One of its 80 validation images is 1.25 points, so that scores jump: the path ends where they have dropped once.
    assert result["values near the best that the path did not reach"] == ["100000"]
    assert 0 < result["ratio on the same values"] <= result["ratio"]
    assert not any(side["unconverged"] for side in result["sides"].values())
    shown = capsys.readouterr().out
    assert "| toy |" in shown and "| 100000 |" in shown


def test_drawn_features_are_correlated_and_come_from_the_seed() -> None:
    size = linear_probe.SIZES["toy"]
    x, labels = linear_probe.draw(size)
    again, _ = linear_probe.draw(size)
    other, _ = linear_probe.draw(size, seed=1)
    assert np.array_equal(x, again) and not np.array_equal(x, other)
    assert x.shape == (600, 16) and set(labels) == set(range(4))
    values = np.linalg.eigvalsh(np.corrcoef(x.T))
    assert values[-1] > 20 * values[0]
