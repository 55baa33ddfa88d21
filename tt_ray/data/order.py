"""Which images a step sees, and which of them each worker: a function of (seed, epoch) and (step) alone."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tt_ray.config import Config
from tt_ray.data.hashing import seed_of
from tt_ray.errors import UserError

_ORDER_SEED = 4
Rows = npt.NDArray[np.int64]


class Order(NamedTuple):
    """The order of images: global batches by step, and each worker's part of them."""

    images: int
    """N, images in the training split."""
    batch_size: int
    """Of the whole step."""
    repeats: int
    seed: int
    rank: int = 0
    world: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """The last N modulo batch_size images of an epoch's order are left out."""
        return self.images // self.batch_size

    def epoch_rows(self, epoch: int) -> tuple[Rows, Rows]:
        """Rows and copy numbers in the order of an epoch, each (N,): all images once, or N/repeats of them repeated."""
        generator = np.random.Generator(np.random.Philox(seed_of(self.seed, _ORDER_SEED, epoch)))
        order = generator.permutation(self.images)
        rows = np.repeat(order, self.repeats)[: self.images]
        return rows, (np.arange(self.images) % self.repeats).astype(np.int64)

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


def train_order(config: Config, images: int, rank: int, world: int) -> Order:
    """The order of training; raises UserError when a batch is larger than the data."""
    if images < config.train.batch_size:
        raise UserError(
            f"train.batch_size is {config.train.batch_size}, but there are only {images} training images: lower it"
        )
    return Order(images, config.train.batch_size, config.data.repeats, config.train.seed, rank, world)
