"""Opens what is compared: runs, exports, checkpoints, timm's pretrained models and random controls; strictly."""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from timm.data import resolve_model_data_config
from timm.models import get_pretrained_cfg, is_model_pretrained, list_pretrained
from torch import Tensor, nn

from tt_ray.checkpoint import check_manifest, checkpoints, newest_intact
from tt_ray.config import Config, DataConfig
from tt_ray.data.transforms import VECTORISED
from tt_ray.errors import UserError, nearest
from tt_ray.export import load_backbone

KINDS = "the folder of a run, an export or a checkpoint, timm:NAME, or random:NAME"
_SOURCES = ("hf-hub:", "local-dir:")
"""Prefixes of timm's model names that are no architecture."""


@dataclass(frozen=True)
class Preprocessing:
    """From an RGB image to the model's input, in the words of timm's data configuration."""

    size: int
    """Height and width of the input, in pixels."""
    crop_pct: float
    """Centre crop's share of the resized image's side."""
    crop_mode: str
    """center (short side resized, rest cut off), squash (both sides resized) or border (padded)."""
    interpolation: str
    """bicubic, bilinear, ..."""
    mean: tuple[float, float, float]
    """Channel means that are subtracted, on the 0-1 scale."""
    std: tuple[float, float, float]
    """Channel standard deviations that are divided by, on the 0-1 scale."""


@dataclass(frozen=True)
class Backbone:
    """A timm classifier that is to be evaluated."""

    name: str
    """What the user calls it."""
    spec: str
    """What the user said it is."""
    model: nn.Module
    """In evaluation mode, float32, on the CPU."""
    preprocessing: Preprocessing
    weights: str
    """sha256 over names, types, shapes and bytes of the sorted state dict."""
    dim: int
    """Width of the pooled feature."""
    classes: tuple[str, ...] = ()
    """Names of the classifier's classes, where the weights tell them."""

    def pooled(self, images: Tensor) -> Tensor:
        """Pooled pre-logits features (B, dim) of normalised images (B, 3, size, size)."""
        return pooled(self.model, images)


def pooled(model: Any, images: Tensor) -> Tensor:
    """What timm calls forward_head(pre_logits=True): the input of the classifier, (B, d)."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


def parse_models(items: Sequence[str]) -> dict[str, str]:
    """Specs by name from `NAME=SPEC`; raises UserError when there is no name, or two of one name."""
    specs: dict[str, str] = {}
    for item in items:
        name, equals, spec = item.partition("=")
        if not (equals and spec and re.fullmatch(r"[\w.@+-]+", name)):
            raise UserError(f"--models {item!r} must be NAME=MODEL, where MODEL is {KINDS}; NAME has no / or spaces")
        if name in specs:
            raise UserError(f"two --models are called {name!r} ({specs[name]} and {spec}): give each its own name")
        specs[name] = spec
    return specs


def open_backbone(name: str, spec: str) -> Backbone:
    """The model that `spec` describes. Raises UserError when it is not there, damaged, or does not fit its weights."""
    kind, _, rest = spec.partition(":")
    if kind == "timm":
        model = _pretrained(rest)
    elif kind == "random":
        model = _random(rest)
    else:
        return _from_folder(name, spec)
    return build(name, spec, model, timm_preprocessing(model), _label_names(model))


def build(
    name: str, spec: str, model: nn.Module, preprocessing: Preprocessing, classes: tuple[str, ...] = ()
) -> Backbone:
    """Puts the model into evaluation mode, hashes it and tries it on a black image.

    Raises UserError when the model does not run at its own size, or gives something else than one vector per image.
    """
    model = model.float().eval().requires_grad_(False)
    size = preprocessing.size
    try:
        with torch.inference_mode():
            out = pooled(model, torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, AttributeError) as error:
        raise UserError(f"{spec} does not run on images of {size} px: {_line(error)}") from None
    if out.ndim != 2:
        raise UserError(f"{spec} gives features of shape {tuple(out.shape)}, not one vector per image")
    return Backbone(name, spec, model, preprocessing, hash_weights(model), out.shape[1], classes)


def hash_weights(model: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of the state dict in the order of names: the same on every machine."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def timm_preprocessing(model: nn.Module) -> Preprocessing:
    """That of the model's timm configuration; raises UserError when its input is no square RGB image."""
    config = resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise UserError(f"the model's input is {channels} x {height} x {width}, but must be a square RGB image")
    mean, std = (cast(tuple[float, float, float], tuple(map(float, config[key]))) for key in ("mean", "std"))
    return Preprocessing(height, config["crop_pct"], config["crop_mode"], config["interpolation"], mean, std)


def data_preprocessing(data: DataConfig) -> Preprocessing:
    """That of a run's validation, which its export has too."""
    mode = "squash" if data.crop_pct == 1 and data.augment in VECTORISED else "center"
    return Preprocessing(data.image_size, data.crop_pct, mode, "bicubic", data.mean, data.std)


def _pretrained(name: str) -> nn.Module:
    """timm's pretrained model; anything but all of its weights is an error."""
    if not name.startswith(_SOURCES):
        _check_timm_name(name)
        if not is_model_pretrained(name):
            known = list_pretrained(f"{name.split('.')[0]}*")
            hint = f"weights there are: {', '.join(known[:5])}" if known else f"say random:{name} to evaluate none"
            raise UserError(f"timm has no pretrained weights for {name}; {hint}")
    help_ = (
        f'on a machine with network run: python -c "import timm; timm.create_model({name!r}, pretrained=True)" '
        "and share its Hugging Face cache (HF_HOME), or give an export folder"
    )
    return _create(name, f"cannot get the pretrained weights of timm:{name}", help_, pretrained=True)


def _random(spec: str) -> nn.Module:
    """`NAME[:SEED]` with timm's own initialisation; NAME may be an export folder, which gives the architecture."""
    name, _, seed = spec.rpartition(":")
    if not (name and seed.isdecimal()):
        name, seed = spec, "0"
    if (Path(name).expanduser() / "config.json").is_file():
        name = f"local-dir:{Path(name).expanduser()}"
    elif (Path(name).expanduser() / "export" / "config.json").is_file():
        name = f"local-dir:{Path(name).expanduser() / 'export'}"
    elif not name.startswith(_SOURCES):
        _check_timm_name(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        return _create(name, f"cannot build random:{spec}", "check the name", pretrained=False)


def _check_timm_name(name: str) -> None:
    try:
        get_pretrained_cfg(name)
    except RuntimeError:  # an architecture that timm knows, with a tag that it does not
        tags = list_pretrained(f"{name.split('.')[0]}*")
        raise UserError(f"timm has no weights {name!r}; {nearest(name, tags)}") from None
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}; {nearest(name, timm.list_models())}")


def _create(name: str, problem: str, help_: str, pretrained: bool) -> nn.Module:
    try:
        with _all_weights() if pretrained else nullcontext():
            return timm.create_model(name, pretrained=pretrained)
    except UserError as error:
        raise UserError(f"{problem}: {error}") from None
    # Downloads, hubs, caches, JSON and state dicts each raise their own; none of it is a mistake of this program.
    except Exception as error:
        raise UserError(f"{problem}: {type(error).__name__}: {_line(error)}; {help_}") from None


@contextmanager
def _all_weights() -> Iterator[None]:
    """Raises UserError where timm would log that it goes on with some random weights."""
    found: list[str] = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if re.search(r"random init|Missing keys|Unexpected keys", text):
                found.append(text)

    logger, watch = logging.getLogger("timm.models._builder"), Watch()
    level = logger.level
    logger.addHandler(watch)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(watch)
        logger.setLevel(level)
    if found:
        raise UserError(f"the weights do not fit the model: {' '.join(found)[:500]}")


def _label_names(model: nn.Module) -> tuple[str, ...]:
    config: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    return tuple(config.get("label_names") or ())


def _from_folder(name: str, spec: str) -> Backbone:
    path = Path(spec).expanduser()
    if not path.is_dir():
        raise UserError(f"no model {spec!r}: give {KINDS}")
    if (path / "export" / "config.json").is_file():
        return _from_export(name, spec, path / "export")
    if (path / "state.json").is_file() or (path / "manifest.json").is_file():
        check_manifest(path)
        return _from_checkpoint(name, spec, path)
    if (path / "checkpoints").is_dir():
        newest, problems = newest_intact(checkpoints(path / "checkpoints"))
        if newest is None:
            raise UserError(f"run {spec} has no intact checkpoint{': ' if problems else ''}{'; '.join(problems)}")
        return _from_checkpoint(name, spec, newest)
    if (path / "config.json").is_file():
        return _from_export(name, spec, path)
    raise UserError(f"{spec} holds neither export/, checkpoints/ nor config.json: give {KINDS}")


def _from_export(name: str, spec: str, path: Path) -> Backbone:
    model = _create(f"local-dir:{path}", f"cannot load {path}", "export it again", pretrained=True)
    return build(name, spec, model, timm_preprocessing(model), _label_names(model))


def _from_checkpoint(name: str, spec: str, path: Path) -> Backbone:
    config = Config.from_yaml(path / "config.yaml")
    try:
        classes = tuple(json.loads((path / "state.json").read_text())["extra"]["classes"])
        model = load_backbone(path, config, len(classes))
    except (RuntimeError, SafetensorError, KeyError, ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} does not fit the model of its config.yaml: {_line(error)}") from None
    return build(name, spec, model, data_preprocessing(config.data), classes)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
