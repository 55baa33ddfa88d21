"""On one real Ray: messages reach every process of the cluster, pauses and requests the workers, progress the display;
and a worker's validations are done by others.
"""

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster.ray_here import ray_here as ray_here
from tests.io.pulled_here import Sent, copy_of_one_file
from tt_ray.cluster.actor_pool import Actor, Pool
from tt_ray.cluster.messages import Messages, ProgressThread, pulls_shown, send_pulls
from tt_ray.terminal.progress import Standing

if TYPE_CHECKING:  # it imports torch, which the other processes of these tests do without
    from tt_ray.cluster.context import RayContext

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


class Held:
    """Messages without Ray."""

    def __init__(self, **messages: Any) -> None:
        self.held, self.asked = messages, threading.Event()

    def get(self, name: str) -> Any:
        if name == "progress":
            self.asked.set()
        return self.held.get(name)


def test_what_a_worker_does_before_the_first_step_is_shown() -> None:
    shown: list[Any] = []
    lines, messages = Lines(), Held(preparing=["MB pulled", 3, 8])
    lines.show = lambda *news: shown.append(news)  # type: ignore[attr-defined]
    thread = ProgressThread(messages, lines, 0.001)  # type: ignore[arg-type]
    with thread:
        for _ in range(3):
            messages.asked.clear()
            assert messages.asked.wait(10)
    assert shown == [("MB pulled", 3, 8)], "each piece of news once"


def test_what_processes_pull_is_shown_while_the_command_waits_and_ray_may_be_gone(tmp_path: Path) -> None:
    shown, looked = list[Any](), threading.Event()

    class Ended(Held):
        def get(self, name: str) -> Any:
            if looked.is_set():
                raise ConnectionError
            return super().get(name)

    def show(*news: Any) -> None:
        shown.append(news)
        looked.set()

    with pulls_shown(Ended(pulling=["MB pulled", 3, 8]), show, 0.001):  # type: ignore[arg-type]
        assert looked.wait(10)
    assert shown == [("MB pulled", 3, 8)]


def test_a_process_sends_what_it_pulls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = Sent(monkeypatch)
    send_pulls(sent)  # type: ignore[arg-type]
    copy_of_one_file(tmp_path).pull()
    sent.assert_pulled(tmp_path)


def test_an_actor_sends_what_it_pulls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the captioner's do, which read the images."""
    sent, copy = Sent(monkeypatch), copy_of_one_file(tmp_path)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_actor_id=lambda: "a"))
    Actor(lambda _: copy.pull(), Pool(1, 1, False), None, sent)  # type: ignore[arg-type, func-returns-value, return-value]
    sent.assert_pulled(tmp_path)


# Pauses before a resize


def resize(messages: Messages) -> float:
    """Seconds that Ray's controller is held up before a resize."""
    from ray.train.v2._internal.execution.controller.state import ResizingState

    from tt_ray.cluster.ray_internals import PauseToResize

    start = time.monotonic()
    PauseToResize(messages).after_controller_state_update(None, object.__new__(ResizingState))
    return time.monotonic() - start


@pytest.mark.parametrize("when", ["before", "while waiting"])
def test_a_stop_outlives_a_resize(ray_here: None, when: str) -> None:
    messages = Messages()

    def worker() -> None:
        while messages.get("pause") is None:
            time.sleep(0.05)
        if when != "before":
            messages.put("request", "stop")
        messages.put("stopped", 7)

    if when == "before":
        messages.put("request", "stop")
    thread = threading.Thread(target=worker)
    thread.start()
    assert resize(messages) < 10, "a worker that has stopped is not waited for"
    thread.join()
    assert messages.get("request") == "stop" and messages.get("pause") is None


def test_a_pause_is_over_after_the_resize_and_other_states_change_nothing(ray_here: None) -> None:
    from tt_ray.cluster.ray_internals import PauseToResize

    messages = Messages()
    PauseToResize(messages).after_controller_state_update(None, object())
    assert messages.get("pause") is None
    threading.Timer(0.3, lambda: messages.put("paused", 7)).start()
    assert 0.2 < resize(messages) < 10
    assert messages.get("pause") is None and messages.get("request") is None


# A worker's context


def worker(rank: int = 0) -> "RayContext":
    """Worker `rank` outside of a run, which alone has ranks and devices."""
    import torch

    from tt_ray.cluster.context import RayContext

    made = object.__new__(RayContext)
    made.rank, made.device, made._messages, made._patience = rank, torch.device("cpu"), Messages(), None
    return made


def scores(top1: float) -> dict[str, float]:
    """A validation."""
    return {"top1": top1}


class Hold:
    """Takes CPUs."""

    def ready(self) -> bool:
        return True


def test_validations_that_find_no_place_run_beside_the_workers(ray_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr("tt_ray.cluster.context._LAST_WAIT_S", 1.0)
    cpus = int(ray.cluster_resources()["CPU"])
    holder: Any = ray.remote(num_cpus=cpus)(Hold).remote()
    ray.get(holder.ready.remote())
    own = worker()
    answers = [own.beside(scores, float(number)) for number in range(2)]
    assert [answer(False) for answer in answers] == [None, None]
    assert [answer(True) for answer in answers] == [{"top1": 0.0}, {"top1": 1.0}]
    ray.kill(holder)


def test_a_validation_that_finds_a_place_is_there_without_waiting(ray_here: None) -> None:
    answer = worker().beside(scores, 5.0)
    done = threading.Event()
    for _ in range(300):
        if (found := answer(False)) is not None:
            break
        done.wait(0.1)
    assert found == {"top1": 5.0}


def test_what_is_requested(ray_here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.train

    notice: list[Any] = [None]
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: notice[0])
    first, second = worker(), worker(1)
    second._messages = first._messages
    assert first.requested() == second.requested() == ""
    first._messages.put("pause", "pause")
    assert first.requested() == "pause"
    first._messages.put("request", "stop")
    assert (first.requested(), second.requested()) == ("stop", ""), "worker 0 asks for all, and a stop comes first"
    notice[0] = object()
    assert first.requested() == second.requested() == "preempted"
