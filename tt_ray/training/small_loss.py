"""Small-loss selection: the baseline against wrong labels that needs no captions.

A network fits right labels before it remembers wrong ones, so that images of the largest loss are those whose labels
are the likeliest to be wrong. Each step leaves them out: the selection of Co-teaching (Han et al. 2018, arXiv
1804.06872, Algorithm 1), here by the network itself, without a second one.
"""

import torch
from torch import Tensor

from tt_ray.training.collectives import gather_rows, world_size

RAMP = 0.1
"""Part of the training over which the share that is left out grows to its full size."""


def share_left_out(share: float, step: int, steps: int) -> float:
    """The share of a step's images to leave out, tau min(1, t / T_k): `share` from a tenth of all steps on."""
    return share * min(1.0, step / (RAMP * steps))


def mean_of_smallest(losses: Tensor, leave_out: float, shares: tuple[int, ...]) -> Tensor:
    """The mean over the images of all workers whose loss is not among the largest; nothing waits for the device.

    Args:
        losses: Of this worker's images, (b,).
        leave_out: Share of all workers' images to leave out, below 1.
        shares: Images of each worker; empty where all have as many.

    Returns:
        This worker's part, of which the mean over workers is that of the images that are kept, those with the same
        loss as the last of them included.
    """
    every = gather_rows(losses.detach(), shares)
    kept = max(1, len(every) - round(leave_out * len(every)))
    most = every.kthvalue(kept).values
    return torch.where(losses <= most, losses, 0).sum() * world_size() / (every <= most).sum()
