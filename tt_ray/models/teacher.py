"""Online vision teachers: a frozen timm or Hugging Face model whose embedding, or logits, the student is to reach."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from tt_ray.config import Config
from tt_ray.data.augment import normalize
from tt_ray.data.loader import EvalBatches, load
from tt_ray.data.sources.base import Source
from tt_ray.models.classifier import mixed_precision
from tt_ray.models.export import find_export
from tt_ray.models.hf_vision import VisionModel, load_hf_vision
from tt_ray.models.pretrained import create, pooled, pretrained, timm_preprocessing
from tt_ray.models.trial_pass import trial_pass
from tt_ray.stateless_random import uniform
from tt_ray.terminal.errors import UserError
from tt_ray.text.encoder_files import PROJECTION
from tt_ray.text.open_clip_model import find_open_clip, load_open_clip

KINDS = "timm:NAME, hf:ID, open_clip:ARCHITECTURE/WEIGHTS, or the folder of a run or an export"
_SAMPLE_KEY, _SAMPLE = 0x7EAC4, 1024
"""Images that the mean embedding is taken over: its error is then a 32nd of the standard deviation."""
_EPS = 1e-6

Vector = tuple[float, float, float]


class Teacher:
    """A frozen vision model that looks at the student's training images; no part of the student or its checkpoints."""

    def __init__(self, model: VisionModel, student: tuple[Vector, Vector], device: torch.device, compiled: bool):
        model.module.eval().requires_grad_(False).to(device)
        self.size, self.device = model.size, device
        self._forward = torch.compile(model.forward) if compiled else model.forward
        (mean, std), rows = student, (1, 3, 1, 1)
        theirs, spread = (torch.tensor(values).reshape(rows) for values in (model.mean, model.std))
        # Undoes the student's normalisation and does the teacher's.
        self._scale = (torch.tensor(std).reshape(rows) / spread).to(device)
        self._shift = ((torch.tensor(mean).reshape(rows) - theirs) / spread).to(device)
        self._centre, self._factor = torch.zeros((), device=device), torch.ones((), device=device)
        self.order: Tensor | None = None
        """Logits: the teacher's number of each of the student's classes, (C,)."""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Targets, float32, (B, D) or (B, C), of images (B, 3, H, W) as the student sees them. No wait for the device.

        On GPUs in bf16. Images are resized to the teacher's size here, after augmentation and mixing.
        """
        images = images * self._scale + self._shift
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True)
        with mixed_precision(self.device, "bf16" if self.device.type == "cuda" else "fp32"):
            targets = self._forward(images)
        targets = targets.float() if self.order is None else targets.float()[:, self.order]
        return (targets - self._centre) * self._factor

    def normalize_by(self, split: Source, config: Config) -> None:
        """Centres and scales embeddings as text.normalize_mean and normalize_std say, as is done with a store's.

        Statistics are those of 1,024 training images, chosen by the seed, without augmentation; every worker takes them
        of all of these, so that they do not depend on the number of workers.
        """
        text = config.text
        if not (text.normalize_mean or text.normalize_std != "none"):
            return
        order = uniform(np.arange(len(split)), 1, config.train.seed, _SAMPLE_KEY)[:, 0].argsort(kind="stable")
        batches = EvalBatches(split.select(order[:_SAMPLE]), config, 0, 1)
        found = list[Tensor]()
        for batch in load(batches, range(len(batches)), config, self.device):
            found.append(self(normalize(batch.images.to(self.device), config.data.mean, config.data.std)))
        spread, mean = torch.std_mean(torch.cat(found).double(), 0, correction=0)
        if text.normalize_mean:
            self._centre = mean.float()
        if text.normalize_std != "none":
            spread = spread + _EPS if text.normalize_std == "full" else spread.mean().clamp(min=_EPS)
            self._factor = (1 / spread).float()


def load_teacher(config: Config, split: Source, device: torch.device) -> tuple[Teacher, int]:
    """The teacher of `config.teacher`, and the size of its targets.

    Raises UserError when it cannot be had with all of its weights, does not run at its size, or when its logits are
    not of the student's classes.
    """
    spec, logits = config.teacher.model, config.teacher.target == "logits"
    model = _open(spec, config.teacher.image_size, logits)
    data = config.data
    teacher = Teacher(model, (data.mean, data.std), device, config.train.compile)
    if logits:
        teacher.order = _class_order(spec, model.classes, split.classes).to(device)
    with trial_pass(f"teacher.model {spec}", model.size):
        out = teacher(torch.zeros(2, 3, data.image_size, data.image_size, device=device))
    if out.ndim != 2 or len(out) != 2:
        raise UserError(f"teacher.model {spec} gives outputs of shape {tuple(out.shape)}, not one vector per image")
    if not logits:
        teacher.normalize_by(split, config)
    return teacher, out.shape[1]


def _open(spec: str, size: int, logits: bool) -> VisionModel:
    kind, _, rest = spec.partition(":")
    if kind == "hf":
        if logits:
            raise UserError(f"teacher.target logits takes timm:NAME, a run or an export, not {spec}")
        return load_hf_vision(rest.removesuffix(PROJECTION), rest.endswith(PROJECTION), size)
    if kind == "open_clip":
        if logits:
            raise UserError(f"teacher.target logits takes timm:NAME, a run or an export, not {spec}")
        return _open_clip(spec, rest, size)
    if kind == "timm":
        return _timm(pretrained(rest, **_sized(rest, size)), size, logits)
    path = find_export(Path(spec).expanduser())
    if path is None:
        raise UserError(f"teacher.model {spec}: no such model, or a run that is not finished; give {KINDS}")
    architecture = json.loads((path / "config.json").read_text()).get("architecture")
    if architecture is None:
        raise UserError(f"teacher.model {spec} is no export or timm folder: give hf:{spec} if transformers wrote it")
    kwargs = _sized(architecture, size)
    model = create(f"local-dir:{path}", f"cannot load teacher.model {spec}", "export it again", True, **kwargs)
    return _timm(model, size, logits)


def _open_clip(spec: str, name: str, size: int) -> VisionModel:
    """The image tower of a model of open_clip; its embedding is the one that shares a space with text, of length 1."""
    what = f"teacher.model {spec}"
    model, prepared = load_open_clip(find_open_clip(name, what), what)
    own = model.visual.image_size
    own = own if isinstance(own, int) else own[0]
    if size not in (0, own):
        raise UserError(f"{what} takes images of {own} px alone: leave out --teacher.image_size")
    for part in ("text", "text_decoder", "transformer", "token_embedding"):  # which an image does not need
        if hasattr(model, part):
            setattr(model, part, None)
    return VisionModel(
        model, lambda images: model.encode_image(images, normalize=True), own, prepared.mean, prepared.std
    )


def _sized(architecture: str, size: int) -> dict[str, int]:
    """The argument that sets the input's size, where there is one to set and the architecture has a fixed one."""
    try:
        cfg = get_pretrained_cfg(architecture)
    except RuntimeError:  # an unknown tag: `pretrained` has the better error
        cfg = None
    return {"img_size": size} if size and cfg is not None and cfg.fixed_input_size else {}


def _timm(model: nn.Module, size: int, logits: bool) -> VisionModel:
    wants, config = timm_preprocessing(model), cast(dict[str, Any], getattr(model, "pretrained_cfg", {}))
    classes = tuple(config.get("label_names") or ())
    if logits and not classes and (subset := infer_imagenet_subset(model)):
        classes = tuple(ImageNetInfo(subset).label_names())
    forward = model if logits else lambda images: pooled(model, images)
    return VisionModel(model, forward, size or wants.size, wants.mean, wants.std, classes)


def _class_order(spec: str, classes: tuple[str, ...], wanted: tuple[str, ...]) -> Tensor:
    """The teacher's number of each of the student's classes; raises UserError unless both have the same names."""
    if set(classes) != set(wanted) or len(classes) != len(wanted):
        lacking = [name for name in wanted if name not in classes]
        detail = f"it lacks {lacking[0]!r}" if lacking else f"it has {len(classes)}, the data {len(wanted)}"
        raise UserError(f"the classes of teacher.model {spec} are not the data's: {detail}; distil its embedding")
    return torch.tensor([classes.index(name) for name in wanted])
