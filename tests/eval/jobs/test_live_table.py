"""The live table: what it counts, how long it thinks the rest takes, and what it shows on a terminal and in a log."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from eval.contract import Result
from eval.jobs.live_table import JobTable
from eval.jobs.plan import Job
from eval.jobs.scheduler import State
from eval.jobs.worker import Answer
from eval.protocols.knn import Options


def job(seed: int, protocol: str = "knn", images: int = 100) -> Job:
    return Job("[red]model", "spec", "weights", "digits", 1, protocol, Options(), seed, images)


def board(jobs: list[Job], terminal: bool) -> tuple[JobTable, io.StringIO, list[tuple[Any, ...]]]:
    """A board, what it writes on a terminal, and what it tells a log."""
    stream, told = io.StringIO(), list[tuple[Any, ...]]()
    console = Console(file=stream, force_terminal=terminal, width=100, height=40, color_system=None)
    display: Any = SimpleNamespace(console=console, show=lambda *given: told.append(given), hide=lambda: None)
    return JobTable(jobs, display), stream, told


def test_time_left_follows_what_each_protocol_took() -> None:
    jobs = [*(job(seed) for seed in range(4)), job(9, "finetune")]
    seen, _, _ = board(jobs, False)
    assert seen.time_left(1) == ""
    seen.ended(jobs[0], Answer(Result({"top1": 50.0}, 1), 10.0), "top1")
    # Three more of 10 s, and a fine-tuning at the pace of all: 200 times the cost.
    assert seen.time_left(1) == f"{(30 + 2000) / 60:.0f} min" and seen.time_left(1000) == "2 s"
    seen.ended(jobs[4], Answer(Result({"top1": 50.0}, 1), 60.0), "top1")
    assert seen.time_left(1) == "30 s" and seen.time_left(2) == "15 s"


@pytest.mark.parametrize("terminal", [True, False])
def test_it_counts_and_shows(terminal: bool) -> None:
    jobs = [job(seed) for seed in range(3)]
    seen, stream, told = board(jobs, terminal)
    with seen:
        seen.ended(jobs[0], Answer(Result({"top1": 87.654}, 1), 1.0), "top1")
        seen.ended(jobs[1], Answer(None, 1.0, "no such data", "mistake"), "top1")
        seen.looked(State(1, 0, [(jobs[2].label, 3.4)]))
    assert (seen.done, seen.failed, seen.of) == (1, 1, 3)
    if terminal:
        text = stream.getvalue()
        assert "1 of 3 jobs done, 0 waiting, 1 failed, 1 running, 1 s left" in text and not told
        assert all(wanted in text for wanted in ("87.65", "failed: no such data", "[red]model digits knn seed 2"))
    else:
        assert told == [("jobs", 2, 3, "1 failed, 1 running, 1 s left")] and not stream.getvalue()
