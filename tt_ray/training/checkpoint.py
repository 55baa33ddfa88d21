"""The whole training state in a folder: safetensors and JSON, nothing pickled, the manifest last, strict on loading."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from tt_ray.io.checkpoint_folder import write_manifest
from tt_ray.io.files import new_folder
from tt_ray.terminal.errors import NonFiniteLoss, UserError, one_line, reason
from tt_ray.training.collectives import from_worker_0, rank, tensor_from_worker_0
from tt_ray.training.snapshot import Snapshot, named_groups

Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class Position:
    """The position of training: the number of steps that are done."""

    step: int
    epoch: int
    samples_seen: int


def save_checkpoint(path: Path, position: Position, state: Snapshot, extra: dict[str, Any], config_yaml: str) -> None:
    """Writes the folder `path`; `extra` is JSON. Waits for copies that a GPU is still making.

    Raises:
        NonFiniteLoss: A weight is not finite. There is no folder then, so that no run resumes from such weights.
        OSError: The disk is full, say. Nothing is left half-written.
    """
    state.wait()
    if bad := state.not_finite():
        raise NonFiniteLoss(f"weights ({bad}) are not finite after step {position.step - 1}")
    with new_folder(path) as folder:
        for file, tensors in state.tensors.items():
            save_file(tensors, folder / f"{file}.safetensors")
        entries = {"position": asdict(position), "optimizer": state.optimizer, "extra": extra}
        (folder / "state.json").write_text(json.dumps(entries, default=Tensor.item))
        (folder / "config.yaml").write_text(config_yaml)
        write_manifest(folder, step=position.step)


@dataclass(frozen=True)
class _Contents:
    """What worker 0 finds in a checkpoint, but for its tensors, which follow one by one."""

    problem: str = ""
    """Why it cannot be loaded."""
    state: Any = None
    """state.json."""
    steps: Mapping[str, Tensor] | None = None
    """Tensors of the optimiser that are single numbers."""
    described: Mapping[str, dict[str, tuple[torch.Size, torch.dtype]]] | None = None
    """Shapes and types of all others, by file and name."""


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, ema: nn.Module | None
) -> tuple[Position, dict[str, Any]]:
    """Fills model, optimiser and EMA in place. All workers must call; worker 0 alone reads, and sends to the others.

    Raises:
        UserError: Names or shapes do not agree exactly; on all workers, before any of them waits for a tensor.
    """
    modules = {"model": model} | ({} if ema is None else {"ema": ema})
    device = next(model.parameters()).device
    with ExitStack() as files:
        contents, read = _Contents(), dict[str, Read]()
        if rank() == 0:
            contents, read = _look(path, modules, optimizer, files)
        contents = from_worker_0(contents)
        if contents.problem:
            raise UserError(contents.problem)
        assert contents.described is not None and contents.steps is not None
        for file, module in modules.items():
            current = module.state_dict()
            for name, value in _each(contents.described[file], read.get(file), device):
                with torch.no_grad():
                    current[name].copy_(_as(value, current[name]))
        parameters = dict(model.named_parameters())
        entries: dict[str, Any] = {**contents.steps, **contents.state["optimizer"]["scalars"]}
        for name, value in _each(contents.described["optimizer"], read.get("optimizer"), device):
            like = parameters[name.rpartition("|")[0]]
            # Moments are sharded as their parameter is.
            entries[name] = _as(value, like) if value.shape == like.shape else value
    _restore_optimizer(optimizer, entries, contents.state["optimizer"]["groups"])
    return Position(**contents.state["position"]), contents.state["extra"]


def _look(
    path: Path, modules: Mapping[str, nn.Module], optimizer: Optimizer, files: ExitStack
) -> tuple[_Contents, dict[str, Read]]:
    """What is in the checkpoint, compared with what it is to fill, and how to read the tensors of each file."""
    try:
        opened: dict[str, Any] = {
            file: files.enter_context(safe_open(path / f"{file}.safetensors", "pt")) for file in (*modules, "optimizer")
        }
        described = {file: _describe(each) for file, each in opened.items()}
        state = json.loads((path / "state.json").read_text())
        for file, module in modules.items():
            _check_same({name: shape for name, (shape, _) in described[file].items()}, module.state_dict())
        _check_groups(state["optimizer"]["groups"], named_groups(modules["model"], optimizer))
        single = [name for name, (shape, _) in described["optimizer"].items() if not shape]
        steps = {name: opened["optimizer"].get_tensor(name).clone() for name in single}
    except (SafetensorError, KeyError, ValueError, FileNotFoundError) as error:
        return _Contents(f"{path} does not fit this run's configuration: {one_line(error)[:300]}"), {}
    except OSError as error:
        return _Contents(f"{path} cannot be read: {reason(error)}"), {}
    described["optimizer"] = {name: each for name, each in described["optimizer"].items() if name not in steps}
    return _Contents("", state, steps, described), {file: each.get_tensor for file, each in opened.items()}


def _describe(opened: Any) -> dict[str, tuple[torch.Size, torch.dtype]]:
    tensors = ((name, opened.get_tensor(name)) for name in opened.offset_keys())  # mapped, not read
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors}


def _check_same(saved: Mapping[str, torch.Size], current: Mapping[str, Tensor]) -> None:
    for name in (*saved, *current):
        if name not in saved or name not in current:
            raise KeyError(f"{name} is {'in the model alone' if name in current else 'not in the model'}")
        if saved[name] != current[name].shape:
            raise ValueError(f"{name} has shape {tuple(saved[name])}, but {tuple(current[name].shape)} in the model")


def _check_groups(saved: list[dict[str, Any]], current: list[dict[str, Any]]) -> None:
    if [group["params"] for group in saved] != [group["params"] for group in current]:
        raise KeyError("the optimiser's parameters differ")


def _each(
    described: Mapping[str, tuple[torch.Size, torch.dtype]], read: Read | None, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Tensors by name, one whole at a time on the device: worker 0, which has `read`, sends each to the others."""
    for name, (shape, dtype) in described.items():
        # Copied where that is not needed to move it, too: it becomes part of the state, and a mapped file may go.
        value = torch.empty(shape, dtype=dtype, device=device) if read is None else read(name).to(device, copy=True)
        yield name, tensor_from_worker_0(value)


def _as(value: Tensor, current: Tensor) -> Tensor:
    """`value`, laid out or sharded as `current` is; every worker has all of it, so that none needs to send."""
    if not isinstance(current, DTensor):
        # Fused kernels refuse moments in another order of memory than their parameter's, which may be channels-last.
        return (
            value if value.stride() == current.stride() else torch.empty_like(current, dtype=value.dtype).copy_(value)
        )
    return distribute_tensor(value, current.device_mesh, current.placements, src_data_rank=None)


def _restore_optimizer(optimizer: Optimizer, entries: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    """Fills the optimiser's state from entries by `parameter|key`.

    Not by torch's set_optimizer_state_dict: that takes a step to make state, and keeps what it finds no entry for.
    """
    # Optimizer.load_state_dict knows a parameter by its number in the order of the groups.
    numbers = {name: number for number, name in enumerate(name for group in groups for name in group["params"])}
    by_number = dict[int, dict[str, Any]]()
    for name_and_key, value in entries.items():
        name, key = name_and_key.rsplit("|", 1)
        by_number.setdefault(numbers[name], {})[key] = value
    saved = [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups]
    # By which kernels it steps depends on the device that it now runs on, and where it keeps `step` depends on those.
    saved = [
        {**group, **{key: now[key] for key in ("fused", "foreach", "capturable") if key in now}}
        for group, now in zip(saved, optimizer.param_groups, strict=True)
    ]
    # JSON has no tuples; optimisers unpack betas either way, but equal state is easier to check.
    saved = [{k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in g.items()} for g in saved]
    optimizer.load_state_dict({"state": by_number, "param_groups": saved})
