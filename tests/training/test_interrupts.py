"""Looks by the clock, at steps on which all workers agree."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toy import random_store, run_toy, toy_config
from tt_ray.terminal.errors import Interrupted
from tt_ray.training import interrupts
from tt_ray.training.context import LocalContext
from tt_ray.training.interrupts import Interrupts
from tt_ray.training.trainer import Trainer


class Clock:
    """Seconds that pass as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(interrupts, "perf_counter", lambda: self.now)


def looks(clock: Clock, watch: Interrupts, context: Any, steps: int, step_s: float) -> list[float]:
    """The times at which the runner was asked."""
    asked: list[float] = []
    context.requested = lambda: asked.append(clock.now) or ""
    for done in range(1, steps + 1):
        clock.now += step_s
        assert not watch.look(done)
    return asked


@pytest.mark.parametrize("step_s", [0.001, 0.3, 1.9, 7.0])
def test_no_more_than_two_seconds_or_a_step_go_by(monkeypatch: pytest.MonkeyPatch, step_s: float) -> None:
    clock, context = Clock(monkeypatch), LocalContext(0, 1, torch.device("cpu"))
    asked = looks(clock, Interrupts(context, 0), context, max(int(60 / step_s), 10), step_s)
    between = [later - earlier for earlier, later in pairwise(asked)]
    assert max(between) <= max(2.0, step_s) + 1e-6
    assert len(asked) <= 60 / 2 + 14, "and seldom"


def test_workers_of_different_speed_look_after_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    # The sum that two workers see, of which one takes thrice as long.
    monkeypatch.setattr(interrupts, "sum_over_workers", lambda mine: torch.tensor([2, 0, 0.04e6], dtype=torch.float64))
    seen = []
    for step_s in (0.01, 0.03):
        clock, context = Clock(monkeypatch), LocalContext(0, 1, torch.device("cpu"))
        seen.append([round(now / step_s) for now in looks(clock, Interrupts(context, 0), context, 500, step_s)])
    assert seen[0] == seen[1] == [1, 3, 7, 15, 31, 63, 127, 227, 327, 427]


def test_a_request_is_met_long_before_the_next_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(tmp_path, run__log_every=1000, data__shapes__train_size=480)
    random_store(config, tmp_path / "store")
    original = Trainer.step

    def step(self: Trainer, batch: Any, number: int) -> torch.Tensor:
        self.context.request = "stop" if number == 8 else ""  # type: ignore[attr-defined]
        return original(self, batch, number)

    monkeypatch.setattr(interrupts, "_INTERVAL_S", 0.0)
    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(Interrupted) as stop:
        run_toy(config)
    assert stop.value.step == 9
    rows = (config.run_dir / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 9, "the rows of all steps are there"
    assert (config.run_dir / "checkpoints" / "step-00000009" / "manifest.json").exists()
