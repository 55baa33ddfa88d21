"""Messages reach every process of the cluster, and their progress the display."""

import time
from typing import Any

import pytest

from tests.cluster.ray_here import ray_here as ray_here
from tt_ray.cluster.messages import Messages, ProgressThread
from tt_ray.terminal.progress import Standing

pytestmark = pytest.mark.slow


def exchange(messages: Messages) -> Any:
    """As a worker does, in a process of its own."""
    messages.send("progress", 1)
    messages.put("progress", {"step": 2})
    return messages.get("request")


def test_other_processes_read_and_write_them(ray_here: None) -> None:
    import ray

    messages, others = Messages(), Messages()
    assert messages.get("request") is None
    messages.send("request", "stop")
    answer = ray.get(ray.remote(num_cpus=0)(exchange).remote(messages))
    assert answer == "stop" and messages.get("progress") == {"step": 2}
    assert others.get("request") is None, "those of another command"


class Lines:
    """A display that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.shown: list[Standing] = []
        self.say, self.training = self.said.append, self.shown.append


def test_progress_is_shown_once_and_a_restart_is_said(ray_here: None) -> None:
    from dataclasses import asdict

    messages, lines = Messages(), Lines()
    first, second = (Standing(step, 8, 1, 2.0, 3.0, 0.5, None) for step in (1, 2))
    with ProgressThread(messages, lines, 0.05):  # type: ignore[arg-type]
        for standing, times in ((first, 1), (second, 2)):
            messages.put("started", {"times": times, "workers": times})
            messages.put("progress", asdict(standing))
            time.sleep(0.5)
    assert lines.shown == [first, second]
    assert lines.said == ["workers were started again: 2 of them"]
