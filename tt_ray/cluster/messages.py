"""Messages between a command, Ray Train's controller and the workers: the latest of each name, kept by an actor."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from tt_ray.io.local_copy import Announced, Show, show_pulls_by
from tt_ray.terminal.progress import Display, Standing


class Messages:
    """Named messages of one command; each replaces the one before.

    Other processes of the cluster receive them as an argument. The actor that holds them needs no CPU, runs on the
    machine of the command, ends with it, and starts in the background: the first answer takes about two seconds.
    """

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # A machine that workers run on may be taken away.
        here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._actor: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(_Holder).remote()

    def put(self, name: str, message: Any) -> None:
        """Sends a message; returns once it has arrived."""
        import ray

        ray.get(self._actor.put.remote(name, message))

    def send(self, name: str, message: Any) -> None:
        """Sends a message and returns at once: for signal handlers, and for news that the next will replace."""
        self._actor.put.remote(name, message)

    def get(self, name: str) -> Any:
        """The latest message of that name; None when there is none."""
        import ray

        return ray.get(self._actor.get.remote(name))


class _Holder:
    def __init__(self) -> None:
        self._held: dict[str, Any] = {}

    def put(self, name: str, message: Any) -> None:
        self._held[name] = message

    def get(self, name: str) -> Any:
        return self._held.get(name)


def send_pulls(messages: Messages) -> None:
    """Sends to the command how far this process is with what it pulls from object storage."""
    show_pulls_by(lambda *news: messages.send("pulling", list(news)))


@contextmanager
def pulls_shown(messages: Messages, show: Show, interval_s: float = 0.5) -> Iterator[None]:
    """Shows what processes pull (`send_pulls`) while the body of the `with` statement waits for them."""
    stop, before = threading.Event(), None

    def watch() -> None:
        nonlocal before
        while not stop.wait(interval_s):
            try:
                news = messages.get("pulling")
            except Exception:  # a signal that came to the command may have ended Ray as well
                return
            if news not in (None, before):
                before = news
                show(*news)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def pulls_announced(display: Display) -> Iterator[Messages]:
    """Messages for processes whose pulls are said in lines, above what the display shows."""
    messages = Messages()
    with pulls_shown(messages, Announced(display.say)):
        yield messages


class ProgressThread:
    """Shows the progress that worker 0 sends, while the body of the `with` statement waits for the run."""

    def __init__(self, messages: Messages, display: Display, interval_s: float = 0.5) -> None:
        self._messages, self._display, self._interval_s = messages, display, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        last, starts, prepared = None, None, None
        while not self._stop.wait(self._interval_s):
            started, standing = self._messages.get("started"), self._messages.get("progress")
            if started is not None and started != starts:
                starts = started
                if started["times"] > 1:
                    self._display.say(f"workers were started again: {started['workers']} of them")
            if standing is None and (preparing := self._messages.get("preparing")) not in (None, prepared):
                prepared = preparing
                self._display.show(*preparing)
            if standing is not None and standing != last:
                last = standing
                self._display.training(Standing(**standing))
