import dataclasses
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from eval.jobs import results
from eval.jobs.results import (
    SCHEMA,
    ResultRow,
    finished_keys,
    read_confidence,
    read_predictions,
    read_rows,
    read_table,
    write_result,
)
from tests.eval.sample_results import Job
from tt_ray.terminal.errors import UserError

LABELS = np.array([0, 1, 2, 1])


def done(value: float = 50.0, seed: int = 0) -> list[ResultRow]:
    job = Job(seed=seed)
    return [job.row("top1", value, 4), job.row("mean_per_class", value / 2, 4)]


def failed() -> list[ResultRow]:
    return [Job().row("", float("nan"), 0, "failed", "out of memory")]


def test_what_is_written_is_read() -> None:
    assert [field.name for field in SCHEMA] == [field.name for field in dataclasses.fields(ResultRow)]


@pytest.mark.parametrize("draws", [None, 1, 3])
def test_rows_and_predictions_come_back(tmp_path: Path, draws: int | None) -> None:
    rows = [dataclasses.replace(row, chosen='{"C": 0.1}', reason="é ✓ <b>") for row in done()]
    predictions = np.arange(4 * (draws or 1)).reshape(-1, 4)
    write_result(tmp_path, "a", rows, predictions if draws else predictions[0], LABELS)
    assert read_rows(tmp_path) == [dataclasses.replace(row, job="a") for row in rows]
    found = read_predictions(tmp_path, "a")
    assert found is not None and found.predictions.dtype == np.int32
    assert np.array_equal(found.labels, LABELS) and np.array_equal(found.predictions, predictions)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_confidence_comes_back_and_a_run_without_it_leaves_none(tmp_path: Path, dtype: type) -> None:
    confidence = np.array([0.1, 0.25, 1.0, 0.0], dtype)
    write_result(tmp_path, "a", done(), LABELS, LABELS, confidence)
    found = read_confidence(tmp_path, "a", (1, 4))
    assert found is not None and found.dtype == dtype and np.array_equal(found, confidence[None])
    write_result(tmp_path, "a", done(), LABELS, LABELS)
    assert read_confidence(tmp_path, "a", (1, 4)) is None and read_predictions(tmp_path, "a") is not None


@pytest.mark.parametrize(
    "content", [b"x", np.float32([[0.5]]), np.full((1, 4), np.nan), np.full((1, 4), 2.0), LABELS[None]]
)
def test_damaged_confidence_is_told_and_spoils_nothing_else(tmp_path: Path, content: bytes | np.ndarray) -> None:
    write_result(tmp_path, "a", done(), LABELS, LABELS, np.ones(4))
    file = tmp_path / "confidence" / "a.npy"
    file.write_bytes(content) if isinstance(content, bytes) else np.save(file, content)
    with pytest.raises(UserError, match="confidence/a.npy"):
        read_confidence(tmp_path, "a", (1, 4))
    assert read_predictions(tmp_path, "a") is not None


def test_jobs_only_add_and_are_ordered_by_key(tmp_path: Path) -> None:
    for key in ("b", "a", "c"):
        write_result(tmp_path, key, done())
    assert [row.job for row in read_rows(tmp_path)] == ["a", "a", "b", "b", "c", "c"]
    assert finished_keys(tmp_path) == {"a", "b", "c"}
    assert read_predictions(tmp_path, "a") is None


def test_nothing_is_there_before_the_first_job(tmp_path: Path) -> None:
    assert finished_keys(tmp_path / "new") == set() and read_rows(tmp_path / "new") == []
    assert read_table(tmp_path / "new").rows.schema == SCHEMA


def test_a_failure_is_run_again_and_replaced_but_never_replaces(tmp_path: Path) -> None:
    write_result(tmp_path, "a", failed())
    assert finished_keys(tmp_path) == set()
    assert [(row.status, row.reason) for row in read_rows(tmp_path)] == [("failed", "out of memory")]
    write_result(tmp_path, "a", done(), LABELS, LABELS)
    assert finished_keys(tmp_path) == {"a"}
    write_result(tmp_path, "a", failed())
    assert [row.status for row in read_rows(tmp_path)] == ["done", "done"]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(400), None])
def test_damaged_rows_are_reported_and_run_again(tmp_path: Path, content: bytes | None) -> None:
    for key in ("a", "b"):
        write_result(tmp_path, key, done(), LABELS, LABELS)
    file = tmp_path / "rows" / "a.parquet"
    file.write_bytes(file.read_bytes()[:-20] if content is None else content)
    table = read_table(tmp_path)
    assert len(table.damaged) == 1 and table.damaged[0].startswith(f"{file}: ")
    assert {row.job for row in read_rows(tmp_path)} == {"b"} and finished_keys(tmp_path) == {"b"}
    write_result(tmp_path, "a", done(), LABELS, LABELS)
    assert not read_table(tmp_path).damaged


def test_rows_of_another_version_are_reported(tmp_path: Path) -> None:
    write_result(tmp_path, "a", done())
    file = tmp_path / "rows" / "b.parquet"
    pq.write_table(pq.read_table(tmp_path / "rows" / "a.parquet").drop_columns("reason"), file)
    assert "move it away" in read_table(tmp_path).damaged[0] and finished_keys(tmp_path) == {"a"}


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", np.int64(3).tobytes()])
def test_damaged_predictions_name_their_file(tmp_path: Path, content: bytes) -> None:
    write_result(tmp_path, "a", done(), LABELS, LABELS)
    file = tmp_path / "predictions" / "a.npy"
    file.write_bytes(content)
    with pytest.raises(UserError, match=str(file)):
        read_predictions(tmp_path, "a")


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    np.save(tmp_path / "predictions" / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        read_predictions(tmp_path, "a")


def test_predictions_are_on_disk_before_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is killed in between has done nothing that a reader sees."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(results.pq, "write_table", stop)
    with pytest.raises(KeyboardInterrupt):
        write_result(tmp_path, "a", done(), LABELS, LABELS)
    assert (tmp_path / "predictions" / "a.npy").is_file()
    assert finished_keys(tmp_path) == set() and not list((tmp_path / "rows").iterdir())


def test_left_over_temporary_files_are_passed_over(tmp_path: Path) -> None:
    write_result(tmp_path, "a", done())
    (tmp_path / "rows" / ".b.parquet.1-ab.partial").write_bytes(b"PAR1")
    (tmp_path / "rows" / ".b.parquet").write_bytes(b"PAR1")
    assert finished_keys(tmp_path) == {"a"} and not read_table(tmp_path).damaged


@pytest.mark.parametrize("key", ["", "../a", "a/b", ".a", "a b", "a\0", "x" * 300])
def test_keys_stay_in_their_folder(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        write_result(tmp_path, key, done())
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows"):
        write_result(tmp_path, "a", [])
    with pytest.raises(ValueError, match="rows"):
        write_result(tmp_path, "a", [*done(), *failed()])
    with pytest.raises(ValueError, match="without labels"):
        write_result(tmp_path, "a", done(), LABELS)
    with pytest.raises(ValueError, match="predictions"):
        write_result(tmp_path, "a", done(), LABELS[:3], LABELS)
    for predictions, labels in ((LABELS, LABELS), (None, None)):
        with pytest.raises(ValueError, match="confidence"):
            write_result(tmp_path, "a", done(), predictions, labels, np.ones(3))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_behind(mounted: Path) -> None:
    write_result(mounted, "a", done(), LABELS, LABELS)
    many = np.zeros((40, 100_000), np.int32)
    with pytest.raises(OSError):
        write_result(mounted, "b", done(), many, many[0])
    assert finished_keys(mounted) == {"a"}
    assert not [file for file in mounted.rglob("*") if ".tmp" in file.name]


def _write_many(out: Path, first: int) -> None:
    for number in range(first, first + 40):
        write_result(out, f"job-{number % 50}", done(float(number)), LABELS, LABELS)


@pytest.mark.slow
def test_many_may_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(tmp_path, first)) for first in (0, 5, 20)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert not read_table(tmp_path).damaged
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert finished_keys(tmp_path) == {f"job-{number}" for number in range(50)}


def test_thousands_of_files_are_read_fast(tmp_path: Path) -> None:
    write_result(tmp_path, "a", done())
    content = (tmp_path / "rows" / "a.parquet").read_bytes()
    for number in range(2000):
        (tmp_path / "rows" / f"job-{number}.parquet").write_bytes(content)
    began = time.process_time()
    assert len(finished_keys(tmp_path)) == len(read_table(tmp_path).rows) / 2 == 2001
    assert time.process_time() - began < 6
