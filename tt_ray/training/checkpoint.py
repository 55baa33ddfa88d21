"""The whole training state in a folder: safetensors and JSON, nothing pickled, the manifest last, strict on loading."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from tt_ray.io.checkpoint_folder import write_manifest
from tt_ray.io.files import new_folder
from tt_ray.terminal.errors import UserError


@dataclass(frozen=True)
class Position:
    """Where training stands: the number of steps that are done."""

    step: int
    epoch: int
    samples_seen: int


@dataclass(frozen=True)
class Snapshot:
    """A copy of the training state in main memory, which further steps do not change."""

    tensors: dict[str, dict[str, Tensor]]
    """By file (model, optimizer, ema) and name."""
    optimizer: dict[str, Any]
    """What of the optimiser is no tensor."""

    def not_finite(self) -> str:
        """Name of the first weight that is infinite or NaN somewhere; empty when there is none."""
        weights = [*self.tensors["model"].items(), *self.tensors.get("ema", {}).items()]
        return next((name for name, weight in weights if not weight.isfinite().all()), "")


def snapshot(model: nn.Module, optimizer: Optimizer, ema: nn.Module | None) -> Snapshot:
    """Copies the state; where it is sharded every worker must call, and each gets the whole."""
    for module in (model, ema):
        if isinstance(module, FSDPModule):
            module.reshard()  # a validation leaves the outermost parameters whole
    tensors, state = _optimizer_state(model, optimizer)
    files = {"model": model.state_dict(), "optimizer": tensors}
    if ema is not None:
        files["ema"] = ema.state_dict()
    return Snapshot({file: {k: _copy(v) for k, v in entries.items()} for file, entries in files.items()}, state)


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
    """Fills model, optimiser and EMA in place; raises UserError unless names and shapes agree exactly."""
    try:
        for module, file in ((model, "model"), (ema, "ema")):
            if module is not None:
                saved, current = load_file(path / f"{file}.safetensors"), module.state_dict()
                module.load_state_dict({name: _as(value, current.get(name)) for name, value in saved.items()})
        state = json.loads((path / "state.json").read_text())
        tensors = load_file(path / "optimizer.safetensors")
        _restore_optimizer(model, optimizer, tensors, state["optimizer"])
    except (RuntimeError, SafetensorError, KeyError, FileNotFoundError) as error:
        raise UserError(f"{path} does not fit this run's configuration: {' '.join(str(error).split())[:300]}") from None
    return Position(**state["position"]), state["extra"]


def _copy(tensor: Tensor) -> Tensor:
    """The whole of a tensor, in main memory, not shared with it."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().to("cpu", copy=True).contiguous()


def _as(value: Tensor, current: Tensor | None) -> Tensor:
    """`value`, sharded as `current` is. Every worker has read all of it, so that none needs to send."""
    if not isinstance(current, DTensor):
        return value
    return distribute_tensor(value, current.device_mesh, current.placements, src_data_rank=None)


def _optimizer_state(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by `parameter|entry`, and the rest as JSON."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for parameter, entries in optimizer.state.items():
        assert isinstance(parameter, nn.Parameter)
        for key, value in entries.items():
            (tensors if isinstance(value, Tensor) else scalars)[f"{names[parameter]}|{key}"] = value
    groups = [{**group, "params": [names[p] for p in group["params"]]} for group in optimizer.param_groups]
    return tensors, {"scalars": scalars, "groups": groups}


def _restore_optimizer(
    model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor], state: dict[str, Any]
) -> None:
    names = {parameter: name for name, parameter in model.named_parameters()}
    saved = [group["params"] for group in state["groups"]]
    if saved != [[names[p] for p in group["params"]] for group in optimizer.param_groups]:
        raise KeyError("the optimiser's parameters differ")
    numbers = {name: number for number, name in enumerate(name for group in saved for name in group)}
    by_number: dict[int, dict[str, Any]] = {}
    parameters = dict(model.named_parameters())
    for key, value in [*tensors.items(), *state["scalars"].items()]:
        name, entry = key.rsplit("|", 1)
        if isinstance(value, Tensor) and value.shape == parameters[name].shape:
            value = _as(value, parameters[name])
        by_number.setdefault(numbers[name], {})[entry] = value
    current = optimizer.state_dict()["param_groups"]
    groups = [{**saved, "params": now["params"]} for saved, now in zip(state["groups"], current, strict=True)]
    # JSON has no tuples; optimisers compare and unpack betas either way, but equal state is easier to check.
    groups = [{k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in g.items()} for g in groups]
    optimizer.load_state_dict({"state": by_number, "param_groups": groups})
