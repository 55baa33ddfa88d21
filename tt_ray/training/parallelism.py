"""How several workers share a model: each holds all of it (DDP), or a part (FSDP2)."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tt_ray.models.classifier import TaughtClassifier
from tt_ray.training.collectives import world_size


def distribute(model: TaughtClassifier, strategy: Literal["ddp", "fsdp"], device: torch.device) -> nn.Module:
    """The module to call in training: the model itself where one worker trains, or where fsdp has sharded it in place.

    Gradients are means over workers with both. DDP's static graph would save it the search for unused parameters,
    which there are none of here, and would not allow for batches in parts, whose number of backward passes varies.
    """
    place(model, strategy, device)
    if world_size() == 1 or strategy == "fsdp":
        return model
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def place(model: TaughtClassifier, strategy: Literal["ddp", "fsdp"], device: torch.device) -> None:
    """Brings the model from main memory to the device: all of it, or with fsdp this worker's part.

    fsdp shards every block of the backbone by itself, so that one at a time is whole, here as in training, and then
    the rest together: `fully_shard` moves what it is passed to the device and keeps a part.
    """
    if world_size() == 1 or strategy == "ddp":
        model.to(device)
        return
    mesh = init_device_mesh(device.type, (world_size(),))
    for block in blocks(model.backbone):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def blocks(backbone: nn.Module) -> list[nn.Module]:
    """The repeated parts of a timm model: what its lists of modules hold, outermost first."""
    found = [module for module in backbone.children() if isinstance(module, nn.Sequential | nn.ModuleList)]
    return [block for part in found for block in part if any(True for _ in block.parameters())]


@contextmanager
def gradients_exchanged(net: nn.Module, value: bool) -> Iterator[None]:
    """Whether passes inside exchange gradients between workers; those of all but the last part of a batch need not."""
    if isinstance(net, FSDPModule):
        net.set_requires_gradient_sync(value)
    with net.no_sync() if isinstance(net, DistributedDataParallel) and not value else nullcontext():
        yield
