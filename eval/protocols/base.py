"""What every protocol takes and gives, and the protocols by name.

A protocol is one file with `VERSION`, a frozen dataclass `Options` (its recipe: every number that can change a result)
and `evaluate(backbone, task, config) -> Result`.
"""

import hashlib
import importlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from tt_ray.terminal.errors import UserError, nearest

if TYPE_CHECKING:  # they import torch and timm, which planning can do without
    from eval.features.backbone import Backbone
    from eval.tasks.registry import Task


@dataclass(frozen=True)
class EvalConfig:
    """How one job runs. Only `options` and `seed` change what comes out, but for rounding; in fine-tuning `batch_size`
    as well, where it splits a step: stochastic depth and batch norm's statistics depend on the parts."""

    options: Any
    """The protocol's `Options`."""
    cache: Path
    """Folder of extracted features, shared by jobs."""
    seed: int = 0
    """Seed of whatever is drawn: validation images where a task has none, shots, fine-tuning."""
    device: str = "cpu"
    """Where models run: cpu or cuda."""
    threads: int = 1
    """CPU threads of the job."""
    batch_size: int = 256
    """Images of a forward pass; halved and tried again when memory runs out."""
    num_loaders: int = 0
    """Processes that decode images; 0 decodes in threads of the job itself."""


@dataclass(frozen=True)
class Result:
    """What one job found."""

    metrics: dict[str, float]
    """By name; shares are in per cent. The task's own metric is always among them."""
    n: int
    """Test images behind the metrics."""
    predictions: npt.NDArray[np.int32] | None = None
    """Predicted class of each test image, in the split's order, for paired tests; few-shot: one row per draw."""
    labels: npt.NDArray[np.int32] | None = None
    """True classes of the test images, (n,)."""
    chosen: dict[str, Any] = field(default_factory=dict[str, Any])
    """What was selected on validation images, and how the fit ended."""


class Module(Protocol):
    """A protocol's file."""

    VERSION: int
    Options: type[Any]

    def evaluate(self, backbone: "Backbone", task: "Task", config: EvalConfig) -> Result: ...


PROTOCOLS: dict[str, str] = {
    "linear": "eval.protocols.linear",
    "linear_sgd": "eval.protocols.linear_sgd",
    "knn": "eval.protocols.knn",
    "few_shot": "eval.protocols.few_shot",
    "finetune": "eval.protocols.finetune",
    "classifier": "eval.protocols.classifier",
}
"""Protocols by name; imported when used."""


def protocol(name: str) -> Module:
    """The protocol's file; raises UserError on an unknown name."""
    if name not in PROTOCOLS:
        raise UserError(f"no protocol {name!r}; {nearest(name, PROTOCOLS)}")
    return cast(Module, importlib.import_module(PROTOCOLS[name]))


def protocol_hash(name: str, options: Any) -> str:
    """Sixteen hexadecimal digits that stand for the protocol, its version and every number of its recipe: that of
    `options.resolved` where options name one."""
    recipe = asdict(getattr(options, "resolved", options))
    identity = json.dumps([name, protocol(name).VERSION, recipe], sort_keys=True, default=str)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
