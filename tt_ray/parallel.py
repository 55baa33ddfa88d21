"""What the objective asks of other workers; with one worker every function does nothing."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of workers that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_workers(value: Tensor) -> Tensor:
    """Sum of `value` over workers; the same tensor when there is one. No gradient."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rows = len(local)
        parts = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        start = dist.get_rank() * ctx.rows
        return grads[0][start : start + ctx.rows] * world_size()


def gather_rows(local: Tensor) -> Tensor:
    """Rows of all workers, (world * B, D), in rank order.

    Every worker then computes the same global loss. Its gradient reaches this worker's rows times the number of
    workers, so that averaging parameter gradients over workers (DDP, FSDP) gives the gradient of the global loss.
    """
    gathered = _Gather.apply(local) if world_size() > 1 else local
    assert isinstance(gathered, Tensor)
    return gathered
