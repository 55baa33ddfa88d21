"""`python -m eval.report` as users run it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eval.report.__main__ import write_report
from tests.eval.sample_results import Job, fail
from tt_ray.terminal.errors import UserError


def test_reports_of_the_same_results_are_the_same_bytes(sample: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sample, copy)
    first, second = (write_report(results, out=tmp_path / name) for results, name in ((sample, "1"), (copy, "2")))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_damaged_files_are_reported_not_fatal(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(sample, tmp_path, dirs_exist_ok=True)
    (tmp_path / "rows" / "zzz.parquet").write_bytes(b"PAR1")
    assert "zzz.parquet" in write_report(tmp_path)[0].read_text()
    assert "zzz.parquet" in capsys.readouterr().err.replace("\n", "")


def test_wrong_arguments_say_what_to_do(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        write_report(tmp_path / "absent")
    with pytest.raises(UserError, match="no results; choose"):
        write_report(tmp_path)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="1 damaged file"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="did you mean textteacher?"):
        write_report(sample, "textteachr", tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        write_report(sample, out=tmp_path / "rows" / "a.parquet")
    with pytest.raises(UserError, match="cannot write to /proc/none: .*choose another --out"):
        write_report(sample, out=Path("/proc/none"))


def test_nothing_but_failures_is_a_report_too(tmp_path: Path) -> None:
    fail(tmp_path, Job(), "out of memory")
    assert "out of memory" in write_report(tmp_path)[0].read_text()


def test_the_command_imports_no_torch(sample: Path, tmp_path: Path) -> None:
    """A report of finished results must not take the start of torch."""
    code = "import sys; from eval.report.__main__ import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(sample), "--baseline", "deit", "--out", str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0 and "baseline deit" in answer.stdout, answer.stderr
