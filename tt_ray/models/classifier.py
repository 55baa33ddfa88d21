"""The model that is trained: an unchanged timm classifier, and the text head that goes away afterwards."""

import itertools
from typing import Any, NamedTuple, cast

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from tt_ray.config import Config, HeadConfig
from tt_ray.losses import find_loss
from tt_ray.models.device_profile import precision_on
from tt_ray.models.trial_pass import out_of_memory
from tt_ray.stateless_random import seed_of
from tt_ray.terminal.errors import UserError, nearest, one_line

_BACKBONE_SEED, _HEAD_SEED = 1, 2
_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Outputs(NamedTuple):
    """What a forward pass gives; `text` and `scalars` are None without a text head."""

    features: Tensor
    """Pooled pre-logits features, (B, d)."""
    logits: Tensor
    """(B, C)."""
    text: Tensor | None
    """Projected features, (B, D)."""
    scalars: Tensor | None
    """Learned scalars of the alignment loss, (K,)."""


class TextHead(nn.Module):
    """Projects features (B, d) to the embedding's space (B, D); holds the loss's learned scalars, if it has any."""

    def __init__(self, config: HeadConfig, in_dim: int, out_dim: int, scalars: tuple[float, ...] = ()) -> None:
        super().__init__()
        depth = config.depth if config.kind == "mlp" else 1
        widths = [in_dim] + [config.hidden_dim] * (depth - 1) + [out_dim]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.layers = nn.Sequential(*layers[:-1]).requires_grad_(not config.freeze)
        self.scalars = nn.Parameter(torch.tensor(scalars)) if scalars else None

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


class TaughtClassifier(nn.Module):
    """A timm classifier with an optional text head beside its classifier."""

    def __init__(self, backbone: nn.Module, text_head: TextHead | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.text_head = text_head
        self._features = self._pooled

    def forward(self, images: Tensor) -> Outputs:
        """Images (B, 3, H, W), normalised."""
        return self.heads(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Pooled pre-logits features (B, d)."""
        return self._features(images)

    def heads(self, features: Tensor) -> Outputs:
        """The rest of the forward pass, from features (B, d)."""
        logits = cast(nn.Module, cast(Any, self.backbone).get_classifier())(features)
        if self.text_head is None:
            return Outputs(features, logits, None, None)
        return Outputs(features, logits, self.text_head(features), self.text_head.scalars)

    def _pooled(self, images: Tensor) -> Tensor:
        backbone = cast(Any, self.backbone)
        return backbone.forward_head(backbone.forward_features(images), pre_logits=True)

    def compile_backbone(self, mode: str = "default") -> None:
        """Compiles up to the features only: the balance differentiates the losses by them, in eager mode.

        Args:
            mode: torch.compile's.
        """
        self._features = torch.compile(self._pooled, mode=mode)

    def no_weight_decay(self) -> set[str]:
        """Names that timm's parameter groups leave out of weight decay."""
        names = getattr(self.backbone, "no_weight_decay", set)()
        scalars = {"text_head.scalars"} if self.text_head is not None else set()
        return {f"backbone.{name}" for name in names} | scalars


def build_backbone(config: Config, num_classes: int) -> nn.Module:
    """The timm model of `config.model`, freshly initialised; raises UserError on an unknown name or argument."""
    name, kwargs = config.model.name, dict[str, Any](config.model.kwargs)
    if not timm.is_model(name):
        raise UserError(f"model.name is {name!r}, which timm does not know; {nearest(name, timm.list_models())}")
    cfg = get_pretrained_cfg(name)
    if cfg is not None and cfg.fixed_input_size:
        kwargs.setdefault("img_size", config.data.image_size)
    if config.model.drop_path:
        kwargs["drop_path_rate"] = config.model.drop_path
    if config.model.drop:
        kwargs["drop_rate"] = config.model.drop
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.train.seed, _BACKBONE_SEED))
        try:
            backbone = timm.create_model(name, pretrained=False, num_classes=num_classes, **kwargs)
        except Exception as error:  # whatever a constructor raises about arguments: KeyError, ZeroDivisionError, ...
            if out_of_memory(error):
                raise
            size = kwargs.get("img_size")
            if size and "img_size" not in config.model.kwargs and _builds(name, {**kwargs, "img_size": None}):
                raise UserError(f"{name} does not run on images of {size} px: {one_line(error)}") from None
            raise UserError(f"timm cannot build {name} with {kwargs}: {one_line(error)}") from None
    classifier = getattr(backbone, "get_classifier", None)  # features_only gives a model without one
    if classifier is None or not isinstance(classifier(), nn.Linear):
        raise UserError(f"model.name is {name!r}, whose classifier is not one linear layer on a pooled feature")
    return backbone


def _builds(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether timm has nothing against the arguments; those that are None are left out."""
    try:
        timm.create_model(name, **{key: value for key, value in kwargs.items() if value is not None})
    except Exception:
        return False
    return True


def build_model(config: Config, num_classes: int, text_dim: int) -> TaughtClassifier:
    """Backbone and, unless the text weight is 0 or logits are distilled, a text head for targets of size `text_dim`.

    The head draws from its own seed, so that the backbone starts the same with and without it.
    """
    backbone = build_backbone(config, num_classes)
    if config.train.activation_checkpointing:
        checkpoint_activations(backbone, config.model.name)
    if not config.has_text_head:
        return TaughtClassifier(backbone, None)
    return TaughtClassifier(backbone, build_head(config, cast(Any, backbone).get_classifier().in_features, text_dim))


def checkpoint_activations(backbone: nn.Module, name: str) -> None:
    """Has a timm model compute its blocks' activations again in the backward pass; the random numbers are the same.

    Raises:
        UserError: The model has no such blocks.
    """
    try:
        cast(Any, backbone).set_grad_checkpointing(True)
    except (AttributeError, AssertionError):
        raise UserError(
            f"model.name is {name!r}, whose activations timm cannot compute again: leave out "
            "--train.activation_checkpointing, and set --train.max_batch_per_worker to save memory"
        ) from None


def build_head(config: Config, in_dim: int, text_dim: int) -> TextHead:
    """A freshly initialised text head from features (B, in_dim) to targets (B, text_dim)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.train.seed, _HEAD_SEED))
        scalars = find_loss(config.text.loss).initial_scalars(config.text.temperature)
        return TextHead(config.head, in_dim, text_dim, scalars)


def mixed_precision(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to bf16 or fp16, or as `train.precision` auto means on the device; with fp32 it does nothing."""
    dtype = _PRECISIONS[precision_on(device, precision)]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
