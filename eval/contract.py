"""Settings that a job runs with, and the result that it returns: everything that protocols and their callers share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Precision = Literal["fp32", "tf32", "bf16"]
"""float32, the same on GPUs with products in TF32, or bfloat16 autocast."""


@dataclass(frozen=True)
class Corruption:
    """One way to spoil test images: see `eval.features.corruptions`."""

    kind: str
    """Its name, such as gaussian_noise."""
    severity: int
    """1 to 5; 0 leaves images as they are."""

    def __str__(self) -> str:
        return f"{self.kind}-{self.severity}"


@dataclass(frozen=True)
class EvalConfig:
    """Settings of one job.

    Only `options`, `seed` and `precision` change the result, apart from rounding. Fine-tuning is the exception: where
    `batch_size` splits a step, stochastic depth and the statistics of batch norm depend on the parts.
    """

    options: Any
    """The protocol's `Options`."""
    cache: Path
    """Folder of extracted features, shared by jobs."""
    seed: int = 0
    """Seed of everything that is drawn: validation images where a task has none, shots, fine-tuning."""
    device: str = "cpu"
    """Device that models run on: cpu or cuda."""
    threads: int = 1
    """CPU threads of the job."""
    batch_size: int = 256
    """Images of a forward pass; halved and tried again when memory runs out."""
    num_loaders: int = 0
    """Processes that decode images; 0 decodes in threads of the job itself."""
    precision: Precision = "fp32"
    """Precision of models' forward passes, and of fine-tuning; what is fitted on features is fitted in float32."""


@dataclass(frozen=True)
class Result:
    """Result of one job."""

    metrics: dict[str, float]
    """Values by name; shares are in per cent. The task's own metric is always among them."""
    n: int
    """Number of test images."""
    predictions: npt.NDArray[np.int32] | None = None
    """Predicted class of each test image, in the split's order, for paired tests; few-shot: one row per draw."""
    labels: npt.NDArray[np.int32] | None = None
    """True classes of the test images, (n,)."""
    chosen: dict[str, Any] = field(default_factory=dict[str, Any])
    """Values selected on validation images, and how the fit ended."""
    confidence: npt.NDArray[np.floating] | None = None
    """Probability of each predicted class, in the shape of `predictions`; None where the protocol has none."""


Test = Callable[[Corruption | None], Result]
"""Tests what a protocol has fitted on the test images, as they are or corrupted."""


@dataclass(frozen=True)
class Traits:
    """Facts about a protocol that planning needs without running it."""

    version: int
    """Part of the protocol's hash: a change that can change a result needs a new one."""
    cost: float
    """Expected time for an image of the task, where knn takes 1. Decides the order of jobs and the time left."""
    on_features: bool = False
    """Whether it works on the features of `task_features`: they are extracted once, before the jobs that share them."""
    trains: bool = True
    """Whether it needs training images; otherwise it also runs on tasks that only have test images."""
    draws: Literal["always", "validation", "never"] = "always"
    """Whether the seed matters: always; for validation images alone, where a task has none of its own; or never.

    A job that draws nothing runs once, whatever the number of seeds.
    """
