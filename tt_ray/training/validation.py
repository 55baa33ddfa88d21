"""Exact validation: every image counts once, whatever the number of workers and the batch size."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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
from tt_ray.training.collectives import sum_over_workers, world_size
from tt_ray.training.prefetch import finished_ahead


@torch.inference_mode()
def validate(
    model: TaughtClassifier,
    batches: Iterable[Batch],
    config: Config,
    device: torch.device,
    autocast: AbstractContextManager[object],
    workers: int = 0,
) -> dict[str, float]:
    """Top-1 (and top-5 from 6 classes on) in percent, and mean cross-entropy, over the whole split.

    `workers` is the number for train.eval_batch_mean; 0 is that of those who validate.
    """
    model.eval()
    hits = list[tuple[Tensor, Tensor]]()
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
        if config.train.eval_batch_mean:
            hits.append((batch.rows, best[:, 0]))
    model.train()
    top1, top5, loss_sum, images = sum_over_workers(totals).tolist()
    result = {"top1": 100 * top1 / images, "val_loss": loss_sum / images, "val_images": int(images)}
    if model.backbone.num_classes > 5:  # type: ignore[operator]
        result["top5"] = 100 * top5 / images
    if config.train.eval_batch_mean:
        correct = torch.zeros(int(images), device=device)
        for rows, found in hits:  # an image that stands in for none has no hit
            correct[rows.to(device)] += found
        workers = workers or world_size()
        size = -(-config.train.batch_size // workers)
        result["top1_batch_mean"] = 100 * batch_mean(sum_over_workers(correct), workers, size)
    return result


def batch_mean(correct: Tensor, workers: int, size: int) -> float:
    """The mean over workers of the mean over a worker's batches of the mean of `correct` (N,) in a batch.

    As TextTeacher's code has it (arXiv 2605.22098): image i is worker i mod `workers`'s, the first ones come again at
    the end until all workers have as many, batches are of `size`, and the last one, which is smaller, counts as much.
    """
    each = -(-len(correct) // workers)
    shares = correct[torch.arange(each * workers, device=correct.device) % len(correct)].reshape(each, workers)
    return torch.stack([batch.mean(0) for batch in shares.double().split(size)]).mean().item()


def validate_checkpoint(config_tree: dict[str, Any], checkpoint: str, workers: int = 1) -> dict[str, float]:
    """Scores of a checkpoint's weights (the averaged ones where there are), in a process without a process group.

    `workers` is the number of those who train.
    """
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
    return validate(model, load(batches, range(len(batches)), config, device), config, device, autocast, workers)
