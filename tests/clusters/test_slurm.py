"""The Slurm script, with stub `srun` and `scontrol` on this machine, where both of its nodes are."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "clusters" / "slurm.sbatch"
BIN = Path(sys.executable).parent
# The real srun, too, ends what it runs when it is ended itself.
SRUN = """while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """echo "$@" >> "$STUBS/scontrol.log"
[ "$1" != show ] || printf '127.0.0.1\\nsecond\\n'
"""
# Tells what it runs on, once told to end.
COMMAND = """
import json, ray, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
ray.init(logging_level="ERROR")
nodes, cpus = len(ray.nodes()), ray.cluster_resources()["CPU"]
where = ray.get(ray.remote(lambda: ray.get_runtime_context().get_node_id()).remote())
print("ran on", nodes, "nodes with", int(cpus), "CPUs", flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What Slurm sets for a job of two nodes, with stubs for its commands; fails where the job leaves processes."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (stubs / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (stubs / name).chmod(0o755)
    job = str(os.getpid())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    yield environment | {
        "PATH": f"{stubs}:{BIN}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "STUBS": str(stubs),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NODELIST": "127.0.0.1,second",
        "SLURM_CPUS_PER_TASK": "1",
    }
    end = time.monotonic() + 20  # for processes that watch their parents to see that these are gone
    while (left := dict(_commands(f"SLURM_JOB_ID={job}"))) and time.monotonic() < end:
        time.sleep(0.5)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(f"/tmp/tt-ray-{job}", ignore_errors=True)
    assert not left


def _commands(variable: str) -> Iterator[tuple[int, str]]:
    """Processes with this in their environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name), (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # gone meanwhile
            continue


def test_bash_and_shellcheck_have_nothing_to_say() -> None:
    for command in (["bash", "-n"], [BIN / "shellcheck"]):
        answer = subprocess.run([*command, SCRIPT], capture_output=True, text=True)
        assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_page_makes_the_script_for_nodes_without_gpus(tmp_path: Path) -> None:
    """Nothing but requests for GPUs is left out."""
    page = (SCRIPT.parent / "README.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("grep ")]
    (tmp_path / "clusters").mkdir()
    shutil.copy(SCRIPT, tmp_path / "clusters")
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    before, made = SCRIPT.read_text().splitlines(), (tmp_path / "cpu.sbatch").read_text().splitlines()
    gone = [line for line in before if line not in made]
    assert gone and all(line.startswith("#SBATCH --") and "gpu" in line for line in gone)
    assert made == [line for line in before if line not in gone] and "cpu.sbatch python -m tt_ray.train" in page


@pytest.mark.slow
@pytest.mark.cluster
def test_a_job_starts_ray_on_its_nodes_trains_and_leaves_nothing_running(
    environment: dict[str, str], tmp_path: Path
) -> None:
    small = "--train.epochs 1 --data.shapes.train_size 128 --data.shapes.val_size 64"
    train = f"-m tt_ray.train shapes_baseline --run.storage {tmp_path}/runs --run.num_workers 2 {small}"
    command = ["bash", SCRIPT, "python", *train.split()]
    job = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert job.returncode == 0, job.stdout + job.stderr
    assert (tmp_path / "runs" / "shapes_baseline" / "result.json").is_file()
    token = tmp_path / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600 and len(token.read_text()) == 64


@pytest.mark.slow
@pytest.mark.cluster
def test_a_job_whose_time_is_up_ends_its_command_gently_and_is_queued_again(
    environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with log.open("w") as file:
        job = subprocess.Popen(
            ["bash", SCRIPT, "python", "-c", COMMAND, "300"], env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        end = time.monotonic() + 300
        while "ran on 2 nodes with 2 CPUs" not in log.read_text():
            assert job.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.5)
        job.send_signal(signal.SIGUSR1)
        job.wait(timeout=120)
    finally:
        job.terminate()
    assert f"requeue {environment['SLURM_JOB_ID']}" in (tmp_path / "stubs" / "scontrol.log").read_text()
