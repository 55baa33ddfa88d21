"""Trained models as folders: a checkpoint becomes a plain timm folder, and a run's folder becomes a model again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import get_model_args, save_for_hf
from torch import nn

from tt_ray.config import Config, DataConfig
from tt_ray.data.augment import VECTORISED
from tt_ray.io.checkpoint_folder import check_manifest, checkpoints, newest_intact
from tt_ray.io.files import new_folder
from tt_ray.models.classifier import build_backbone
from tt_ray.models.flops import count
from tt_ray.models.pretrained import Preprocessing
from tt_ray.terminal.errors import UserError, one_line

_PREFIX = "backbone."


class Trained(NamedTuple):
    """What a checkpoint holds of the deployed model."""

    backbone: nn.Module
    config: Config
    classes: tuple[str, ...]


# --- folders ----------------------------------------------------------------------------------------------------------


def find_export(folder: Path) -> Path | None:
    """The export of a finished run, or the folder itself where it is one; None where it is neither."""
    return next((path for path in (folder / "export", folder) if (path / "config.json").is_file()), None)


def is_export(folder: Path) -> bool:
    """Whether a folder holds what `write_model` writes, and nothing else: it may be replaced."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    return {"config.json", "model.safetensors"} <= names <= {"config.json", "model.safetensors", "README.md"}


def find_checkpoint(folder: Path) -> tuple[Path, list[str]]:
    """The checkpoint that a folder stands for: itself, or a run's newest intact one.

    Returns:
        The checkpoint, and what is wrong with newer ones.

    Raises:
        UserError: The checkpoint is damaged, or the run has none that is intact.
    """
    named = any((folder / name).is_file() for name in ("state.json", "manifest.json"))
    if named and not (folder / "checkpoints").is_dir():
        check_manifest(folder)
        return folder, []
    newest, problems = newest_intact(checkpoints(folder / "checkpoints"))
    if newest is None:
        raise UserError(f"run {folder} has no intact checkpoint{': ' if problems else ''}{'; '.join(problems)}")
    return newest, problems


# --- reading ----------------------------------------------------------------------------------------------------------


def load_trained(checkpoint: Path) -> Trained:
    """The deployed model of a checkpoint.

    Raises:
        UserError: Its weights are not those of the model in its config.yaml.
    """
    config = Config.from_yaml(checkpoint / "config.yaml")
    try:
        classes = tuple(json.loads((checkpoint / "state.json").read_text())["extra"]["classes"])
        return Trained(load_backbone(checkpoint, config, len(classes)), config, classes)
    except (RuntimeError, SafetensorError, KeyError, ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{checkpoint} does not fit the model of its config.yaml: {one_line(error)}") from None


def load_backbone(checkpoint: Path, config: Config, num_classes: int) -> nn.Module:
    """The backbone with a checkpoint's weights, the averaged ones where there are."""
    backbone = build_backbone(config, num_classes)
    averaged = checkpoint / "ema.safetensors"
    tensors = load_file(averaged if averaged.exists() else checkpoint / "model.safetensors")
    backbone.load_state_dict({k.removeprefix(_PREFIX): v for k, v in tensors.items() if k.startswith(_PREFIX)})
    return backbone


# --- writing ----------------------------------------------------------------------------------------------------------


def write_export(checkpoint: Path, out: Path, card: str = "") -> None:
    """Exports a checkpoint's weights, replacing `out`, with the text of a model card where there is one.

    Raises:
        UserError: The checkpoint's weights do not fit its configuration.
        OSError: `out` cannot be written; SafetensorError where it is the weights that cannot.
    """
    trained = load_trained(checkpoint)
    export_model(trained.backbone, trained.config, trained.classes, out, card)


def export_model(backbone: nn.Module, config: Config, classes: tuple[str, ...], path: Path, card: str = "") -> None:
    """Writes the deployed model of a run, replacing `path`: no text head, the plain model's parameters."""
    write_model(backbone, classes, data_preprocessing(config.data), path, card)


def write_model(
    backbone: nn.Module, classes: Sequence[str] | None, preprocessing: Preprocessing, path: Path, card: str = ""
) -> None:
    """Writes `model.safetensors` and `config.json` in timm's hub layout, replacing `path`.

    `timm.create_model("local-dir:PATH", pretrained=True)` builds it, with its classes' names and its preprocessing.
    config.json also holds what `tt_ray.models.flops` counts, under `efficiency`, which timm ignores.

    Args:
        backbone: A model of timm's.
        classes: Names of its classes; None leaves them out.
        preprocessing: How images are prepared for it.
        path: The folder.
        card: Text of README.md; without one there is no such file.

    Raises:
        OSError: `path` cannot be written; SafetensorError where it is the weights that cannot.
    """
    data_config = {
        "input_size": (3, preprocessing.size, preprocessing.size),
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop_pct,
        "crop_mode": preprocessing.crop_mode,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
    }
    number = cast(Any, backbone).num_classes if classes is None else len(classes)
    model_config: dict[str, Any] = {"num_classes": number, "label_names": None if classes is None else list(classes)}
    model_config |= {"label_descriptions": None, "efficiency": count(backbone, preprocessing.size)._asdict()}
    # Rates of stochastic depth and dropout belong to the training, not to the deployed model.
    model_args = {key: 0.0 for key in ("drop_path_rate", "drop_rate") if key in get_model_args(backbone)}
    backbone.to(memory_format=torch.contiguous_format)  # safetensors refuses channels-last
    with new_folder(path) as folder:
        save_for_hf(backbone, str(folder), model_config, model_args, safe_serialization=True, data_config=data_config)
        if card:
            (folder / "README.md").write_text(card, encoding="utf-8")


def data_preprocessing(data: DataConfig) -> Preprocessing:
    """The preprocessing of a run's validation, which its export keeps."""
    mode = "squash" if data.crop_pct == 1 and data.augment in VECTORISED else "center"
    return Preprocessing(data.image_size, data.crop_pct, mode, "bicubic", data.mean, data.std)
