"""Exact validation: every image counts once, whatever the number of workers and the batch size."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from tt_ray.config import Config
from tt_ray.data.augment import normalize
from tt_ray.data.loader import Batch, EvalBatches, load
from tt_ray.data.prepare import open_images
from tt_ray.data.sources.base import NOBODY
from tt_ray.io.storage import Storage
from tt_ray.models.classifier import TaughtClassifier, mixed_precision
from tt_ray.models.device_profile import use_gpu_profile
from tt_ray.models.export import load_backbone
from tt_ray.terminal.gpu import gpu
from tt_ray.training.collectives import sum_over_workers
from tt_ray.training.prefetch import finished_ahead


@torch.inference_mode()
def validate(
    model: TaughtClassifier,
    batches: Iterable[Batch],
    config: Config,
    device: torch.device,
    autocast: AbstractContextManager[object],
) -> dict[str, float]:
    """Top-1 (and top-5 from 6 classes on) in percent, and mean cross-entropy, over the whole split."""
    model.eval()
    # Correct, correct among five, summed loss, images; float64 counts exactly, and the host waits for no batch.
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    for batch in finished_ahead(batches, device, config.data):
        images = batch.images.to(device, non_blocking=True)
        labels = batch.labels.to(device, non_blocking=True)
        with autocast:
            logits = model(normalize(images, config.data.mean, config.data.std)).logits.float()
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, ignore_index=NOBODY, reduction="sum")
        seen = (labels != NOBODY).sum()
        totals += torch.stack([count.double() for count in (best[:, 0].sum(), best.sum(), loss, seen)])
    model.train()
    top1, top5, loss_sum, images = sum_over_workers(totals).tolist()
    result = {"top1": 100 * top1 / images, "val_loss": loss_sum / images, "val_images": int(images)}
    if model.backbone.num_classes > 5:  # type: ignore[operator]
        result["top5"] = 100 * top5 / images
    return result


def validate_checkpoint(config_tree: dict[str, Any], checkpoint: str) -> dict[str, float]:
    """Scores of a checkpoint's weights (the averaged ones where there are), in a process without a process group."""
    config, folder = Config.from_dict(config_tree), Path(checkpoint)
    Storage.open(config.run.storage).fetch(folder)
    _, split, _ = open_images(config)
    # It may have been given no GPU, next to the workers at the end of a run; one that it was given must work.
    given = os.environ.get("CUDA_VISIBLE_DEVICES") or torch.cuda.is_available()
    device = gpu() if config.run.use_gpu and given else torch.device("cpu")
    use_gpu_profile(device)
    model = TaughtClassifier(load_backbone(folder, config, len(split.classes)), None).to(device)
    autocast = mixed_precision(device, config.train.precision)
    batches = EvalBatches(split, config, 0, 1)
    return validate(model, load(batches, range(len(batches)), config, device), config, device, autocast)
