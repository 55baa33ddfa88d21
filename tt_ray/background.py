"""Work in a thread that does not keep a command from ending."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import NoReturn, TypeVar

T = TypeVar("T")
_NAME = "background"
_LAST_WAIT_S = 0.5


def in_background(function: Callable[..., T], *arguments: object) -> "Future[T]":
    """Starts to run `function`; whoever waits for the result can be interrupted, unlike the end of a thread pool."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=_NAME, daemon=True).start()
    return future


def leave(code: int) -> NoReturn:
    """Exits, although work may still be done in the background: writes are safe against that, as against a kill."""
    for thread in threading.enumerate():
        if thread.name == _NAME:
            thread.join(_LAST_WAIT_S)
            if thread.is_alive():
                # Python would end under a thread in native code, which can crash. Ray's processes end with this one.
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
    raise SystemExit(code)
