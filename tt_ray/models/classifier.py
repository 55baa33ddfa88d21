"""The model that is trained: an unchanged timm classifier, and the text head that goes away afterwards."""

import itertools
from typing import Any, NamedTuple, cast

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from tt_ray.config import Config, HeadConfig
from tt_ray.data.sampling import smallest_batch
from tt_ray.losses import initial_scalars
from tt_ray.models.trial_pass import out_of_memory, trial_pass
from tt_ray.stateless_random import seed_of
from tt_ray.terminal.errors import UserError, nearest, one_line
from tt_ray.training.optim import build_optimizer

_BACKBONE_SEED, _HEAD_SEED = 1, 2


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
        self.layers = nn.Sequential(*layers[:-1])
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

    def compile_backbone(self) -> None:
        """Compiles up to the features only: the balance differentiates the losses by them, in eager mode."""
        self._features = torch.compile(self._pooled)

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
    if not config.has_text_head:
        return TaughtClassifier(backbone, None)
    in_dim = cast(Any, backbone).get_classifier().in_features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.train.seed, _HEAD_SEED))
        head = TextHead(config.head, in_dim, text_dim, initial_scalars(config.text.loss, config.text.temperature))
    return TaughtClassifier(backbone, head)


@torch.no_grad()
def check_model(config: Config, num_classes: int) -> None:
    """Tries the model and the optimiser before any worker starts; raises UserError on what cannot be trained.

    Some classifiers (EfficientViT-M, VOLO) do more than one linear layer after the pooled feature: training the
    layer alone would give another model than the one that is deployed.
    """
    backbone = build_backbone(config, num_classes).eval()
    build_optimizer(config.optim, backbone)
    name, size = config.model.name, config.data.image_size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with trial_pass(name, size):
        logits, whole = TaughtClassifier(backbone, None)(images).logits, backbone(images)
    if logits.shape != (2, num_classes):
        shape = tuple(logits.shape[1:])
        raise UserError(f"model.name is {name!r}, which gives logits of shape {shape} for each image, not one row")
    if not torch.equal(logits, whole):
        raise UserError(f"model.name is {name!r}, whose logits are more than a linear layer on a feature")
    with torch.random.fork_rng(devices=[]), trial_pass(name, size):
        backbone.train()(images)  # some refuse a size in training alone
    _check_batch_norm(backbone, images[:1], config)


def _check_batch_norm(backbone: nn.Module, image: Tensor, config: Config) -> None:
    """Raises UserError where batch norm would get a single number of a channel: it has no spread to divide by."""
    fewest = smallest_batch(config)
    if fewest > 1 or not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules()):
        return
    try:
        backbone.train()(image)
    except ValueError as error:
        workers, parts = config.workers[1], config.train.max_batch_per_worker
        shared = f" on {workers} workers" * (workers > 1)
        shared += f" in parts of at most {parts} (train.max_batch_per_worker)" * bool(parts)
        raise UserError(
            f"train.batch_size {config.train.batch_size}{shared} leaves {fewest} image to a forward pass, but batch "
            f"norm of {config.model.name} on images of {config.data.image_size} px needs at least 2 ({error}): "
            "give a larger --train.batch_size, or another model"
        ) from None
