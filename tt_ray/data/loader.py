"""Batches by step number: which images, how augmented, depends on (seed, epoch, sample) and (seed, step) alone."""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

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
        self.source, self.config, self.size, self.batch_size = source, config.data, config.data.image_size, batch_size
        self.share = np.arange(rank, len(source), world)
        self.batches = -(-len(source) // (world * batch_size))
        resized = config.data.augment in VECTORISED and config.data.crop_pct == 1
        self.transform = None if resized else eval_transform(config.data)
        self.pixels = hold_pixels(source, config) if resized else None

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> Batch:
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


def hold_pixels(source: Source, config: Config) -> Pixels | None:
    """All images of the split, decoded, if the preset starts from resized pixels and they fit in `data.cache_gb`."""
    size = config.data.image_size
    if config.data.augment not in VECTORISED or len(source) * size * size * 3 > config.data.cache_gb * 2**30:
        return None
    return source.pixels(np.arange(len(source)), size)


def load(batches: TrainBatches | EvalBatches, steps: range, num_loaders: int, pin: bool) -> Iterator[Batch]:
    """Batches of `steps` in order, prepared by loader processes unless the split is in memory."""
    held = batches.pixels is not None
    kwargs: dict[str, Any] = {} if held or not num_loaders else {"num_workers": num_loaders, "prefetch_factor": 4}
    # Without a batch size, collate_fn gets what the data set returns: a whole batch, to be left as it is.
    as_is = cast(Any, lambda batch: batch)
    return iter(DataLoader(batches, batch_size=None, sampler=steps, collate_fn=as_is, pin_memory=pin, **kwargs))
