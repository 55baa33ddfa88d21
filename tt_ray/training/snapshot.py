"""A copy of the training state in main memory, which is written to disk while training continues."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from tt_ray.training.collectives import rank


class HostMemory:
    """The main memory that snapshots are copied to.

    Copies of a GPU's tensors are pinned, so that the GPU fills them while the host goes on, and their memory is kept
    from one snapshot to the next: pinning takes longer than copying. Tensors of the CPU are cloned.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._pins = True

    def copy(self, name: str, tensor: Tensor) -> Tensor:
        """A copy, contiguous; that of a GPU's tensor is complete when its stream has come so far."""
        if tensor.device.type == "cpu":
            # Training writes into its tensors in place: a copy must share no memory with them.
            return tensor.clone(memory_format=torch.contiguous_format)
        kept = self._kept.get(name)
        if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
            kept = self._kept[name] = self._memory(tensor)
        return kept.copy_(tensor, non_blocking=True)

    def _memory(self, like: Tensor) -> Tensor:
        if self._pins:
            try:
                return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
            except RuntimeError:  # a limit on locked memory, say: pageable memory is slower, and as good
                self._pins = False
        return torch.empty(like.shape, dtype=like.dtype)


@dataclass(frozen=True)
class Snapshot:
    """A copy of the training state, which further steps do not change; empty on all workers but 0."""

    tensors: dict[str, dict[str, Tensor]]
    """Tensors by file (model, optimizer, ema) and name; complete after `wait`."""
    optimizer: dict[str, Any]
    """The optimiser's state but its tensors."""
    copied: torch.cuda.Event | None = None
    """Follows the last copy on the GPU's stream."""

    def wait(self) -> None:
        """Waits until the GPU has filled the copies."""
        if self.copied is not None:
            self.copied.synchronize()

    def not_finite(self) -> str:
        """Name of a weight that is infinite or NaN somewhere; empty where there is none."""
        weights = [item for file in ("model", "ema") for item in self.tensors.get(file, {}).items()]
        return next((name for name, weight in weights if not _finite(weight)), "")


def _finite(weight: Tensor) -> bool:
    if not weight.is_floating_point():
        return True
    # One pass over memory, where `isfinite` takes several. Squares of large finite numbers overflow: it acquits alone.
    return bool(torch.linalg.vector_norm(weight).isfinite()) or bool(weight.isfinite().all())


@torch.no_grad()
def snapshot(model: nn.Module, optimizer: Optimizer, ema: nn.Module | None, memory: HostMemory) -> Snapshot:
    """Copies the state to worker 0's main memory; does not wait for a GPU. All workers must call.

    Copies are part of the stream that steps are: each begins when the last step has written the weights, and ends
    before the next one writes them, without a wait. Meanwhile the GPU computes nothing, for as long as the state takes
    through PCIe; to copy next to a step would take a second copy in the GPU's memory.
    """
    sharded = isinstance(model, FSDPModule)
    if rank() > 0 and not sharded:
        return Snapshot({}, {})  # replicas are all alike
    for module in (model, ema):
        if isinstance(module, FSDPModule):
            module.reshard()  # a validation leaves the outermost parameters whole
    tensors, scalars = optimizer_entries(model, optimizer)
    files = {"model": model.state_dict(), "optimizer": tensors} | ({} if ema is None else {"ema": ema.state_dict()})
    copies: dict[str, dict[str, Tensor]] = {file: {} for file in files}
    for file, entries in files.items():
        for name, part in entries.items():
            # Workers gather one tensor after the other, in one order, so that none of them holds the whole model.
            whole = part.full_tensor() if isinstance(part, DTensor) else part
            if rank() == 0:
                copies[file][name] = memory.copy(f"{file}/{name}", whole)
    if rank() > 0:
        return Snapshot({}, {})
    copied = None
    if any(parameter.is_cuda for parameter in model.parameters()):
        copied = torch.cuda.Event(blocking=True)
        copied.record()
    return Snapshot(copies, {"scalars": scalars, "groups": named_groups(model, optimizer)}, copied)


def optimizer_entries(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimiser's state by `parameter|key`: its tensors, and what is none."""
    names = [name for group in named_groups(model, optimizer) for name in group["params"]]
    tensors, scalars = dict[str, Tensor](), dict[str, Any]()
    # state_dict knows a parameter by its number in the order of the groups; sorted, it is one order on all workers.
    for number, entries in sorted(optimizer.state_dict()["state"].items()):
        for key, value in entries.items():
            (tensors if isinstance(value, Tensor) else scalars)[f"{names[number]}|{key}"] = value
    return tensors, scalars


def named_groups(model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """The optimiser's parameter groups, with the names of parameters in place of the parameters."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [{**group, "params": [names[p] for p in group["params"]]} for group in optimizer.param_groups]
