"""Batch norm by the statistics of all workers' images (train.sync_batchnorm), on CPUs and GPUs alike.

torch.nn.SyncBatchNorm and DDP refuse it on a CPU, and on a GPU the host waits for the workers' counts in each layer.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tt_ray.training.collectives import gather_ahead, sum_over_workers, world_size

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _Normalize(torch.autograd.Function):
    """(x - mean) / deviation * weight + bias by channels, over the images of all workers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims, shape = _dims(x)
        own = _precise(x)
        count = own.numel() // own.shape[1]
        centre = own.sum(dims) / max(count, 1)  # a worker may have no image in the last part of a batch
        squares = (own - centre.view(shape)).square().sum(dims)
        # One exchange of means, squares around them and counts: exact, where sums of squares around 0 would cancel.
        parts = torch.cat([centre, squares, centre.new_full((1,), count)])
        every = gather_ahead(parts[None], (1,) * world_size())()
        centres, all_squares, counts = every.split([len(centre), len(centre), 1], 1)
        total = counts.sum()
        mean = (centres * counts).sum(0) / total
        var = (all_squares + counts * (centres - mean).square()).sum(0) / total
        scale = (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale, total)
        out = (own - mean.view(shape)) * (scale * weight).view(shape) + bias.view(shape)
        ctx.mark_non_differentiable(mean, var, total)
        return out.to(x.dtype), mean, var, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, scale, total = ctx.saved_tensors
        dims, shape = _dims(x)
        grad = _precise(grads[0])
        normal = (_precise(x) - mean.view(shape)) * scale.view(shape)
        # Each worker's own sums are its part of the gradients of weight and bias, which are averaged like any others.
        own = torch.stack([grad.sum(dims), (grad * normal).sum(dims)])
        along, across = (sum_over_workers(own) / total).unbind()
        inner = grad - along.view(shape) - normal * across.view(shape)
        return (inner * (scale * weight).view(shape)).to(x.dtype), own[1], own[0], None


# A graph of the compiler ends at the exchange, and another one begins after it.
_normalize_eagerly: Any = torch.compiler.disable(_Normalize.apply)


def _precise(x: Tensor) -> Tensor:
    """In float32 at least, whatever autocast has made of it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _dims(x: Tensor) -> tuple[list[int], list[int]]:
    """All dimensions but the channels', and the shape in which a vector of channels fits them."""
    return [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]


class SyncedBatchNorm(nn.BatchNorm2d):
    """In training one batch norm for all workers, and outside of it the batch norm that it was made of, of any rank.

    Args:
        norm: torch's batch norm, or timm's with an activation. Parameters, buffers and their names are the same.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        own = [*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False), *norm.named_children()]
        for name, value in own:
            setattr(self, name, value)
        self.then = [name for name in ("drop", "act") if hasattr(norm, name)]
        """What timm's batch norms do next, by name."""
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        out = self._normalize(input) if self.training else self._evaluate(input)
        for name in self.then:
            out = getattr(self, name)(out)
        return out

    def _evaluate(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=mean is None, eps=self.eps)

    def _normalize(self, x: Tensor) -> Tensor:
        weight = _precise(x.new_ones(self.num_features)) if self.weight is None else self.weight
        bias = torch.zeros_like(weight) if self.bias is None else self.bias
        out, mean, var, total = _normalize_eagerly(x, weight, bias, self.eps)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(var * (total / (total - 1)), share)
        return out


def synchronize_batch_norms(model: nn.Module) -> None:
    """Replaces batch norms, in place, where several workers train; names of weights stay as they are."""
    if world_size() == 1:
        return
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BATCH_NORMS):
                module.add_module(name, SyncedBatchNorm(child))
