"""Opens what is compared: runs, exports, checkpoints, timm's pretrained models and random controls; strictly."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eval.contract import EvalConfig
from tt_ray.models.export import data_preprocessing, find_checkpoint, find_export, load_trained
from tt_ray.models.pretrained import (
    SOURCES,
    Preprocessing,
    check_timm_name,
    create,
    pooled,
    pretrained,
    timm_preprocessing,
)
from tt_ray.models.trial_pass import trial_pass
from tt_ray.terminal.errors import UserError

KINDS = "the folder of a run, an export or a checkpoint, timm:NAME, or random:NAME"


@dataclass(frozen=True)
class Backbone:
    """A timm classifier to evaluate."""

    name: str
    """The user's name for the model."""
    spec: str
    """Where it comes from, as the user wrote it."""
    model: nn.Module
    """The model, in evaluation mode, float32, on the CPU."""
    preprocessing: Preprocessing
    weights: str
    """sha256 over names, types, shapes and bytes of the sorted state dict."""
    dim: int
    """Width of the pooled feature."""
    classes: tuple[str, ...] = ()
    """Names of the classifier's classes, where the weights have them."""

    @property
    def identity(self) -> str:
        """Hash of weights and preprocessing: the same model is another one where its images are prepared otherwise."""
        text = json.dumps([self.weights, asdict(self.preprocessing)])
        return hashlib.sha256(text.encode()).hexdigest()

    def pooled(self, images: Tensor) -> Tensor:
        """Pooled pre-logits features (B, dim) of normalised images (B, 3, size, size)."""
        return pooled(self.model, images)


@contextmanager
def forward_pass(config: EvalConfig) -> Iterator[None]:
    """Inference with models in `config.precision`, which means TF32 here alone.

    What is fitted on features is computed outside: with TF32, solvers would not reach their tolerance.
    """
    device, before = torch.device(config.device).type, torch.get_float32_matmul_precision()
    of_convolutions = torch.backends.cudnn.allow_tf32  # on unless told otherwise, unlike that of other products
    if device == "cuda":
        torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    try:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = of_convolutions


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
        model = pretrained(rest)
    elif kind == "random":
        model = _random(rest)
    else:
        return _from_folder(name, spec)
    return build(name, spec, model, timm_preprocessing(model), _label_names(model))


def build(
    name: str, spec: str, model: nn.Module, preprocessing: Preprocessing, classes: tuple[str, ...] = ()
) -> Backbone:
    """Puts the model into evaluation mode, hashes it and tries it on a black image.

    Raises UserError when the model does not run at its own size, or returns something else than one vector per image.
    """
    model = model.float().eval().requires_grad_(False)
    size = preprocessing.size
    with torch.inference_mode(), trial_pass(spec, size):
        out = pooled(model, torch.zeros(1, 3, size, size))
    if out.ndim != 2:
        raise UserError(f"{spec} returns features of shape {tuple(out.shape)}, not one vector per image")
    return Backbone(name, spec, model, preprocessing, hash_weights(model), out.shape[1], classes)


def hash_weights(model: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of the state dict in the order of names: the same on every machine."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _random(spec: str) -> nn.Module:
    """`NAME[:SEED]` with timm's own initialisation; NAME may be an export folder, for its architecture."""
    name, _, seed = spec.rpartition(":")
    if not (name and seed.isdecimal()):
        name, seed = spec, "0"
    export = find_export(Path(name).expanduser())
    if export is not None:
        name = f"local-dir:{export}"
    elif not name.startswith(SOURCES):
        check_timm_name(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        return create(name, f"cannot build random:{spec}", "check the name", pretrained=False)


def _label_names(model: nn.Module) -> tuple[str, ...]:
    config: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    return tuple(config.get("label_names") or ())


def _from_folder(name: str, spec: str) -> Backbone:
    path = Path(spec).expanduser()
    if not path.is_dir():
        raise UserError(f"no model {spec!r}: pass {KINDS}")
    export = find_export(path)
    if export is not None:
        return _from_export(name, spec, export)
    if not any((path / part).exists() for part in ("checkpoints", "state.json", "manifest.json")):
        raise UserError(f"{spec} holds neither export/, checkpoints/ nor config.json: pass {KINDS}")
    trained = load_trained(find_checkpoint(path)[0])
    return build(name, spec, trained.backbone, data_preprocessing(trained.config.data), trained.classes)


def _from_export(name: str, spec: str, path: Path) -> Backbone:
    model = create(f"local-dir:{path}", f"cannot load {path}", "export it again", pretrained=True)
    return build(name, spec, model, timm_preprocessing(model), _label_names(model))
