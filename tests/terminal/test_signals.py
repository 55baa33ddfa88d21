"""Ctrl-C and SIGTERM: while native code keeps the main thread, and where a checkpoint comes first."""

import os
import signal
import subprocess
import sys

import pytest

from tt_ray.terminal import signals
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
