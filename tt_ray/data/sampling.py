"""Which images a step sees, and which of them each worker: a function of (seed, epoch) and (step) alone."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tt_ray.config import Config
from tt_ray.stateless_random import place_in_class, seed_of
from tt_ray.terminal.errors import UserError

_ORDER_SEED = 4
Rows = npt.NDArray[np.int64]


class Order(NamedTuple):
    """The order of images: global batches by step, and each worker's part of them."""

    images: int
    """N, images in the training split."""
    batch_size: int
    """Images of a step, over all workers."""
    repeats: int
    seed: int
    rank: int = 0
    world: int = 1
    labelled: Rows | None = None
    """Rows of labelled images, where some are not: every batch then has as many of them, at least half of it."""
    balanced: Rows | None = None
    """Class of each image, (N,), where all classes are to come equally often."""

    @property
    def steps_per_epoch(self) -> int:
        """The last N modulo batch_size images of an epoch's order are left out."""
        return self.images // self.batch_size

    def epoch_rows(self, epoch: int) -> tuple[Rows, Rows]:
        """Rows and copy numbers in the order of an epoch, each (N,): all images once, or N/repeats of them repeated.

        With labelled and unlabelled images each kind comes as often as its places in a batch need, in as many passes;
        with `balanced` classes each class does.
        """
        generator = np.random.Generator(np.random.Philox(seed_of(self.seed, _ORDER_SEED, epoch)))
        if self.labelled is not None:
            return self._two_kinds(generator, self.labelled)
        if self.balanced is not None:
            return self._all_classes(generator, self.balanced)
        order = generator.permutation(self.images)
        if self.repeats == 1:
            return order, np.broadcast_to(np.int64(0), self.images)  # takes no memory, in each of the loaders
        rows = np.repeat(order, self.repeats)[: self.images]
        return rows, (np.arange(self.images) % self.repeats).astype(np.int64)

    @property
    def labelled_places(self) -> npt.NDArray[np.bool_]:
        """Which positions of a global batch have a label, (batch_size,): evenly, so that workers' parts are alike.

        Partners in mixing are both labelled, or neither. The share is that of the data, but at least half.
        """
        assert self.labelled is not None
        pairs = self.batch_size % 2 == 0
        units = self.batch_size // (1 + pairs)
        share = max(len(self.labelled) / self.images, 0.5)
        ends = np.arange(units + 1) * min(round(units * share), units - 1) // units
        places = np.diff(ends) > 0
        return np.concatenate([places, places[::-1]]) if pairs else places

    @property
    def labelled_shares(self) -> tuple[int, ...]:
        """Labelled images of each worker in a step."""
        places = self.labelled_places
        return tuple(int(places[self._replace(rank=rank).part()].sum()) for rank in range(self.world))

    def _two_kinds(self, generator: np.random.Generator, labelled: Rows) -> tuple[Rows, Rows]:
        places = np.tile(self.labelled_places, self.steps_per_epoch)
        rows, copies = np.empty((2, len(places)), np.int64)
        for kind, where in ((labelled, places), (np.setdiff1d(np.arange(self.images), labelled), ~places)):
            passes = -(-int(where.sum()) // (len(kind) * self.repeats))
            order = np.concatenate([np.repeat(generator.permutation(kind), self.repeats) for _ in range(passes)])
            # A copy's number determines its augmentation: one that comes in a later pass is augmented in another way.
            copy = np.arange(passes)[:, None, None] * self.repeats + np.arange(self.repeats)
            copy = np.broadcast_to(copy, (passes, len(kind), self.repeats)).ravel()
            rows[where], copies[where] = order[: where.sum()], copy[: where.sum()]
        return rows, copies

    def _all_classes(self, generator: np.random.Generator, labels: Rows) -> tuple[Rows, Rows]:
        """Every class has N/C places, give or take one, at random; its images fill them in passes, each in an order."""
        present, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        drawn = -(-self.images // self.repeats)
        # A class's place in the first row of a permutation decides whether it has one place more than others.
        places = generator.permutation(generator.permutation(len(present))[np.arange(drawn) % len(present)])
        passes = -(-np.bincount(places, minlength=len(present)) // counts)
        # All passes of all classes in a row: classes in their order, passes within, images at random within these.
        copies = passes[classes]
        rows = np.repeat(np.arange(self.images), copies)
        number = np.arange(len(rows)) - np.repeat(np.cumsum(copies) - copies, copies)
        order = np.lexsort((generator.random(len(rows)), number, classes[rows]))
        starts = np.cumsum(passes * counts) - passes * counts
        chosen = order[starts[places] + place_in_class(places, np.arange(drawn))]
        # A copy's number determines its augmentation: one that comes in a later pass is augmented in another way.
        copy = number[chosen][:, None] * self.repeats + np.arange(self.repeats)
        return np.repeat(rows[chosen], self.repeats)[: self.images], copy.ravel()[: self.images]

    def part(self) -> Rows:
        """Positions of this worker in a global batch, (its share,).

        Position i and its partner in mixing, batch_size - 1 - i, fall to the same worker and stay each other's mirror.
        """
        first = np.arange(*self._span(self.rank))
        return np.concatenate([first, (self.batch_size - 1 - first)[::-1]]) if self._mirrored else first

    @property
    def shares(self) -> tuple[int, ...]:
        """Images of each worker in a step; they differ by a pair at most when the workers do not divide the batch."""
        spans = [self._span(rank) for rank in range(self.world)]
        return tuple((stop - start) * (1 + self._mirrored) for start, stop in spans)

    @property
    def _mirrored(self) -> bool:
        return self.world > 1 and self.batch_size % 2 == 0 and self.batch_size // 2 >= self.world

    def _span(self, rank: int) -> tuple[int, int]:
        units = self.batch_size // (1 + self._mirrored)
        return rank * units // self.world, (rank + 1) * units // self.world


def smallest_parts(config: Config, workers: int) -> list[int]:
    """Images of each worker in the smallest forward pass of training."""
    shares = Order(0, config.train.batch_size, 1, 0, world=workers).shares
    limit = config.train.max_batch_per_worker or config.train.batch_size
    # All workers cut their shares into as many parts as the largest one needs.
    parts = -(-max(shares) // limit)
    return [share // parts for share in shares]


def train_order(config: Config, images: int, rank: int, world: int, labels: Rows | None = None) -> Order:
    """The order of training; `labels` (images,) show which images have none (-1).

    Raises UserError when a batch is larger than the data, or too small for images with and without labels.
    """
    size = config.train.batch_size
    if images < size:
        kept = "" if config.data.unlabelled == 0 and config.data.subset == 1 else ", of data.subset or data.unlabelled"
        raise UserError(f"train.batch_size is {size}, but there are only {images} training images{kept}: lower it")
    labelled = None if labels is None or labels.min() >= 0 else np.flatnonzero(labels >= 0)
    if labelled is not None and size < 4:
        raise UserError(f"train.batch_size is {size}, too small for labelled and unlabelled images: choose at least 4")
    balanced = labels if config.data.sampling == "balanced" else None
    return Order(images, size, config.data.repeats, config.train.seed, rank, world, labelled, balanced)
