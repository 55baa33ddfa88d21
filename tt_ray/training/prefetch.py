"""Copying and augmenting batches while the device still computes the steps before."""

from collections.abc import Iterable, Iterator

import torch

from tt_ray.config import DataConfig
from tt_ray.data.finish import Rest, finish
from tt_ray.data.loader import Batch


def augments_on(device: torch.device, config: DataConfig) -> bool:
    """Whether `data.augment_on` has the device augment, rather than the loaders."""
    return config.augment_on == "device" or (config.augment_on == "auto" and device.type == "cuda")


def finished_ahead(batches: Iterable[Batch], device: torch.device, config: DataConfig) -> Iterator[Batch]:
    """Batches on a GPU, their images finished, on a stream of its own.

    Steps do not wait for the device, so the host asks for a batch while earlier steps still run: its copy and its
    augmentation run next to them.
    """
    stream = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(stream):
            images = finish(batch.images.to(device, non_blocking=True), batch.rest, config)
            labels = batch.labels.to(device, non_blocking=True)
            text = None if batch.text is None else batch.text.to(device, non_blocking=True)
        steps = torch.cuda.current_stream(device)
        # The step's stream waits, not the host; and the memory is not used again before that stream is done with it.
        steps.wait_stream(stream)
        for part in (images, labels, text):
            if part is not None:
                part.record_stream(steps)
        yield Batch(images, labels, text, batch.rows, Rest())
