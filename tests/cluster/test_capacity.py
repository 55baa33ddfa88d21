"""Room on a cluster, without one."""

from pathlib import Path

import pytest
import ray

from tests.toy import toy_config
from tt_ray.cluster import launch as ray_train
from tt_ray.cluster.launch import wait_for_room
from tt_ray.config import Config
from tt_ray.terminal.errors import UserError


def gpu_run(folder: Path) -> Config:
    """As clusters/README.md submits it."""
    return toy_config(folder, "shapes_baseline", run__num_workers="1:4", run__use_gpu=True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds slept."""
    slept: list[float] = []
    monkeypatch.setattr(ray_train.time, "sleep", slept.append)
    monkeypatch.setattr(ray_train.time, "monotonic", lambda: sum(slept))
    return slept


def test_machines_that_are_on_their_way_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8, "GPU": 1} if sum(clock) > 400 else {})
    said: list[str] = []
    wait_for_room(gpu_run(tmp_path), 600, said.append)
    assert 400 < sum(clock) < 403
    (line,) = said
    assert "needs 1 CPUs and 1 GPUs, but the cluster has 0 CPUs and 0 GPUs: waiting 10 minutes" in line


def test_machines_that_do_not_come_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", dict)
    with pytest.raises(UserError, match="0 GPUs, after 10 minutes: see with `ray status`") as error:
        wait_for_room(gpu_run(tmp_path), 600, lambda _: None)
    assert "use_gpu" not in str(error.value)


def test_this_machine_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8})
    with pytest.raises(UserError, match="give --run.use_gpu False"):
        wait_for_room(gpu_run(tmp_path), 0, lambda _: None)
    assert not clock
