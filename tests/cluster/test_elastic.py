"""A run on a cluster whose nodes come and go: real raylets on this machine, the command as users run it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_train_command import TOY, Started, run_here, steps, wait_until
from tt_ray.config import Config
from tt_ray.io.checkpoint_folder import step_of
from tt_ray.training.metrics_log import read_rows
from tt_ray.training.run_folder import read_result

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

# SGD, whose rounding errors stay small: one width must end like another.
LENGTH = ["--train.epochs", "300", "--train.eval_every", "1000", "--run.checkpoint_every", "200"]
LENGTH += ["--optim.name", "sgd", "--optim.lr", "0.02"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs for workers, whose address commands take."""
    from ray.cluster_utils import Cluster

    # It would be the cluster that other commands of this machine join.
    monkeypatch.setattr("ray._private.utils.write_ray_address", lambda *_: None)
    # The cluster's processes have no token, and take none.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    # How long Ray waits for workers on a node that it does not know to be gone.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": None})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def widths(config: Config) -> list[int]:
    """Numbers of workers in the order in which steps were taken."""
    rows = [row["workers"] for row in read_rows(config.run_dir / "metrics.jsonl") if "workers" in row]
    return [width for before, width in zip([0, *rows], rows, strict=False) if width != before]


def checkpoint_steps(config: Config) -> list[int]:
    """Steps of the checkpoints that are complete."""
    return [step_of(path.parent) for path in (config.run_dir / "checkpoints").glob("step-*/manifest.json")]


def drain(address: str, node: Any) -> None:
    """A notice such as a cloud gives before it takes a spot machine; Google's leaves the least time."""
    arguments = ["--address", address, "--node-id", node.node_id, "--deadline-remaining-seconds", "25"]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run([str(Path(sys.executable).with_name("ray")), "drain-node", *arguments, *reason], check=True)


def test_nodes_come_and_go(cluster: Any, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1)
    elastic = ["--run.num_workers", "1:2", "--run.resize_every", "2", "--run.max_failures", "1"]
    arguments = ["shapes_baseline", *TOY, *LENGTH, "--run.storage", str(tmp_path)]
    with Started([*arguments, *elastic]) as started:
        config = started.config
        wait_until(lambda: widths(config) == [1], 120)
        second = cluster.add_node(num_cpus=1)
        wait_until(lambda: widths(config) == [1, 2], 120)
        (paused,) = (step for step in checkpoint_steps(config) if step % 200)
        # Rows of two workers outlive the second's end from the next checkpoint on.
        wait_until(lambda: max(checkpoint_steps(config)) > paused, 120)
        before = steps(config)
        cluster.remove_node(second, allow_graceful=False)
        _, errors = started.process.communicate(timeout=240)
    assert started.process.returncode == 0, errors
    assert widths(config) == [1, 2, 1]
    assert before == list(range(len(before)))
    assert steps(config) == list(range(1200)), "each step once"
    assert errors.count("workers were started again") == 2
    fixed = run_here([*arguments, "--run.num_workers", "1"], None, "fixed")
    assert read_result(config.run_dir)["top1"] == pytest.approx(read_result(fixed.run_dir)["top1"], abs=4)


def test_a_notice_moves_the_run_before_the_machine_is_gone(cluster: Any, tmp_path: Path) -> None:
    first = cluster.add_node(num_cpus=1)
    # No checkpoint is due before the notice, and no failure is forgiven.
    arguments = ["shapes_baseline", *TOY, *LENGTH, "--run.storage", str(tmp_path), "--run.max_failures", "0"]
    with Started([*arguments, "--run.checkpoint_every", "100000"]) as started:
        wait_until(lambda: widths(started.config) == [1], 120)
        cluster.add_node(num_cpus=1)
        drain(cluster.address, first)
        wait_until(lambda: any((started.config.run_dir / "checkpoints").glob("step-*/manifest.json")), 25)
        cluster.remove_node(first, allow_graceful=False)
        _, errors = started.process.communicate(timeout=240)
    assert started.process.returncode == 0, errors
    assert errors.count("workers were started again") == 1
    assert steps(started.config) == list(range(1200))
