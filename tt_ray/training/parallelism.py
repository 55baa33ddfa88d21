"""How several workers share a model: each holds all of it (DDP), or a part (FSDP2)."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tt_ray.config import RunConfig, TrainConfig
from tt_ray.models.classifier import TaughtClassifier
from tt_ray.training.collectives import world_size

Strategy = Literal["ddp", "fsdp", "hsdp"]


class Sharing(NamedTuple):
    """Where parameters and gradients of a model go, and in which precision."""

    mesh: DeviceMesh | None
    """The workers among which a copy of the model is sharded; None where each holds all of it."""
    bf16: bool = False
    """Whether the model computes in bf16."""
    bf16_gradients: bool = False
    """Whether workers exchange gradients in bf16."""

    @classmethod
    def of(cls, run: RunConfig, train: TrainConfig, device: torch.device, precision: str) -> Self:
        """What a run's fields ask for, on a device whose precision is known; all workers must call."""
        return cls(mesh_of(run.strategy, device), precision == "bf16", train.reduce_precision == "bf16")

    @property
    def policy(self) -> MixedPrecisionPolicy:
        """FSDP's dtypes: matrices are gathered in bf16 where the model computes in it, which is half of the bytes.

        Next to autocast, not instead of it: autocast decides as it does without sharding which operations are in bf16.
        By the policy alone norms, softmax and the sums along the blocks would be, too. Vectors keep their precision, as
        in autocast: norms, scales and the loss's learned scalars.
        """
        reduced = torch.bfloat16 if self.bf16_gradients else torch.float32
        if not self.bf16:
            return MixedPrecisionPolicy(reduce_dtype=reduced if self.bf16_gradients else None)
        return MixedPrecisionPolicy(
            param_dtype=torch.bfloat16,
            reduce_dtype=reduced,
            cast_forward_inputs=False,
            param_dtype_override_fn=lambda parameter: parameter.dtype if parameter.ndim < 2 else None,
        )


def distribute(model: TaughtClassifier, sharing: Sharing, device: torch.device) -> nn.Module:
    """The module to call in training: the model itself where one worker trains, or where it was sharded in place.

    Gradients are means over workers in any case. DDP's static graph would save it the search for unused parameters,
    which there are none of here, and would not allow for batches in parts, whose number of backward passes varies.
    """
    place(model, sharing, device)
    if world_size() == 1 or sharing.mesh is not None:
        return model
    ids = [device.index] if device.type == "cuda" else None
    net = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    if device.type == "cpu" and world_size() > 2:
        net.register_comm_hook(torch.bfloat16 if sharing.bf16_gradients else None, mean_in_order)
    elif sharing.bf16_gradients:
        net.register_comm_hook(None, bf16_compress_hook)
    return net


def mean_in_order(dtype: torch.dtype | None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DDP's exchange of gradients on CPUs: their mean over workers, added up in the order of ranks.

    gloo adds up three or more numbers in an order that follows from their place, and DDP gives them other places after
    a process's first step: a resumed run would differ from an undisturbed one in the last bits. Costs the bytes of a
    gather, which is half of the number of workers times those of gloo's own exchange.
    """
    own = bucket.buffer().to(dtype or bucket.buffer().dtype)
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    for part in parts[1:]:
        parts[0] += part
    done = torch.futures.Future[torch.Tensor]()
    done.set_result(bucket.buffer().copy_(parts[0] / world_size()))
    return done


def place(model: TaughtClassifier, sharing: Sharing, device: torch.device) -> None:
    """Brings the model from main memory to the device: all of it, or this worker's part where it is sharded.

    Every block of the backbone is sharded by itself, so that one at a time is whole, here as in training, and then
    the rest together: `fully_shard` moves what it is passed to the device and keeps a part.
    """
    if sharing.mesh is None:
        model.to(device)
        return
    for block in blocks(model.backbone):
        fully_shard(block, mesh=sharing.mesh, mp_policy=sharing.policy)
    fully_shard(model, mesh=sharing.mesh, mp_policy=sharing.policy)


def mesh_of(strategy: Strategy, device: torch.device) -> DeviceMesh | None:
    """The workers among which a copy of the model is sharded, or None; all workers must call.

    With hsdp and several workers on each of several nodes it has two dimensions, (nodes, workers of a node): parameters
    are sharded along the second, and gradients are also averaged along the first. Where nodes have unequal numbers of
    workers, as they may while a cluster grows, it is one mesh of all, as with fsdp: the same result in less memory.
    """
    if world_size() == 1 or strategy == "ddp":
        return None
    nodes = workers_by_node() if strategy == "hsdp" else []
    if len(nodes) > 1 and {len(ranks) for ranks in nodes} == {len(nodes[0])} != {1}:
        return DeviceMesh(device.type, nodes, mesh_dim_names=("nodes", "workers"))
    return init_device_mesh(device.type, (world_size(),))


def workers_by_node() -> list[list[int]]:
    """The ranks of the workers on each node."""
    names: list[str] = [""] * world_size()
    dist.all_gather_object(names, socket.gethostname())
    return [[rank for rank, name in enumerate(names) if name == node] for node in dict.fromkeys(names)]


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
