"""`ray job submit` on a real cluster with token authentication: train, read logs, stop, submit again to go on."""

import os
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.test_train_command import REPOSITORY, TOY, processes_with, steps, wait_until
from tt_ray.cli import read_config
from tt_ray.config import Config
from tt_ray.training.metrics_log import read_rows
from tt_ray.training.run_folder import read_result

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

RAY = str(Path(sys.executable).with_name("ray"))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at just now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A cluster of one node; gives the environment in which jobs are submitted to it."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "token").write_text("a" * 64)
    (folder / "token").chmod(0o600)
    port, dashboard, agent, metrics = free_ports(4)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    environment |= {"TT_RAY_JOB_TEST": str(folder), "METRICS": f"http://127.0.0.1:{metrics}/metrics"}
    environment["RAY_metrics_report_interval_ms"] = "500"
    # A training of an earlier test in this process has turned it off, as one does for a Ray of its own.
    environment["RAY_enable_metrics_collection"] = "1"
    # Ray's sockets lie below its folder, and their names must be short.
    temporary = f"/tmp/ray-job-{os.getpid()}"
    start = ["start", "--head", "--block", "--num-cpus=2", f"--port={port}", f"--temp-dir={temporary}"]
    start += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    start += [f"--metrics-export-port={metrics}"]
    log = (folder / "head.log").open("w")
    process = subprocess.Popen([RAY, *start, "--disable-usage-stats"], env=environment, stdout=log, stderr=log)
    try:
        address = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        environment |= address

        def up() -> bool:
            assert process.poll() is None, (folder / "head.log").read_text()
            return subprocess.run([RAY, "job", "list"], env=environment, capture_output=True).returncode == 0

        wait_until(up, 90)
        yield environment
    finally:
        process.terminate()
        process.wait(60)
        log.close()
        wait_until(lambda: not processes_with(f"TT_RAY_JOB_TEST={folder}"), 60)


def ray_job(head: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RAY, "job", *arguments], env=head, cwd=REPOSITORY, capture_output=True, text=True)


def exported(head: dict[str, str]) -> dict[str, float]:
    """What the node's agent exports of runs, by metric."""
    try:
        with urllib.request.urlopen(head["METRICS"], timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return {}
    found = [re.fullmatch(r'ray_tt_ray_(\w+)\{.*run="shapes_baseline".*\} (\S+)', line) for line in lines]
    return {match[1]: float(match[2]) for match in found if match}


def test_a_job_trains_is_stopped_and_goes_on(head: dict[str, str], tmp_path: Path) -> None:
    arguments = ["shapes_baseline", *TOY, "--train.epochs", "200", "--train.eval_every", "1000"]
    arguments += ["--run.storage", str(tmp_path), "--run.cpus_per_worker", "1"]
    config = read_config(arguments, "prog")
    entry = ["--working-dir", ".", "--", sys.executable, "-m", "tt_ray.train", *arguments]
    with seen_metrics(head) as seen:
        check_stop_and_resume(head, config, entry)
    assert {"loss", "grad_norm", "lr", "images_per_s", "data_wait_share"} <= seen.keys()
    assert seen["workers"] == {1} and len(seen["step"]) > 1 and max(seen["step"]) < 800


@contextmanager
def seen_metrics(head: dict[str, str]) -> Iterator[dict[str, set[float]]]:
    """All values that the agent exports meanwhile, by metric: with a run's process they are gone."""
    seen, ended = dict[str, set[float]](), threading.Event()

    def look() -> None:
        while not ended.wait(0.3):
            with suppress(OSError, HTTPException):  # an agent that is busy, or not there yet, is asked again
                for name, value in exported(head).items():
                    seen.setdefault(name, set()).add(value)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield seen
    ended.set()
    thread.join()


def check_stop_and_resume(head: dict[str, str], config: Config, entry: list[str]) -> None:
    submitted = ray_job(head, "submit", "--submission-id", "first", "--no-wait", *entry)
    assert submitted.returncode == 0, submitted.stderr
    wait_until(lambda: len(read_rows(config.run_dir / "metrics.jsonl")) > 100, 120)
    assert ray_job(head, "stop", "first").returncode == 0
    log = ray_job(head, "logs", "first").stdout
    assert "starting run" in log and "stopped after step" in log
    done = len(steps(config))
    assert done < 800 and (config.run_dir / "checkpoints" / f"step-{done:08d}" / "manifest.json").exists()
    again = ray_job(head, "submit", "--submission-id", "second", *entry)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resuming run" in again.stdout and "top-1" in again.stdout
    assert steps(config) == list(range(800))
    assert read_result(config.run_dir)["steps"] == 800


def test_a_mistake_is_the_job_s_failure(head: dict[str, str]) -> None:
    entry = ["--", sys.executable, "-m", "tt_ray.train", "shapes_basline"]
    done = ray_job(head, "submit", "--working-dir", ".", *entry)
    assert done.returncode == 1
    assert "error: no recipe 'shapes_basline'; did you mean shapes_baseline" in done.stdout + done.stderr
