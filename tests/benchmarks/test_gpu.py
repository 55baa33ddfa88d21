"""`python -m benchmarks.gpu`: every section at toy size, and what remains of the others when one goes wrong."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.gpu.record import Record
from benchmarks.gpu.sections import SECTIONS, Row, Section
from benchmarks.gpu.watch import Worker

HERE = "tests.benchmarks.gpu_sections"
ROOT = Path(__file__).parents[2]


def section(name: str, seconds: float = 60.0, packages: tuple[str, ...] = ()) -> Section:
    return Section(name, HERE, seconds, "a claim", packages)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(True, tmp_path, HERE)
    yield made
    made.end(0)


@pytest.mark.slow
def test_every_section_runs_at_toy_size_without_ray(tmp_path: Path) -> None:
    """In an environment in which what a bare GPU machine lacks cannot be imported."""
    for name in ("ray", "datasets", "tyro"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('{name} is not here')")
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--out", str(tmp_path / "gpu.json")]
    ran = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert list(found) == [each.name for each in SECTIONS]
    assert all(each["outcome"] == "done" and each["rows"] for each in found.values())
    rows = {f"{name}: {row['what']}": row for name, each in found.items() for row in each["rows"]}
    # What is equality, and not time, holds at any size.
    right = (
        "augmentation",
        "resume",
        "parts: losses",
        "checkpointing: losses",
        "fsdp: validation",
        "export",
        "captions: smallest",
        "fp16: weig",
    )
    equal = [row for what, row in rows.items() if what.startswith(right) and row["aim"]]
    assert len(equal) >= 13 and all(row["met"] for row in equal), equal
    assert f"{len(SECTIONS)} of {len(SECTIONS)} sections measured" in ran.stdout


def test_what_a_section_has_found_outlives_it_and_the_others_run(tmp_path: Path, worker: Worker) -> None:
    out = tmp_path / "deep" / "gpu.json"
    record = Record(worker.start(), out)
    names = ["good", "fails", "breaks", "dies", "good"]
    worker.run([section(name) for name in names[:-1]], 300, record)
    first = record.sections["good"]["rows"][0]["value"]
    worker.run([section("good")], 300, record)
    found = json.loads(out.read_text())["sections"]
    assert [len(found[name]["rows"]) for name in names] == [1] * 5
    assert found["good"]["outcome"] == "done" and found["good"]["rows"][0]["value"] != first, "another process"
    assert found["fails"]["outcome"] == "failed: ValueError: no such kernel"
    assert found["breaks"]["outcome"] == "failed: the GPU reports an error"
    assert found["dies"]["outcome"].startswith("failed: its process ended with status 9")
    assert record.failed == ["fails", "breaks", "dies"] and record.missed == ["fails: before"]


def test_a_section_that_hangs_is_cut_off_with_its_process(tmp_path: Path, worker: Worker) -> None:
    record = Record(worker.start(), None)
    process = record.machine["process"]
    worker.run([section("hangs", 0.2), section("good")], 300, record)
    assert record.sections["hangs"]["outcome"].startswith("cut off")
    assert [row["what"] for row in record.sections["hangs"]["rows"]] == ["before"]
    assert record.sections["good"]["rows"][0]["value"] != process
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert not record.failed, "it may need a faster card"


def test_a_section_without_its_package_or_time_is_skipped(worker: Worker) -> None:
    record = Record(worker.start(), None)
    worker.run([section("good", packages=("no_such_package",)), section("fails", seconds=1000)], 400, record)
    assert record.sections["good"]["outcome"] == "skipped: no_such_package not installed"
    assert record.sections["fails"]["outcome"].startswith("skipped: ")
    assert not record.failed


def test_a_record_of_some_sections_keeps_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    for name, merge in (("step", False), ("fsdp", True)):
        record = Record({"card": "card"}, out, merge)
        record.begin(section(name))
        record.add(Row("ratio", 1.05, at_most=1.03, quartiles=(1.0, 1.1), note="why"))
        record.end("done", 2.0)
        record.conclude()
    found = json.loads(out.read_text())
    assert list(found["sections"]) == ["step", "fsdp"] and found["machine"] == {"card": "card"}
    shown = capsys.readouterr().out
    assert "| fsdp | ratio (why) | 1.05 | 1 - 1.1 | at most 1.03: **missed** |" in shown
    assert "1 of 1 sections measured in 2 s." in shown and "- fsdp: ratio" in shown


@pytest.mark.parametrize(
    ("row", "met", "aim"),
    [
        (Row("", 1.0), None, ""),
        (Row("", "no GPU", at_most=1.0), None, "at most 1"),
        (Row("", 1.0, at_most=1.0), True, "at most 1"),
        (Row("", 1.1, at_most=1.0), False, "at most 1"),
        (Row("", 0.9, at_least=1.0), False, "at least 1"),
        (Row("", float("nan"), at_least=1.0), False, "at least 1"),
        (Row("", float("nan"), at_most=1.0), False, "at most 1"),
    ],
)
def test_whether_an_aim_is_met(row: Row, met: bool | None, aim: str) -> None:
    assert (row.met, row.aim) == (met, aim)


def test_a_section_is_named_as_its_function_is() -> None:
    for each in SECTIONS:
        file = ROOT / Path(*each.module.split(".")).with_suffix(".py")
        assert f"\ndef {each.name}(bench: Bench) -> Iterator[Row]:" in file.read_text(), each.name
    assert len({each.name for each in SECTIONS}) == len(SECTIONS)


def test_waits_are_counted_by_the_line_of_the_project_that_causes_them() -> None:
    from benchmarks.gpu.steps import LOGGING, Waits
    from tt_ray.training.metrics_log import timed

    def batches() -> Iterator[Any]:
        for message in ("called a synchronizing CUDA operation", "something else"):
            warnings.warn(message, UserWarning, stacklevel=1)
            yield message

    waits, before = Waits(cuda=False), warnings.showwarning
    waits.start()
    for _ in range(2):
        assert len(list(timed(batches(), 0))) == 2
    warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
    waits.stop()
    assert warnings.showwarning is before
    (inside, count), (outside, once) = sorted(waits.places.items())
    assert inside.startswith(f"{LOGGING}:") and count == 2
    assert outside.startswith("test_gpu.py:") and once == 1


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class NoGpu(Worker):
        def start(self) -> dict[str, Any]:
            return {"card": ""}

    monkeypatch.setattr(gpu, "Worker", NoGpu)
    with pytest.raises(SystemExit) as ended:
        gpu.main([])
    assert ended.value.code == 2
    assert "torch finds no GPU here" in capsys.readouterr().out


@pytest.mark.parametrize("missing", [["pydantic"], ["pydantic", "simplejpeg"]])
def test_what_all_sections_need_is_asked_for_first(
    missing: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda name: None if name in missing else object())
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--tiny"])
    assert ended.value.code == 2
    assert f"error: {', '.join(missing)} cannot be imported" in capsys.readouterr().out
