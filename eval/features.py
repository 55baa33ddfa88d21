"""Frozen features of a timm classifier for every image of a split."""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tt_ray.config import Config
from tt_ray.data.loader import EvalBatches
from tt_ray.data.source import Source
from tt_ray.data.transforms import normalize
from tt_ray.model import TaughtClassifier


@torch.inference_mode()
def extract_features(backbone: nn.Module, source: Source, config: Config) -> npt.NDArray[np.float32]:
    """Pooled pre-logits features, shape (N, d), in the order of the split; preprocessing as in validation."""
    model = TaughtClassifier(backbone, None).eval()
    batches = EvalBatches(source, config, rank=0, world=1)
    parts = [
        model.features(normalize(batches[index].images, config.data.mean, config.data.std)).numpy()
        for index in range(len(batches))
    ]
    return np.concatenate(parts).astype(np.float32)
