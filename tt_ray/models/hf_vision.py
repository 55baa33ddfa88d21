"""Vision models of transformers as frozen feature extractors: all of their weights, none of their code."""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tt_ray.io.hub import find_model
from tt_ray.terminal.errors import UserError, first_line

_FILES = ["*.safetensors", "*.json"]
_VISION_TOWERS = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
_PROJECTED = {"clip": "CLIPVisionModelWithProjection"}

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class VisionModel:
    """A pretrained model and what it wants of images."""

    module: nn.Module
    forward: Callable[[Tensor], Tensor]
    """Embeddings (B, D), or logits (B, C), of normalised images (B, 3, size, size)."""
    size: int
    """Height and width of its input, in pixels."""
    mean: Vector
    std: Vector
    classes: tuple[str, ...] = ()
    """Of its logits, where they are known."""


def load_hf_vision(name: str, projected: bool, size: int) -> VisionModel:
    """Loads a frozen model of transformers.

    Its embedding is `image_embeds` where `projected` (CLIP), else transformers' pooler_output, else the state of the
    first token: poolers that the weights lack, as DINO's do, would be random.

    Args:
        name: Folder or id on the Hugging Face hub.
        projected: Whether to return CLIP's projected embedding.
        size: Pixels of the model's input; 0 for the size of its processor.

    Raises:
        UserError: Files or weights are missing.
    """
    import transformers

    folder = find_model(name, _FILES, f"teacher hf:{name}", "hf:FOLDER")
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    values = _json(folder / "config.json")
    family = values.get("model_type", "")
    config = transformers.AutoConfig.from_pretrained(folder, **safe)
    if projected and family not in _PROJECTED:
        raise UserError(f"teacher hf:{name} is of type {family}, which has no projection: leave out +projection")
    kind = _PROJECTED[family] if projected else _VISION_TOWERS.get(family, "AutoModel")
    kwargs: dict[str, Any] = {"config": getattr(config, "vision_config", config)}
    if projected:
        kwargs["config"].projection_dim = config.projection_dim
    try:
        model, info = getattr(transformers, kind).from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **kwargs, **safe
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"teacher hf:{name} cannot be loaded: {first_line(error)}") from None
    lost = sorted(str(key) for key in {*info["missing_keys"], *info["mismatched_keys"]})
    pooler = bool(lost) and all("pooler" in key for key in lost)
    if lost and not pooler:
        raise UserError(f"teacher hf:{name} lacks {len(lost)} weights of {family}, such as {lost[0]}")
    own, mean, std = _preprocessing(folder, config, name)
    resized = size and "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    options = {"interpolate_pos_encoding": True} if resized else {}

    def forward(images: Tensor) -> Tensor:
        return _embedding(model(pixel_values=images, **options), projected, not pooler)

    return VisionModel(model, forward, size or own, mean, std)


def _embedding(outputs: Any, projected: bool, has_pooler: bool) -> Tensor:
    if projected:
        return outputs.image_embeds
    out = getattr(outputs, "pooler_output", None) if has_pooler else None
    if out is None:
        states = outputs.last_hidden_state
        out = states.mean((2, 3)) if states.ndim == 4 else states[:, 0]
    return out.flatten(1)


def _preprocessing(folder: Path, config: Any, name: str) -> tuple[int, Vector, Vector]:
    """Size in pixels, means and standard deviations that preprocessor_config.json gives."""
    values = _json(folder / "preprocessor_config.json")
    try:
        mean, std = (tuple(map(float, values[key])) for key in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"teacher hf:{name}: preprocessor_config.json has no image_mean and image_std") from None
    if len(mean) != 3 or len(std) != 3:
        raise UserError(f"teacher hf:{name} wants images of {len(mean)} channels, not of 3")
    sizes = (values.get("crop_size") if values.get("do_center_crop", True) else None, values.get("size"))
    size = next((_side(given) for given in sizes if given), 0) or getattr(config, "image_size", 224)
    return int(size), mean, std


def _side(given: Any) -> int:
    return given if isinstance(given, int) else given.get("height") or given.get("shortest_edge") or 0


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        raise UserError(f"{path} is missing or cannot be read: the teacher's folder is not complete") from None
