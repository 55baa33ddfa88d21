"""A worker's requests, and the validations that it has others do, on a real Ray."""

import threading
from typing import Any

import pytest
import torch

from tests.cluster.ray_here import ray_here as ray_here
from tt_ray.cluster import context
from tt_ray.cluster.context import RayContext
from tt_ray.cluster.messages import Messages

pytestmark = pytest.mark.slow


def worker(rank: int = 0) -> RayContext:
    """Worker `rank` outside of a run, which alone has ranks and devices."""
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

    monkeypatch.setattr(context, "_LAST_WAIT_S", 1.0)
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
