"""How the command starts Ray, without starting it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError

from tests.toy import toy_config
from tt_ray.cluster.launch import WorkerFailed, _no_retry
from tt_ray.terminal.errors import NonFiniteLoss, UserError

STARTS = """
import time, types
import ray
from ray._private import services
from tt_ray.cluster import launch as ray_train

def start(**options):
    popen = services.start_ray_process(["sleep", "60"], "raylet", fate_share=True)
    print(popen.process.pid, flush=True)

ray.is_initialized = lambda: False
ray.init = start
ray_train.join_ray()
assert isinstance(services.ConsolePopen, type), "put back"
time.sleep(60)
"""


@pytest.fixture
def started() -> tuple[subprocess.Popen[str], int]:
    """A command that has started a process as Ray does, and that process."""
    command = subprocess.Popen(
        [sys.executable, "-c", STARTS], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert command.stdout is not None
    return command, int(command.stdout.readline())


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def test_signals_to_the_group_spare_ray_which_dies_with_the_command(started: tuple[subprocess.Popen[str], int]) -> None:
    command, daemon = started
    assert os.getsid(daemon) == daemon and os.getpgid(daemon) != os.getpgid(command.pid)
    assert running(daemon)
    command.kill()
    command.communicate()
    end = time.monotonic() + 20
    while running(daemon):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_python_s_exceptions_are_not_tried_again_without_a_checkpoint_between(tmp_path: Path) -> None:
    config = toy_config(tmp_path, "shapes_baseline")
    checkpoints = config.run_dir / "checkpoints"
    decide = _no_retry(config).after_exception
    own, died = {0: ValueError("Expected more\nthan 1 value")}, {0: ActorDiedError()}
    for _ in range(2):
        decide(None, died)
    with pytest.raises(WorkerFailed, match=r"^worker 0 failed: ValueError: Expected more than 1 value$"):
        decide(None, own)
    (checkpoints / "step-00000004").mkdir(parents=True)
    decide(None, own)
    with pytest.raises(WorkerFailed):  # at the same checkpoint again
        decide(None, own)
    (checkpoints / "step-00000008").mkdir()
    (checkpoints / "step-00000004").rmdir()
    decide(None, own)
    with pytest.raises(WorkerFailed):  # a resumed command begins with checkpoints
        _no_retry(config).after_exception(None, own)


@pytest.mark.parametrize("error", [UserError("mend this"), NonFiniteLoss("at step 3")])
def test_what_a_user_can_mend_is_never_tried_again(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as raised:
        _no_retry(toy_config(tmp_path, "shapes_baseline")).after_exception(None, {0: ActorDiedError(), 1: error})
    assert raised.value is error
