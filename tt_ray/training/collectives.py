"""Exchanges between workers that the objective needs; with one worker every function does nothing."""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def world_size() -> int:
    """Number of workers that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This worker's number among them."""
    return dist.get_rank() if world_size() > 1 else 0


def sum_over_workers(value: Tensor) -> Tensor:
    """Sum of `value` over workers; the same tensor when there is one. No gradient."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def from_worker_0(value: T) -> T:
    """The `value` of worker 0, on every worker, which must all call; pickled, so for small things."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def tensor_from_worker_0(value: Tensor) -> Tensor:
    """Fills `value` with worker 0's, on every worker, and returns it; all must call with one shape and type."""
    if world_size() > 1:
        dist.broadcast(value, src=0)
    return value


@torch.no_grad()
def buffers_from_worker_0(model: nn.Module) -> None:
    """Gives all workers worker 0's buffers, such as the running statistics of batch norms; all must call."""
    for buffer in model.buffers() if world_size() > 1 else ():
        buffer.copy_(tensor_from_worker_0(buffer.contiguous()))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return sum_over_workers(own.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return sum_over_workers(grads[0])


def all_sum(own: Tensor) -> Tensor:
    """Sum of `own` over workers, with a gradient: that of the sum of what the workers make of it.

    Where they all make the same global loss of it, that is its gradient times the number of workers, as in
    `gather_rows`.
    """
    total = _Sum.apply(own) if world_size() > 1 else own
    assert isinstance(total, Tensor)
    return total


class _LogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        most = own.amax(0)
        if world_size() > 1:
            dist.all_reduce(most, dist.ReduceOp.MAX)
        logs = own - most
        logs -= sum_over_workers(logs.exp().sum(0)).log()
        ctx.save_for_backward(logs)
        return logs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (logs,) = ctx.saved_tensors
        return grads[0] - logs.exp() * sum_over_workers(grads[0].sum(0))


def log_softmax_over_workers(own: Tensor) -> Tensor:
    """This worker's rows (b, N) of the log-softmax over the rows of all workers; two numbers a column are exchanged.

    Its gradient is that of `all_sum`, and exchanges one.
    """
    # Half precision, of losses inside autocast, is for products: what is summed over rows and workers is single.
    logs = _LogSoftmax.apply(own.float() if own.dtype in (torch.float16, torch.bfloat16) else own)
    assert isinstance(logs, Tensor)
    return logs


def gather_ahead(own: Tensor, shares: tuple[int, ...]) -> Callable[[], Tensor]:
    """Starts to gather rows as `gather_rows` does, without a gradient, while the device computes other things.

    Returns:
        What waits for the rows of all workers, and returns them; a GPU waits, not the host.
    """
    # Collectives take parts of one size only.
    most = max(shares)
    padded = own.new_zeros(most, *own.shape[1:])
    padded[: len(own)] = own.detach()
    every = own.new_empty(most * len(shares), *own.shape[1:])
    parts = list(every.split(most))
    work = dist.all_gather(parts, padded, async_op=True)

    def wait() -> Tensor:
        assert work is not None
        work.wait()
        if min(shares) == most:
            return every
        return torch.cat([part[:rows] for part, rows in zip(parts, shares, strict=True)])

    return wait


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, shares: tuple[int, ...]) -> Tensor:
        ctx.start, ctx.rows = sum(shares[: dist.get_rank()]), len(local)
        return gather_ahead(local, shares)()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0][ctx.start : ctx.start + ctx.rows] * world_size(), None


@cache
def _host_group(world: Any) -> Any:
    """The process group `world` of all workers, or one next to it, whose messages need no device."""
    return world if "gloo" in dist.get_backend_config(world) else dist.new_group(backend="gloo")


def numbers_of_workers(*own: int) -> list[tuple[int, ...]]:
    """Each number of every worker, in rank order, by a message that no device waits for; all must ask at once."""
    if world_size() == 1:
        return [(number,) for number in own]
    every = [torch.zeros(len(own), dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(every, torch.tensor(own), group=_host_group(dist.group.WORLD))
    return [tuple(column) for column in torch.stack(every, 1).tolist()]


def gather_rows(local: Tensor, shares: tuple[int, ...] = ()) -> Tensor:
    """Rows of all workers, (sum of `shares`, D), in rank order; without `shares` all workers have as many rows.

    Every worker then computes the same global loss. Its gradient reaches this worker's rows times the number of
    workers, so that averaging parameter gradients over workers (DDP, FSDP) gives the gradient of the global loss.
    """
    world = world_size()
    gathered = _Gather.apply(local, shares or (len(local),) * world) if world > 1 else local
    assert isinstance(gathered, Tensor)
    return gathered
