"""What losses need to know of classes: weights, and mean and variance of each one's text targets (BorLan)."""

import numpy as np
import torch
from torch import Tensor

from tt_ray.data.sampling import Rows
from tt_ray.data.text_targets import TextTargets
from tt_ray.training.collectives import sum_over_workers

# Rows that are looked up at a time: 64 MiB of float64 at D = 1024.
_BLOCK = 8192


def class_weights(labels: Rows, classes: int) -> Tensor:
    """N / (C n_c) for each class that n_c of the N labels (-1 for none) name, of C such classes, float32, (classes,).

    Their mean over the labels is 1; a class that none names gets 0.
    """
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    weights = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.from_numpy(np.where(counts, weights, 0.0)).float()


def class_statistics(
    targets: TextTargets,
    labels: Rows,
    classes: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    *,
    sample: bool = False,
) -> tuple[Tensor, Tensor]:
    """Means and variances of the targets of each class, float32, (classes, D), on the device: one streamed pass.

    `labels` (N,) are those that training uses. A class without images gets zeros. All workers must call; each reads
    its share of the rows. Variances are the population's, or with `sample` divided by n - 1 of a class's n targets.
    """
    # Counts, sums and sums of squares; float64 keeps the digits of centred targets.
    sums = torch.zeros(classes, 1 + 2 * targets.dim, dtype=torch.float64)
    first, last = rank * len(labels) // world, (rank + 1) * len(labels) // world
    for start in range(first, last, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, last))
        values = targets[rows].double()
        block = torch.cat([torch.ones(len(rows), 1, dtype=torch.float64), values, values.square()], 1)
        sums.index_add_(0, torch.from_numpy(labels[rows]), block)
    sums = sum_over_workers(sums.to(device))
    mean, squares = (sums[:, 1:] / sums[:, :1].clamp(min=1)).split(targets.dim, 1)
    variance = (squares - mean.square()).clamp(min=0)
    if sample:
        variance *= sums[:, :1] / (sums[:, :1] - 1).clamp(min=1)
    return mean.float(), variance.float()
