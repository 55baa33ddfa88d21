"""Augmentation on the device: one sample at any number of workers and loaders, and a run that resumes bit for bit."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toy import largest_difference, run_toy, toy_config, weights
from tt_ray.config import DataConfig
from tt_ray.data.finish import finish
from tt_ray.data.loader import TrainBatches
from tt_ray.data.loader_processes import prepared
from tt_ray.data.prepare import open_data
from tt_ray.data.sampling import train_order
from tt_ray.terminal.errors import Interrupted
from tt_ray.training.context import LocalContext
from tt_ray.training.prefetch import augments_on, finished_ahead, one_ahead
from tt_ray.training.run_folder import start_run
from tt_ray.training.trainer import train

SETTINGS: dict[str, Any] = {"text__weight": 0.0, "data__augment_on": "device", "data__num_loaders": 0}
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("where", "cpu", "gpu"), [("auto", False, True), ("loader", False, False), ("device", True, True)]
)
def test_where_it_augments(where: Any, cpu: bool, gpu: bool) -> None:
    config = DataConfig(augment_on=where)
    assert (augments_on(CPU, config), augments_on(GPU, config)) == (cpu, gpu)


@pytest.mark.parametrize("augment", ["three_augment", "deit"])
def test_samples_are_the_same_at_any_number_of_workers_and_loaders(augment: str, tmp_path: Path) -> None:
    config = toy_config(tmp_path, data__augment=augment, data__repeats=2, **SETTINGS)
    data = open_data(config, None)
    alone = TrainBatches(data.train, None, train_order(config, 48, 0, 1), config, on_device=True)
    expected = [finish(alone[step].images, alone[step].rest, config.data) for step in range(4)]
    for number, batch in enumerate(prepared(alone, range(4), 2, pin=False)):
        assert torch.equal(finish(batch.images, batch.rest, config.data), expected[number])
    for world in (2, 3):
        for rank in range(world):
            order = train_order(config, 48, rank, world)
            batch = TrainBatches(data.train, None, order, config, on_device=True)[3]
            assert torch.equal(finish(batch.images, batch.rest, config.data), expected[3][order.part()])


@pytest.mark.parametrize("augment", ["three_augment", "deit"])
def test_a_run_resumes_bit_for_bit(augment: str, tmp_path: Path) -> None:
    whole, parted = (toy_config(tmp_path / name, data__augment=augment, **SETTINGS) for name in ("whole", "parted"))
    run_toy(whole)
    start_run(parted)
    with pytest.raises(Interrupted):
        train(parted, open_data(parted, None), LocalContext.start(use_gpu=False), until=1)
    run_toy(parted)
    assert largest_difference(weights(whole), weights(parted)) == 0
    elsewhere = toy_config(tmp_path / "loader", data__augment=augment, **{**SETTINGS, "data__augment_on": "loader"})
    run_toy(elsewhere)
    assert largest_difference(weights(whole), weights(elsewhere)) < 0.01, "the same images but for roundings"


def test_the_next_one_has_begun_before_the_one_before_is_used() -> None:
    done = list[str]()

    def begin(number: int) -> int:
        done.append(f"begin {number}")
        return number

    for number in one_ahead(range(3), begin):
        done.append(f"use {number}")
    assert done == ["begin 0", "begin 1", "use 0", "begin 2", "use 1", "use 2"]
    assert list(one_ahead([], begin)) == [] and list(one_ahead([7], begin)) == [7]


class Stream:
    """A stream of a GPU that notes what is asked of it."""

    def __init__(self, name: str, done: list[str]) -> None:
        self.name, self.done, self.events = name, done, 0

    def wait_event(self, event: "Event") -> None:
        self.done.append(f"{self.name}: wait for {event.name}")


class Event:
    """An event of a GPU."""

    name = ""

    def record(self, stream: Stream) -> None:
        stream.events += 1
        self.name = f"event {stream.events}"
        stream.done.append(f"{stream.name}: {self.name}")


def test_a_step_waits_for_its_own_batch_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of what is asked of both streams; a batch's memory is that of the step's stream, too."""
    done = list[str]()
    side, steps = Stream("side", done), Stream("steps", done)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: steps)
    kept = list[tuple[torch.Tensor, Any]]()
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda part, stream: kept.append((part, stream)))
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda part, where, **how: part if where == GPU else to(part, where, **how))
    config = toy_config(tmp_path, data__augment="deit", **SETTINGS)
    data = open_data(config, None)
    batches = TrainBatches(data.train, None, train_order(config, 48, 0, 1), config, on_device=True)
    for batch in finished_ahead((batches[step] for step in range(3)), GPU, config.data):
        done.append("step")
        assert batch.images.dtype == torch.float32 and batch.rest == (None, None)
        assert [id(part) for part, _ in kept] == [id(batch.images), id(batch.labels)]
        assert all(stream is steps for _, stream in kept)
        kept.clear()
    assert done == [
        "side: event 1", "side: event 2", "steps: wait for event 1", "step",
        "side: event 3", "steps: wait for event 2", "step", "steps: wait for event 3", "step",
    ]  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a stream of its own needs a GPU")
def test_batches_are_finished_ahead_on_a_gpu(tmp_path: Path) -> None:
    config = toy_config(tmp_path, data__augment="deit", **SETTINGS)
    data = open_data(config, None)
    batches = TrainBatches(data.train, None, train_order(config, 48, 0, 1), config, on_device=True)
    ahead = finished_ahead(prepared(batches, range(4), 0, pin=True), GPU, config.data)
    for step, batch in enumerate(ahead):
        expected = finish(batches[step].images, batches[step].rest, config.data)
        assert batch.images.device == GPU and batch.rest == (None, None)
        assert (batch.images.cpu() - expected).abs().mean() < 0.02
        assert torch.equal(batch.labels.cpu(), batches[step].labels) and not batch.rows.is_cuda
