"""Work in a thread that does not keep a command from ending."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
_NAME = "background"


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


def busy_in_background() -> bool:
    """Whether such work still goes on."""
    return any(thread.name == _NAME for thread in threading.enumerate())
