"""The whole training state in a folder: safetensors and JSON, nothing pickled, the manifest last, strict on loading."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from tt_ray.io.checkpoint_folder import write_manifest
from tt_ray.io.files import new_folder
from tt_ray.terminal.errors import UserError, one_line
from tt_ray.training.collectives import sum_over_workers

# Whole tensors in main memory, on worker 0 alone: one worker writes, and a large model does not fit on a host twice.
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class Position:
    """The position of training: the number of steps that are done."""

    step: int
    epoch: int
    samples_seen: int


@dataclass(frozen=True)
class Snapshot:
    """A copy of the training state in main memory, which further steps do not change; empty on all workers but 0."""

    tensors: dict[str, dict[str, Tensor]]
    """Tensors by file (model, optimizer, ema) and name."""
    optimizer: dict[str, Any]
    """The optimiser's state but its tensors."""


def not_finite(model: nn.Module, ema: nn.Module | None) -> str:
    """Name of a weight that is infinite or NaN somewhere; empty when there is none. All workers must call.

    Each looks at its own part of a sharded model, so that a name may be known to one of them alone.
    """
    weights = [item for module in (model, ema) if module is not None for item in module.state_dict().items()]
    local = [(name, weight.to_local() if isinstance(weight, DTensor) else weight) for name, weight in weights]
    bad = torch.stack([~weight.isfinite().all() for _, weight in local])  # one wait for the device, not one a weight
    found = next((name for (name, _), is_bad in zip(local, bad.tolist(), strict=True) if is_bad), "")
    elsewhere = bool(sum_over_workers(bad.any().float()))
    return found or ("of another worker's part" if elsewhere else "")


def snapshot(model: nn.Module, optimizer: Optimizer, ema: nn.Module | None) -> Snapshot:
    """Copies the state to worker 0's main memory. Where the model is sharded all workers must call."""
    for module in (model, ema):
        if isinstance(module, FSDPModule):
            module.reshard()  # a validation leaves the outermost parameters whole
    # Without state (fp16 may have skipped every step so far) torch would take a step to make some.
    state: Any = get_optimizer_state_dict(model, optimizer, options=_WHOLE) if optimizer.state else {}
    tensors, scalars = dict[str, Tensor](), dict[str, Any]()
    for name, entries in state.get("state", {}).items():
        for key, value in entries.items():
            (tensors if isinstance(value, Tensor) else scalars)[f"{name}|{key}"] = value
    files: dict[str, Any] = {"model": get_model_state_dict(model, options=_WHOLE), "optimizer": tensors}
    if ema is not None:
        files["ema"] = get_model_state_dict(ema, options=_WHOLE)
    # Each is dropped as soon as it is copied, so that no two copies of a GPU's model are in main memory.
    copies = {file: {name: _copy(entries.pop(name)) for name in list(entries)} for file, entries in files.items()}
    return Snapshot(copies, {"scalars": scalars, "groups": _groups(model, optimizer)})


def save_checkpoint(path: Path, position: Position, state: Snapshot, extra: dict[str, Any], config_yaml: str) -> None:
    """Writes the folder `path`; `extra` is JSON. Raises OSError (disk full, say) and leaves nothing half-written."""
    with new_folder(path) as folder:
        for file, tensors in state.tensors.items():
            save_file(tensors, folder / f"{file}.safetensors")
        entries = {"position": asdict(position), "optimizer": state.optimizer, "extra": extra}
        (folder / "state.json").write_text(json.dumps(entries, default=Tensor.item))
        (folder / "config.yaml").write_text(config_yaml)
        write_manifest(folder, step=position.step)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, ema: nn.Module | None
) -> tuple[Position, dict[str, Any]]:
    """Fills model, optimiser and EMA in place.

    Raises:
        UserError: Names or shapes do not agree exactly.
    """
    try:
        for module, file in ((model, "model"), (ema, "ema")):
            if module is not None:
                saved, current = load_file(path / f"{file}.safetensors"), module.state_dict()
                module.load_state_dict({name: _as(value, current.get(name)) for name, value in saved.items()})
        state = json.loads((path / "state.json").read_text())
        tensors = load_file(path / "optimizer.safetensors")
        _restore_optimizer(model, optimizer, {**tensors, **state["optimizer"]["scalars"]}, state["optimizer"]["groups"])
    except (RuntimeError, SafetensorError, KeyError, FileNotFoundError) as error:
        raise UserError(f"{path} does not fit this run's configuration: {one_line(error)[:300]}") from None
    return Position(**state["position"]), state["extra"]


def _copy(tensor: Tensor) -> Tensor:
    """A tensor that shares no memory with training, whose CPU tensors torch returns as they are."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _as(value: Tensor, current: Tensor | None) -> Tensor:
    """`value`, sharded as `current` is. Every worker has read all of it, so that none needs to send."""
    if not isinstance(current, DTensor):
        return value
    return distribute_tensor(value, current.device_mesh, current.placements, src_data_rank=None)


def _groups(model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """The optimiser's parameter groups, with the names of parameters in place of the parameters."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [{**group, "params": [names[p] for p in group["params"]]} for group in optimizer.param_groups]


def _restore_optimizer(
    model: nn.Module, optimizer: Optimizer, entries: dict[str, Any], groups: list[dict[str, Any]]
) -> None:
    """Fills the optimiser's state from entries by `parameter|key`.

    Not by torch's set_optimizer_state_dict: that takes a step to make state, and keeps what it finds no entry for.
    """
    current = _groups(model, optimizer)
    if [group["params"] for group in groups] != [group["params"] for group in current]:
        raise KeyError("the optimiser's parameters differ")
    # Optimizer.load_state_dict knows a parameter by its number in the order of the groups.
    numbers = {name: number for number, name in enumerate(name for group in groups for name in group["params"])}
    parameters, by_number = dict(model.named_parameters()), dict[int, dict[str, Any]]()
    for name_and_key, value in entries.items():
        name, key = name_and_key.rsplit("|", 1)
        if isinstance(value, Tensor) and value.shape == parameters[name].shape:  # a moment is sharded as its parameter
            value = _as(value, parameters[name])
        by_number.setdefault(numbers[name], {})[key] = value
    saved = [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups]
    # By which kernels it steps depends on the device that it now runs on, and where it keeps `step` depends on those.
    saved = [
        {**group, **{key: now[key] for key in ("fused", "foreach", "capturable") if key in now}}
        for group, now in zip(saved, current, strict=True)
    ]
    # JSON has no tuples; optimisers unpack betas either way, but equal state is easier to check.
    saved = [{k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in g.items()} for g in saved]
    optimizer.load_state_dict({"state": by_number, "param_groups": saved})
