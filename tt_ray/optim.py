"""Optimiser and learning-rate schedule, both timm's."""

from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from tt_ray.config import OptimConfig
from tt_ray.errors import UserError, nearest


def build_optimizer(config: OptimConfig, model: nn.Module) -> Optimizer:
    """timm's optimiser of that name over timm's parameter groups; raises UserError on an unknown name."""
    names = [str(name) for name in list_optimizers()]
    if config.name not in names:
        raise UserError(f"optim.name is {config.name!r}; {nearest(config.name, names)}")
    kwargs: dict[str, Any] = {"eps": config.eps} if get_optimizer_info(config.name).has_eps else {}
    if config.name in ("lamb", "lambc"):
        kwargs["max_grad_norm"] = None  # timm's LAMB would clip at 1 by itself, whatever grad_clip says
    return create_optimizer_v2(model, config.name, lr=config.lr, weight_decay=config.weight_decay, **kwargs)


def build_scheduler(config: OptimConfig, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> CosineLRScheduler:
    """Linear warm-up, then cosine, per step: a function of the step, so there is no state to save."""
    return CosineLRScheduler(
        optimizer,
        t_initial=epochs * steps_per_epoch,
        lr_min=config.min_lr,
        warmup_t=round(config.warmup_epochs * steps_per_epoch),
        warmup_lr_init=config.warmup_lr,
        t_in_epochs=False,
    )


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scales gradients down to the norm `largest` (0: leaves them); returns the norm before, on the device."""
    chosen = list(parameters)
    if largest:
        norm = nn.utils.clip_grad_norm_(chosen, largest)
    else:
        norm = nn.utils.get_total_norm([p.grad for p in chosen if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The current learning rate of the first parameter group."""
    return float(optimizer.param_groups[0]["lr"])
