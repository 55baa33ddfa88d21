"""Checkpoint -> plain timm model folder: `python -m tt_ray.export RUN --out DIR`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import get_model_args, save_for_hf
from torch import nn

from tt_ray.config import Config
from tt_ray.data.augment import VECTORISED
from tt_ray.io.files import new_folder
from tt_ray.io.one_writer import beside, one_writer
from tt_ray.models.classifier import build_backbone
from tt_ray.models.flops import count
from tt_ray.terminal.command import read_arguments, run_command
from tt_ray.terminal.errors import UserError
from tt_ray.training.checkpoint import check_manifest, checkpoints, newest_intact

_PREFIX = "backbone."


def export_model(backbone: nn.Module, config: Config, classes: tuple[str, ...], path: Path) -> None:
    """Writes `model.safetensors` and `config.json` in timm's hub layout: no text head, the plain model's parameters.

    `timm.create_model("local-dir:PATH", pretrained=True)` builds it, with its classes' names and its preprocessing.
    The configuration tells under `efficiency`, which timm passes over, what `tt_ray.models.flops` counts.
    """
    data = config.data
    preprocessing = {
        "input_size": (3, data.image_size, data.image_size),
        "interpolation": "bicubic",
        "crop_pct": data.crop_pct,
        "crop_mode": "squash" if data.crop_pct == 1 and data.augment in VECTORISED else "center",
        "mean": data.mean,
        "std": data.std,
    }
    model_config: dict[str, Any] = {"num_classes": len(classes), "label_names": list(classes)}
    model_config |= {"label_descriptions": None, "efficiency": count(backbone, data.image_size)._asdict()}
    # Rates of stochastic depth and dropout belong to the training, not to the deployed model.
    model_args = {key: 0.0 for key in ("drop_path_rate", "drop_rate") if key in get_model_args(backbone)}
    backbone.to(memory_format=torch.contiguous_format)  # safetensors refuses channels-last
    with new_folder(path) as folder:
        save_for_hf(backbone, str(folder), model_config, model_args, safe_serialization=True, data_config=preprocessing)


def export_checkpoint(source: Path, out: Path) -> tuple[Path, list[str]]:
    """Exports a checkpoint folder, or the newest intact checkpoint of a run folder; the EMA where there is one.

    Returns the checkpoint, and what is wrong with newer ones.
    Raises UserError when `source` is neither, is damaged, or `out` exists.
    """
    if out.exists():
        raise UserError(f"{out} exists: give another --out")
    if not source.is_dir():
        raise UserError(f"no run or checkpoint {source}: give the folder of one")
    path, problems = source, list[str]()
    if (source / "checkpoints").is_dir() or not (source / "state.json").exists():
        newest, problems = newest_intact(checkpoints(source / "checkpoints"))
        if newest is None:
            raise UserError(f"{source} has no intact checkpoint{': ' if problems else ''}{'; '.join(problems)}")
        path = newest
    check_manifest(path)
    try:
        write_export(path, out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {out}: {error}: give another --out") from None
    return path, problems


def write_export(checkpoint: Path, out: Path) -> None:
    """Exports a checkpoint's weights, replacing `out`."""
    config = Config.from_yaml(checkpoint / "config.yaml")
    classes = tuple(json.loads((checkpoint / "state.json").read_text())["extra"]["classes"])
    export_model(load_backbone(checkpoint, config, len(classes)), config, classes, out)


def load_backbone(checkpoint: Path, config: Config, num_classes: int) -> nn.Module:
    """The backbone with a checkpoint's weights, the averaged ones where there are."""
    backbone = build_backbone(config, num_classes)
    averaged = checkpoint / "ema.safetensors"
    tensors = load_file(averaged if averaged.exists() else checkpoint / "model.safetensors")
    backbone.load_state_dict({k.removeprefix(_PREFIX): v for k, v in tensors.items() if k.startswith(_PREFIX)})
    return backbone


@dataclass(frozen=True)
class Arguments:
    """Turn a run or a checkpoint into a folder that timm.create_model("local-dir:OUT", pretrained=True) loads."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder (its newest checkpoint), or one checkpoint folder."""
    out: Path
    """Folder to write; must not exist."""


def main(arguments: list[str]) -> None:
    """The command."""
    given = read_arguments(Arguments, arguments, "python -m tt_ray.export")
    with one_writer(beside(given.out), str(given.out)):
        checkpoint, problems = export_checkpoint(given.run, given.out)
    for problem in problems:
        print(f"note: {problem}")
    print(f"exported {checkpoint} to {given.out}: timm.create_model({f'local-dir:{given.out}'!r}, pretrained=True)")


if __name__ == "__main__":
    run_command(main)
