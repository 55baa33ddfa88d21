"""Costs of models, kept next to results: OUT/models/WEIGHTS.json, counted by `python -m eval`, measured on request."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tt_ray.io.files import new_file
from tt_ray.terminal.errors import UserError, reason

if TYPE_CHECKING:  # they import torch, which the report can do without
    from eval.features.backbone import Backbone
    from tt_ray.models.flops import Counts


@dataclass(frozen=True)
class Measured:
    """Costs at one batch size, measured by `python -m eval.efficiency`."""

    batch_size: int
    images_per_s: float
    """Images per second of forward passes."""
    inference_mb: float
    """10^6 bytes at the peak of a forward pass."""
    training_mb: float
    """10^6 bytes at the peak of a training step."""


@dataclass(frozen=True)
class Costs:
    """Costs of one model."""

    params: int
    flops: int
    activations: int
    image_size: int
    device: str = ""
    """Device of the measurements."""
    measured: tuple[Measured, ...] = ()

    @classmethod
    def of(cls, counts: "Counts") -> "Costs":
        """Costs of a model that has not been measured yet."""
        return cls(**counts._asdict())


def missing_counts(out: Path, backbone: "Backbone") -> Costs | None:
    """Counts the costs of a model, unless they are kept already."""
    from tt_ray.models.flops import count

    if read_costs(out, backbone.identity) is not None:
        return None
    return Costs.of(count(backbone.model, backbone.preprocessing.size))


def keep_costs(out: Path, weights: str, costs: Costs) -> None:
    """Keeps costs, in place of earlier ones; raises UserError when the folder cannot be written."""
    file = _file(out, weights)
    try:
        with new_file(file) as partial:
            partial.write_text(json.dumps(asdict(costs), indent=2))
    except OSError as error:
        raise UserError(f"cannot write {file}: {reason(error)}: choose another --out") from None


def read_costs(out: Path, weights: str) -> Costs | None:
    """Costs of the model whose results have these `weights`; None where none are kept, or the file is damaged."""
    try:
        tree = json.loads(_file(out, weights).read_text())
        return Costs(**{**tree, "measured": tuple(Measured(**each) for each in tree["measured"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _file(out: Path, weights: str) -> Path:
    return Path(out) / "models" / f"{weights}.json"
