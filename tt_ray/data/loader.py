"""Batches by step number: which images, how augmented, depends on (seed, epoch, sample) and (seed, step) alone."""

import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tt_ray.config import Config
from tt_ray.data.augment import (
    VECTORISED,
    augment_pixels,
    channels_first,
    eval_transform,
    sample_seeds,
)
from tt_ray.data.finish import Rest
from tt_ray.data.image_batches import AugmentedImages, eval_images
from tt_ray.data.loader_processes import prepared
from tt_ray.data.sampling import Order, Rows
from tt_ray.data.sources.base import NOBODY, Pixels, Source
from tt_ray.data.text_targets import TextTargets

_EVAL_BATCH = 256


class Batch(NamedTuple):
    """One worker's part of a step."""

    images: Tensor
    """(B, 3, H, W): uint8 pixels, or floats that are finished (see `finish`)."""
    labels: Tensor
    """(B,) class numbers, -1 for none, or (B, C) shares once mixed."""
    text: Tensor | None
    """(B, D) normalised embeddings."""
    rows: Tensor
    """(B,) row numbers in the split."""
    rest: Rest = Rest()
    """What is left to do to the images: all of it is done by `finish`."""


class TrainBatches(Dataset[Batch]):
    """`self[step]` is this worker's part of the batch of that step, whatever came before.

    Images that are decoded one by one are augmented here, or, with `on_device`, by `finish`.
    """

    def __init__(
        self, source: Source, targets: TextTargets | None, order: Order, config: Config, on_device: bool = False
    ) -> None:
        source = source.images_alone()
        source.pull()
        self.source, self.targets, self.order = source, targets, order
        self.size, self.preset = config.data.image_size, config.data.augment
        self.augmented = None if self.preset in VECTORISED else AugmentedImages(source, config.data, on_device)
        self.pixels = hold_pixels(source, config)
        self._epoch: tuple[int, Rows, Rows] | None = None

    def __getitem__(self, step: int) -> Batch:
        epoch, position = divmod(step, self.order.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, *self.order.epoch_rows(epoch))
        chosen = position * self.order.batch_size + self.order.part()
        rows, copies = self._epoch[1][chosen], self._epoch[2][chosen]
        images, rest = self._images(rows, copies, epoch)
        return Batch(
            images,
            torch.from_numpy(self.source.labels[rows]),
            None if self.targets is None else self.targets[rows],
            torch.from_numpy(rows),
            rest,
        )

    def _images(self, rows: Rows, copies: Rows, epoch: int) -> tuple[Tensor, Rest]:
        if self.augmented is not None:
            return self.augmented(rows, sample_seeds(rows, copies, epoch, self.order.seed))
        pixels = self.source.pixels(rows, self.size) if self.pixels is None else self.pixels[rows]
        return channels_first(augment_pixels(pixels, rows, copies, epoch, self.order.seed, self.preset)), Rest()


class EvalBatches(Dataset[Batch]):
    """Every image of a split exactly once over all workers; `self[i]` is the i-th batch of this worker's share.

    All workers have as many batches, for they exchange weights in each where the model is sharded: one without an image
    left repeats its first, with the label -1.
    """

    def __init__(self, source: Source, config: Config, rank: int, world: int, batch_size: int = _EVAL_BATCH) -> None:
        source = source.images_alone()
        source.pull()
        self.source, self.config, self.size, self.batch_size = source, config.data, config.data.image_size, batch_size
        self.share = np.arange(rank, len(source), world)
        self.batches = -(-len(source) // (world * batch_size))
        resized = config.data.augment in VECTORISED and config.data.crop_pct == 1
        self.transform = None if resized else eval_transform(config.data)
        self.pixels = hold_pixels(source, config) if resized else None

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> Batch:
        if index >= self.batches:
            raise IndexError(index)
        rows = self.share[index * self.batch_size : (index + 1) * self.batch_size]
        if not len(rows):
            batch = self._batch(np.zeros(1, np.int64))
            return batch._replace(labels=torch.full_like(batch.labels, NOBODY))
        return self._batch(rows)

    def _batch(self, rows: Rows) -> Batch:
        if self.transform is not None:
            images = eval_images(self.source, rows, self.config, self.transform)
        else:
            pixels = self.source.pixels(rows, self.size) if self.pixels is None else self.pixels[rows]
            images = channels_first(pixels)
        return Batch(images, torch.from_numpy(self.source.labels[rows]), None, torch.from_numpy(rows))


def fits_in_memory(source: Source, config: Config) -> bool:
    """Whether the preset starts from resized pixels, and those of the split fit in `data.cache_gb`."""
    size = config.data.image_size
    return config.data.augment in VECTORISED and len(source) * size * size * 3 <= config.data.cache_gb * 2**30


def hold_pixels(source: Source, config: Config) -> Pixels | None:
    """All images of the split, decoded, if they fit in memory."""
    return source.pixels(np.arange(len(source)), config.data.image_size) if fits_in_memory(source, config) else None


def load(
    batches: TrainBatches | EvalBatches, steps: range, config: Config, device: torch.device, kept: bool = False
) -> Iterable[Batch]:
    """Batches of `steps` in order, prepared ahead by loader processes unless the split is in memory.

    Those that are `kept` serve each iteration, and live until what is returned is gone.
    """
    cuda = device.type == "cuda"
    processes = 0 if batches.pixels is not None else loader_processes(config.data.num_loaders, cuda)
    return prepared(batches, steps, processes, cuda, kept)


def loader_processes(given: int, cuda: bool) -> int:
    """`data.num_loaders`, or for 0 one for each of the worker's CPUs but that of the training itself.

    On a CPU where there is no other this is 0: the worker prepares its batches itself.
    """
    return given or max(worker_cpus() - 1, int(cuda))


def worker_cpus() -> int:
    """CPUs of this worker: torch's threads, or with torchrun, which sets one, its part of the machine's."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return torch.get_num_threads()
