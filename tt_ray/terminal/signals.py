"""How a command ends on Ctrl-C and SIGTERM: at once, or once everything is saved."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from tt_ray.terminal.errors import Stopped

ENDED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
"""What has happened to a command, by signal; its exit status is 128 plus the signal's number."""
# Python acts between two of its instructions; Ray's C++ may keep it from them for much longer.
_PATIENCE_S = 1.0
_SAME_SIGNAL_S = 1.0
# Time for worker 0 of torchrun to make the same mistake, and for torchrun to end the others after that.
_GRACE_S = 10.0
_SHOW_CURSOR = "\x1b[?25h"

_next_time: "list[Callable[[], str]]" = [lambda: "what is finished is kept: the same command does the rest"]
at_end: "list[Callable[[], None]]" = []
"""Functions that `end_at_once` calls before the end: short, and unable to fail."""


def ended(number: int) -> str:
    """Last line of a command that a signal has ended: what has happened, and what the same command would do next."""
    return f"{ENDED[signal.Signals(number)]}; {_next_time[-1]()}"


def say_at_end(next_time: Callable[[], str]) -> None:
    """Has `ended` say what `next_time` returns, from here to the end of the process or to the next call."""
    _next_time[1:] = [next_time]


def begin() -> None:
    """Has `ended` say nothing of a command that was in this process before."""
    _next_time[1:] = []


@contextmanager
def signals_act_soon() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the command while the body of the `with` statement waits in native code.

    A thread receives a signal at once. It leaves the main thread a second to raise KeyboardInterrupt or, on SIGTERM,
    SystemExit, and then ends the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # as Ray does once it starts
    heard, wakes = socket.socketpair()
    wakes.setblocking(False)
    before = signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    left = threading.Event()
    threading.Thread(target=_watch, args=(heard, left), daemon=True).start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        wakes.close()  # ends the thread


def _watch(heard: socket.socket, left: threading.Event) -> None:
    with heard:
        while numbers := heard.recv(64):
            for number in ENDED:
                if number in numbers and not left.wait(_PATIENCE_S):
                    cursor = _SHOW_CURSOR * sys.stderr.isatty()  # a live line has hidden it
                    print(f"{cursor}error: {ended(number)}", file=sys.stderr)
                    end_at_once(128 + number)


@contextmanager
def stop_on_signals(ask: Callable[[], None], *numbers: signal.Signals) -> Iterator[list[int]]:
    """The first signal asks for an orderly end, such as a checkpoint; a second one ends the command at once.

    Outside the main thread, as in a library's caller that has threads, signals stay what they are.

    Args:
        ask: Called on the first signal, in the main thread: asks for the end and returns.
        *numbers: The signals.

    Yields:
        The numbers of the signals that have arrived so far.
    """
    came: list[int] = []
    first = 0.0

    def handle(number: int, frame: object) -> None:
        nonlocal first
        came.append(number)
        if len(came) == 1:
            first = time.monotonic()
            ask()
        # `timeout` signals its child, and then the group that the child is in: two signals, one wish.
        elif time.monotonic() > first + _SAME_SIGNAL_S:
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handle) for number in numbers if main}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped(step: int, number: int) -> Stopped:
    """The exception that ends a training command after a signal, once its checkpoint is written."""
    return Stopped(f"stopped after step {step}, with a checkpoint; the same command resumes it", 128 + number)


def end_at_once(code: int) -> NoReturn:
    """Ends the process without Python's and Ray's orderly end.

    Ray would take seconds to end its processes, which the kernel does as well, and Python may crash when it ends under
    a thread in native code. Files are written so that a kill does no harm.
    """
    for last in at_end:
        last()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def said_by_worker_0() -> bool:
    """Whether this process of torchrun may end without a word: worker 0 has failed too, and has said why.

    All of them have the same command line and usually the same files. torchrun ends the others by SIGTERM once one has
    failed; where none comes, this process alone has met the mistake, and is the one to say it.
    """
    worker = int(os.environ.get("RANK", "0")) if "TORCHELASTIC_RUN_ID" in os.environ else 0
    if worker == 0 or threading.current_thread() is not threading.main_thread():
        return False
    came = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: came.set())
    return came.wait(_GRACE_S)
