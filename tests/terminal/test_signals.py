"""Ctrl-C and SIGTERM while native code keeps the main thread."""

import signal
import subprocess
import sys

import pytest

from tt_ray.terminal.signals import ENDED

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
def test_a_signal_ends_the_command_with_one_line(script: str, number: signal.Signals) -> None:
    command = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None and command.stdout.readline()
    command.send_signal(number)
    _, err = command.communicate(timeout=30)
    assert (command.returncode, err) == (128 + number, f"error: {ENDED[number]}\n")
