"""Optimiser and learning-rate schedule, both timm's."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.optim import param_groups_layer_decay as layer_groups
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from tt_ray.config import OptimConfig
from tt_ray.terminal.errors import UserError, nearest


def build_optimizer(config: OptimConfig, model: nn.Module) -> Optimizer:
    """timm's optimiser of that name over timm's parameter groups, in one kernel where torch has one and on a GPU.

    Raises:
        UserError: There is none of that name.
    """
    names = [str(name) for name in list_optimizers()]
    if config.name not in names:
        raise UserError(f"optim.name is {config.name!r}; {nearest(config.name, names)}")
    info = get_optimizer_info(config.name)
    kwargs: dict[str, Any] = {"eps": config.eps} if info.has_eps else {}
    # Of parameters that are on a GPU already. Fused kernels round in their own way: a CPU keeps those that it had.
    if next(model.parameters()).device.type == "cuda" and _can_fuse(info.opt_class):
        kwargs["fused"] = True
    if config.name in ("lamb", "lambc"):
        kwargs["max_grad_norm"] = None  # timm's LAMB would clip at 1 by itself, whatever grad_clip says
    if config.layer_decay < 1:
        kwargs["param_group_fn"] = lambda whole: _layer_wise(config, whole)
    return create_optimizer_v2(model, config.name, lr=config.lr, weight_decay=config.weight_decay, **kwargs)


def _can_fuse(kind: Any) -> bool:
    """Whether an optimiser is one of torch's that can update all parameters in one kernel: AdamW, Adam, SGD, ..."""
    return kind.__module__.startswith("torch.optim") and "fused" in inspect.signature(kind).parameters


def _layer_wise(config: OptimConfig, model: nn.Module) -> list[dict[str, Any]]:
    """timm's layer-wise groups of the backbone (BEiT's, arXiv 2106.08254), and the text head's at the full rate.

    The schedule multiplies each group's rate by its `lr_scale`: 1 for the last layer, layer_decay for the one before.
    """
    backbone: Any = getattr(model, "backbone", model)
    spared = getattr(backbone, "no_weight_decay", set)()
    groups = layer_groups(backbone, config.weight_decay, spared, layer_decay=config.layer_decay)
    taken = {id(parameter) for group in groups for parameter in group["params"]}
    rest = [p for p in model.parameters() if id(p) not in taken and p.requires_grad]
    for matrices, decay in ((True, config.weight_decay), (False, 0.0)):
        if chosen := [p for p in rest if (p.ndim > 1) is matrices]:
            groups.append({"params": chosen, "weight_decay": decay, "lr_scale": 1.0})
    return groups


class _EpochScheduler(CosineLRScheduler):
    """Changes the rate at each epoch, late by one: see `build_scheduler`."""

    def __init__(self, optimizer: Optimizer, steps_per_epoch: int, **settings: Any) -> None:
        self._steps = steps_per_epoch
        super().__init__(optimizer, **settings)

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Sets the rate of a step, counted from 0."""
        super().step_update(max(num_updates // self._steps - 1, 0), metric)  # type: ignore[arg-type]


def build_scheduler(config: OptimConfig, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> CosineLRScheduler:
    """Linear warm-up, then cosine, per step: a function of the step, so there is no state to save.

    Per epoch (`schedule_per`) too it is a function of the step. With W epochs of warm-up of E in all, epoch e has the
    rate f(max(e - 1, 0)), late by one, where f(t) = warmup_lr + (lr - warmup_lr) t/W for t < W, and
    min_lr + (lr - min_lr) (1 + cos(pi t/E)) / 2 from W on. As published (W 5, E 300, lr 3e-3, warmup_lr 1e-6) that is
    1e-6, 1e-6, 6.0e-4, 1.2e-3, 1.8e-3, 2.4e-3, and at epoch 6, the highest, 3.0e-3.
    """
    per_epoch = config.schedule_per == "epoch"
    each = 1 if per_epoch else steps_per_epoch
    settings: dict[str, Any] = {
        "t_initial": epochs * each,
        "lr_min": config.min_lr,
        "warmup_t": round(config.warmup_epochs * each),
        "warmup_lr_init": config.warmup_lr,
        "t_in_epochs": False,
    }
    return (
        _EpochScheduler(optimizer, steps_per_epoch, **settings)
        if per_epoch
        else CosineLRScheduler(optimizer, **settings)
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
    """The current learning rate, that of the last layer where layers have their own."""
    first = optimizer.param_groups[0]
    return float(first["lr"] / first.get("lr_scale", 1.0))
