"""Rows of metrics as Ray's gauges: which, by which names, and never at the run's cost."""

import logging
from typing import Any, Self

import pytest

from tt_ray.cluster import run_metrics
from tt_ray.cluster.run_metrics import RunMetrics
from tt_ray.training.metrics_log import STEP_COLUMNS

STEP = {
    "step": 7,
    "epoch": 1,
    "lr": 0.5,
    "images_per_s": 90.0,
    "data_wait_share": 0.25,
    **dict.fromkeys(STEP_COLUMNS, 2.0),
}
VALIDATION = {"step": 4, "epoch": 0, "top1": 50.0, "val_loss": 1.0, "val_images": 10}


class Recorded:
    """Ray's gauge, as far as it is used."""

    values: dict[tuple[str, str], float]
    fails = False

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert name.isidentifier() and description and tag_keys == ("run",)
        self.name, self.tags = name, dict[str, str]()

    def set_default_tags(self, tags: dict[str, str]) -> Self:
        self.tags = tags
        return self

    def set(self, value: float) -> None:
        if self.fails:
            raise RuntimeError("no metrics here")
        self.values[self.name, self.tags["run"]] = value


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], float]:
    monkeypatch.setattr(Recorded, "values", {}, raising=False)
    monkeypatch.setattr(run_metrics, "Gauge", Recorded)
    return Recorded.values


def test_every_number_has_a_gauge_with_the_run_s_name(values: dict[tuple[str, str], float]) -> None:
    metrics = RunMetrics("my run")
    metrics.show(STEP)
    metrics.show({**STEP, "step": 8, "lr": 0.25})
    expected = {("tt_ray_" + key, "my run"): value for key, value in {**STEP, "step": 8, "lr": 0.25}.items()}
    assert values == expected


def test_a_late_validation_does_not_take_the_step_back(values: dict[tuple[str, str], float]) -> None:
    metrics = RunMetrics("r")
    metrics.show(STEP)
    metrics.show(VALIDATION)
    assert values["tt_ray_step", "r"] == 7 and values["tt_ray_epoch", "r"] == 1
    assert values["tt_ray_top1", "r"] == 50.0 and ("tt_ray_val_images", "r") not in values


def test_a_ray_without_metrics_is_not_asked_again(
    values: dict[tuple[str, str], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    # Not by pytest's handler: a library that another test has used may have changed how loggers pass on what they get.
    monkeypatch.setattr(
        logging.getLogger(RunMetrics.__module__), "warning", lambda text, error: said.append(text % error)
    )
    metrics = RunMetrics("r")
    monkeypatch.setattr(Recorded, "fails", True)
    for _ in range(3):
        metrics.show(STEP)
    assert said == ["Ray takes no metrics: no metrics here"]


def test_a_process_without_ray_takes_rows_too() -> None:
    row: dict[str, Any] = {**STEP}
    RunMetrics("r").show(row)
