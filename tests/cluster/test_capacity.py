"""Whether a run fits a cluster, by its figures and on real ones whose machines come late or never."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.toy import toy_config
from tt_ray.cluster.capacity import ClusterTooSmall, cpus_per_worker, wait_for_room
from tt_ray.terminal.errors import UserError


@pytest.mark.parametrize(
    ("settings", "cpus", "gpus", "share"),
    [
        ({}, 8, 0, 8),
        ({"num_workers": "3"}, 8, 0, 2),
        ({"num_workers": "3", "async_validation": True}, 8, 0, 2),
        ({"num_workers": "4", "async_validation": True}, 8, 0, 1),
        ({"num_workers": "2", "cpus_per_worker": 3}, 8, 0, 3),
        ({"num_workers": "1:4"}, 8, 0, 1),
        ({"num_workers": "2", "use_gpu": True}, 8, 2, 1),
        ({"num_workers": "2", "use_gpu": True, "cpus_per_worker": 4}, 8, 2, 4),
    ],
)
def test_cpus_of_each_worker(tmp_path: Path, settings: dict[str, Any], cpus: int, gpus: int, share: int) -> None:
    config = toy_config(tmp_path, "shapes_baseline", **{f"run__{name}": value for name, value in settings.items()})
    assert cpus_per_worker(config, {"CPU": float(cpus), "GPU": float(gpus)}) == share


@pytest.mark.parametrize(
    ("settings", "cpus", "gpus", "message"),
    [
        ({"num_workers": "7"}, 6, 0, "needs 7 CPUs, but the cluster has 6 CPUs and 0 GPUs: choose a lower --run.num_w"),
        ({"num_workers": "2", "cpus_per_worker": 5}, 8, 0, "needs 10 CPUs, but .* choose a lower --run.cpus_per_w"),
        ({"async_validation": True}, 1, 0, "with run.async_validation needs 2 CPUs.*choose --run.async_validation Fal"),
        ({"use_gpu": True}, 8, 0, "needs 1 CPUs and 1 GPUs, but .* 0 GPUs: choose --run.use_gpu False"),
        ({"num_workers": "1:4", "use_gpu": True}, 0, 0, "needs 1 CPUs and 1 GPUs.*choose --run.use_gpu False"),
        ({"num_workers": "1:2", "async_validation": True}, 8, 0, "run.async_validation False, or a fixed"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, settings: dict[str, Any], cpus: int, gpus: int, message: str
) -> None:
    config = toy_config(tmp_path, "shapes_baseline", **{f"run__{name}": value for name, value in settings.items()})
    with pytest.raises(UserError, match=message):
        cpus_per_worker(config, {"CPU": float(cpus), "GPU": float(gpus)})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs, which this process has joined."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # It would be the cluster that other commands of this machine join.
        patch.setattr("ray._private.utils.write_ray_address", lambda *_: None)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": None})
        ray.init(address=cluster.address, log_to_driver=False)
        try:
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.mark.slow
@pytest.mark.cluster
def test_machines_that_come_late_are_waited_for_and_others_are_named(cluster: Any, tmp_path: Path) -> None:
    config, said = toy_config(tmp_path, "shapes_baseline", run__num_workers="2"), list[str]()
    with pytest.raises(ClusterTooSmall, match="choose a lower --run.num_workers"):
        wait_for_room(config, 0, said.append)
    assert not said, "this machine is not waited for"
    with pytest.raises(UserError, match="0 CPUs and 0 GPUs, after 0 minutes: see with `ray status`"):
        wait_for_room(config, 1.5, said.append)
    waiting = threading.Thread(target=wait_for_room, args=(config, 120, said.append))
    waiting.start()
    time.sleep(1)
    assert waiting.is_alive()
    cluster.add_node(num_cpus=2)
    waiting.join(60)
    assert not waiting.is_alive()
    assert said[-1].endswith("but the cluster has 0 CPUs and 0 GPUs: waiting 2 minutes for more machines")
