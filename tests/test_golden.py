"""What the code trains, evaluates and finds is what it was: bit for bit where tests/golden.json was recorded."""

import json
from pathlib import Path

import pytest

from tests.golden import RECORD, REPOSITORY, run_all

pytestmark = [pytest.mark.slow, pytest.mark.golden]


def test_golden_runs(tmp_path: Path) -> None:
    recorded, found = json.loads(RECORD.read_text()), run_all(REPOSITORY, tmp_path)
    for name, row in recorded["numbers"].items():
        # An accuracy may differ by an image or two of 48 where sums are rounded otherwise.
        assert found["numbers"][name] == pytest.approx(row, rel=1e-3, abs=5), name
    if found["machine"] == recorded["machine"]:
        assert found["bits"] == recorded["bits"]
