"""Whether a model can be trained as configured: tried before any worker starts."""

import torch
from torch import Tensor, nn

from tt_ray.config import Config
from tt_ray.data.sampling import smallest_parts
from tt_ray.models.classifier import TaughtClassifier, build_backbone, checkpoint_activations
from tt_ray.models.trial_pass import trial_pass
from tt_ray.terminal.errors import UserError
from tt_ray.training.optim import build_optimizer

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@torch.no_grad()
def check_model(config: Config, num_classes: int) -> None:
    """Tries the model and the optimiser on two random images.

    Some classifiers (EfficientViT-M, VOLO) do more than one linear layer after the pooled feature: training the
    layer alone would train another model than the one that is deployed.

    Raises:
        UserError: The model or the optimiser is unknown, or cannot be trained with this configuration.
    """
    backbone = build_backbone(config, num_classes).eval()
    if config.train.activation_checkpointing:
        checkpoint_activations(backbone, config.model.name)
    build_optimizer(config.optim, backbone)
    name, size = config.model.name, config.data.image_size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with trial_pass(name, size):
        logits, whole = TaughtClassifier(backbone, None)(images).logits, backbone(images)
    if logits.shape != (2, num_classes):
        shape = tuple(logits.shape[1:])
        raise UserError(f"model.name is {name!r}, which returns logits of shape {shape} for each image, not one row")
    if not torch.equal(logits, whole):
        raise UserError(f"model.name is {name!r}, whose logits are more than a linear layer on a feature")
    with torch.random.fork_rng(devices=[]), trial_pass(name, size):
        backbone.train()(images)  # some refuse a size in training alone
    _check_batch_norm(backbone, images[:1], config)


def _check_batch_norm(backbone: nn.Module, image: Tensor, config: Config) -> None:
    """Raises UserError where batch norm would get a single number of a channel: it has no spread to divide by."""
    # The more workers, the fewer images each has; together they may have fewest when they are few.
    widths = config.workers if config.train.sync_batchnorm else config.workers[1:]
    count = sum if config.train.sync_batchnorm else min
    fewest = min(count(smallest_parts(config, workers)) for workers in widths)
    if fewest > 1 or not any(isinstance(module, _BATCH_NORMS) for module in backbone.modules()):
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
            "choose a larger --train.batch_size, or another model"
        ) from None
