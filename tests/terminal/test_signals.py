"""Ctrl-C and SIGTERM: while native code keeps the main thread, and where a checkpoint comes first."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from tt_ray.terminal import signals
from tt_ray.terminal.command import run_command
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.signals import ended, say_at_end, stop_on_signals

# As in native code: signals come, and Python does nothing about them.
STUCK = """
import signal, time
from tt_ray.terminal import signals
with signals.signals_act_soon():
    for number in signals.ENDED:
        signal.signal(number, lambda *_: None)
    print("stuck", flush=True)
    while True:
        time.sleep(60)
"""
AT_WORK = """
import time
from tt_ray.terminal import signals
from tt_ray.terminal.command import run_command

def main(arguments):
    with signals.signals_act_soon():
        print("at work", flush=True)
        time.sleep(60)

run_command(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("script", [STUCK, AT_WORK])
def test_a_signal_ends_the_command_with_one_line(
    script: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "_next_time", signals._next_time[:1])  # whatever this process has trained before
    command = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None and command.stdout.readline()
    command.send_signal(number)
    _, err = command.communicate(timeout=30)
    assert (command.returncode, err) == (128 + number, f"error: {ended(number)}\n")


def test_the_last_line_says_what_the_same_command_would_do_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_next_time", signals._next_time[:1])
    assert ended(signal.SIGTERM) == "terminated; what is finished is kept: the same command does the rest"
    for says in ("first", "second"):  # as of the trainings of a comparison, one after the other
        say_at_end(lambda says=says: says)
        assert ended(signal.SIGINT) == f"interrupted; {says}"


def test_a_signal_that_comes_twice_at_once_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    with stop_on_signals(lambda: asked.append(1), signal.SIGTERM) as came:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert came == [signal.SIGTERM] * 2 and asked == [1]
        monkeypatch.setattr(signals, "_SAME_SIGNAL_S", -1.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is not came


@pytest.mark.parametrize(("rank", "torchrun_ends_it", "says"), [(0, True, True), (1, True, False), (1, False, True)])
def test_of_torchrun_s_processes_worker_0_says_what_all_have_met(
    rank: int, torchrun_ends_it: bool, says: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And another one what it alone has met: exit code 2 of each."""

    class Waited(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if torchrun_ends_it:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().wait(60 if torchrun_ends_it else 0)

    def mistaken(arguments: list[str]) -> None:
        raise UserError("no field optim.lrr")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["prog"])
    monkeypatch.setattr("tt_ray.terminal.signals.threading.Event", Waited)
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "RANK": str(rank)}.items():
        monkeypatch.setenv(name, value)
    try:
        with pytest.raises(SystemExit, match="2"):
            run_command(mistaken)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "error: no field optim.lrr\n" * says
