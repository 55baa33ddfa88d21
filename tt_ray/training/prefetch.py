"""Copying and augmenting batches while the device still computes the steps before."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from tt_ray.config import DataConfig
from tt_ray.data.finish import Rest, finish
from tt_ray.data.loader import Batch

B = TypeVar("B")
T = TypeVar("T")


def augments_on(device: torch.device, config: DataConfig) -> bool:
    """Whether `data.augment_on` has the device augment, rather than the loaders."""
    return config.augment_on == "device" or (config.augment_on == "auto" and device.type == "cuda")


def one_ahead(items: Iterable[B], begin: Callable[[B], T]) -> Iterator[T]:
    """What `begin` makes of each item; it has begun the next one before the caller gets the one before."""
    waiting: list[T] = []
    for item in items:
        waiting.append(begin(item))
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def finished_ahead(batches: Iterable[Batch], device: torch.device, config: DataConfig) -> Iterator[Batch]:
    """Batches, each on a GPU with its images finished; on a CPU they are left as they are.

    That happens on a stream of its own, and is asked for before the step that comes first is: the two run side by side,
    also where the host is no faster than the GPU, or has just waited for it to read metrics.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)

    def begin(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            # Pinned memory that a copy reads is not given to others before the copy is done: torch's allocator of it
            # takes note of the stream. So the loader's batch may go at once.
            images = finish(batch.images.to(device, non_blocking=True), batch.rest, config)
            labels = batch.labels.to(device, non_blocking=True)
            text = None if batch.text is None else batch.text.to(device, non_blocking=True)
            done = torch.cuda.Event()
            done.record(stream)
            return Batch(images, labels, text, batch.rows, Rest()), done

    for batch, done in one_ahead(batches, begin):
        steps = torch.cuda.current_stream(device)
        # The step's stream waits, not the host; and not for the stream, in which the batch after this one is by now.
        steps.wait_event(done)
        # Nor is a batch's memory given to another one before the step is done with it.
        for part in (batch.images, batch.labels, batch.text):
            if part is not None:
                part.record_stream(steps)
        yield batch
