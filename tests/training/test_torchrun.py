"""torchrun's processes wait for each other as long as preparing takes, and one mistake is one line."""

import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.toy import FORKS
from tt_ray.training.context import LocalContext
from tt_ray.training.torchrun import patient_group, wait_for_all

REPOSITORY = Path(__file__).parents[2]
_LIMIT_S = 1.0


def _prepare_for_long(rank: int, port: int) -> None:
    """Worker 0 prepares for longer than steps may wait for each other."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", RANK=str(rank))
    dist.init_process_group("gloo", timeout=timedelta(seconds=_LIMIT_S))
    context, group = LocalContext.start(use_gpu=False), patient_group(2)
    if rank == 0:
        time.sleep(2 * _LIMIT_S)
    wait_for_all(group, context)
    total = torch.ones(1)
    dist.all_reduce(total)  # in the limit of steps, which are still together
    assert total == 2
    dist.destroy_process_group()


def test_preparing_may_take_longer_than_a_step() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = [FORKS.Process(target=_prepare_for_long, args=(rank, port)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]


def test_one_process_waits_for_nobody() -> None:
    assert patient_group(1) is None
    wait_for_all(None, LocalContext(0, 1, torch.device("cpu")))


@pytest.mark.slow
def test_a_mistake_that_worker_0_finds_is_one_line_and_ends_all_at_once(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["shapes_textteacher", "--text.captions", "none.csv", "--run.storage", str(tmp_path), "--run.name", "none"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tt_ray.train", *words, "--run.num_workers", "2"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,  # the others would wait for two days
    )
    ours = [line for line in done.stderr.splitlines() if line.startswith(("error", "note")) or "none.csv" in line]
    assert done.returncode and len(ours) == 1 and ours[0].startswith("error: no caption table none.csv")
