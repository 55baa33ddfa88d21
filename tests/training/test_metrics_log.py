"""metrics.jsonl: complete rows, each step once, also after interruptions."""

import json
from pathlib import Path

import pytest

from tt_ray.training.metrics_log import STEP_COLUMNS, LoaderWatch, MetricsLog, keep_rows, read_rows

ROWS = [
    {"kind": "step", "step": 0, "loss": 3.0},
    {"kind": "step", "step": 1, "loss": 2.5},
    {"kind": "validation", "step": 2, "top1": 10.0},
    {"kind": "step", "step": 2, "loss": 2.25},
    {"kind": "step", "step": 3, "loss": 2.0},
    {"kind": "validation", "step": 4, "top1": 20.0},
]


def _write(path: Path, rows: list[dict], tail: str = "") -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def _row(step: int) -> dict:
    return {"step": step, "epoch": 0, "text_weight": 0.5, **dict.fromkeys(STEP_COLUMNS, 1.0)}


@pytest.mark.parametrize(("first_step", "kept"), [(0, []), (1, [0]), (2, [0, 1, 2]), (3, [0, 1, 2, 3]), (4, range(6))])
def test_rows_before_the_first_step_are_kept(first_step: int, kept: list[int], tmp_path: Path) -> None:
    """A validation after n steps is past n - 1 steps: it stays when training goes on with step n."""
    path = tmp_path / "metrics.jsonl"
    _write(path, ROWS)
    keep_rows(path, first_step)
    assert read_rows(path) == [ROWS[index] for index in kept]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("tail", ['{"kind": "step", "st', '{"kind": "step", "step": 9, "loss": 1', "{", "\0\0", "\n"])
def test_an_interrupted_last_line_is_left_out(tail: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, ROWS, tail)
    assert read_rows(path) == ROWS
    keep_rows(path, 100)
    assert path.read_text() == "".join(json.dumps(row) + "\n" for row in ROWS)


def test_a_last_line_without_its_end_of_line_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    keep_rows(path, 100)
    assert read_rows(path) == ROWS and path.read_text().endswith("}\n")


def test_no_file_is_no_rows(tmp_path: Path) -> None:
    keep_rows(tmp_path / "metrics.jsonl", 3)
    assert read_rows(tmp_path / "metrics.jsonl") == [] and not list(tmp_path.iterdir())


def test_rows_of_an_interrupted_and_a_resumed_run_are_those_of_one_run(tmp_path: Path) -> None:
    def log(folder: Path, first: int, until: int) -> None:
        with MetricsLog(folder, first) as book:
            for start in range(first, until, 2):
                book.steps([_row(step) for step in range(start, start + 2)])
                book.validation({"step": start + 2, "epoch": 0, "top1": float(start)})

    log(tmp_path / "whole", 0, 8)
    log(tmp_path / "resumed", 0, 6)
    with (tmp_path / "resumed" / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "step", "step": 6, "lo')
    log(tmp_path / "resumed", 4, 8)
    whole, resumed = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("whole", "resumed"))
    assert whole == resumed
    assert [row["step"] for row in whole if row["kind"] == "step"] == list(range(8))


def test_a_new_run_starts_with_an_empty_file(tmp_path: Path) -> None:
    _write(tmp_path / "metrics.jsonl", ROWS)
    MetricsLog(tmp_path, 0).close()
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_flushed_rows_are_in_the_file(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "a" / "run", 0) as book:
        book.steps([_row(0), _row(1)])
        book.flush()
        rows = read_rows(tmp_path / "a" / "run" / "metrics.jsonl")
        assert rows == [{"kind": "step", **_row(step)} for step in (0, 1)]


def test_tensorboard_gets_the_last_of_the_rows(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path, 0) as book:
        book.steps([{**_row(0), "loss": 5.0}, {**_row(1), "loss": 4.0, "lr": 0.125}])
        book.validation({"step": 2, "top1": 50.0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    values = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert values["loss/total"] == [(1, 4.0)]
    assert values["optim/lr"] == [(1, 0.125)]
    assert values["val/top1"] == [(2, 50.0)]
    assert values["text/weight"] == [(1, 0.5)]


@pytest.mark.parametrize(
    ("readings", "told"),
    [
        ([(9.0, 0.9)] * 4 + [(9.0, 0.0)] * 30, "waits for its images 68% of the time"),
        ([(40.0, 1.0), *[(9.0, 0.05)] * 9], ""),
        ([(40.0, 0.9), (20.0, 0.9)], ""),
        ([(1.0, 0.0), (31.0, 0.11)], "waits for its images 11% of the time, with 3 loader processes"),
    ],
    ids=["seen once, kept", "only at the start", "too early to say", "just above"],
)
def test_loaders_that_keep_a_run_waiting_are_named_once(readings: list[tuple[float, float]], told: str) -> None:
    watch, said = LoaderWatch(3), set[str]()
    for seconds, share in readings:
        watch.add(seconds, share)
        said |= {watch.note} - {""}
    assert len(said) == bool(told) and told in watch.note
