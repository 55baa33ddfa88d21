"""What is arranged with Ray Train around a run, without starting it: pauses and stops, and room on the cluster."""

import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train.v2._internal.execution.controller.state import ResizingState

from tests.toy import toy_config
from tt_ray.cluster.launch import cpus_per_worker
from tt_ray.cluster.messages import Mailbox
from tt_ray.cluster.ray_internals import PauseToResize
from tt_ray.terminal.errors import UserError
from tt_ray.training.context import RayContext


class Letters(Mailbox):
    """A mailbox without a cluster."""

    def __init__(self) -> None:
        self.__dict__["held"] = {}

    def put(self, name: str, message: Any) -> None:
        self.__dict__["held"][name] = message

    def get(self, name: str) -> Any:
        return self.__dict__["held"].get(name)


def worker(mailbox: Mailbox, rank: int = 0) -> RayContext:
    """Worker `rank`, of whom only what it is asked is tested."""
    context = object.__new__(RayContext)
    context.rank, context._mailbox = rank, mailbox
    context._notice = type("Notice", (), {"preemption_info": None})()
    return context


@pytest.mark.parametrize("when", ["before", "while waiting"])
def test_a_stop_outlives_a_resize(when: str) -> None:
    mailbox = Letters()
    context, seen = worker(mailbox), list[str]()

    def train() -> None:
        while not (request := context.requested()) or (when != "before" and mailbox.get("request") is None):
            time.sleep(0.01)
        seen.append(request if when == "before" else context.requested())
        mailbox.put("stopped", 7)

    if when == "before":
        mailbox.put("request", "stop")
    else:
        threading.Timer(0.1, lambda: mailbox.put("request", "stop")).start()
    thread = threading.Thread(target=train)
    thread.start()
    start = time.monotonic()
    PauseToResize(mailbox).after_controller_state_update(None, object.__new__(ResizingState))
    thread.join()
    assert time.monotonic() - start < 10, "a worker that has stopped is not waited for"
    assert seen == ["stop"] and mailbox.get("request") == "stop"
    assert mailbox.get("pause") is None and context.requested() == "stop"


def test_a_pause_without_a_stop_is_over_after_the_resize() -> None:
    mailbox = Letters()
    context = worker(mailbox)
    threading.Timer(0.1, lambda: mailbox.put("paused", 7)).start()
    PauseToResize(mailbox).after_controller_state_update(None, object.__new__(ResizingState))
    assert context.requested() == ""


def test_validations_that_find_no_place_run_beside_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Task:
        def __init__(self, **options: Any) -> None:
            self.wanted = options["num_cpus"]

        def __call__(self, function: Any) -> "Task":
            return self

        def options(self, **options: Any) -> "Task":
            return Task(**options)

        def remote(self, *arguments: Any) -> "Task":
            return self

    ray = type("Ray", (), {})()
    ray.remote = Task
    ray.wait = lambda tasks, timeout: (calls.append("wait"), [task for task in tasks if not task.wanted])[1:]
    ray.cancel = lambda task: calls.append("cancel")
    ray.get = lambda task: {"top1": 50.0} if not task.wanted else pytest.fail("waits for ever")
    monkeypatch.setitem(sys.modules, "ray", ray)
    context = worker(Letters())
    context.device, context._patience = torch.device("cpu"), None
    answers = [context.beside(lambda: {"top1": 0.0}) for _ in range(2)]
    assert [answer(False) for answer in answers] == [None, None]
    assert [answer(True) for answer in answers] == [{"top1": 50.0}] * 2
    assert calls.count("cancel") == 2


def test_elastic_workers_leave_no_place_for_validations(tmp_path: Path) -> None:
    config = toy_config(tmp_path, "shapes_baseline", run__num_workers="1:2", run__async_validation=True)
    with pytest.raises(UserError, match="run.async_validation False, or a fixed"):
        cpus_per_worker(config, {"CPU": 8.0})
