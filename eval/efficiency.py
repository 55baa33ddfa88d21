"""Costs of models: counted by tt_ray.models.flops, and measured: memory at its peak, images per second.

    python -m eval.efficiency --models base=runs/shapes_baseline deit=random:deit_small_patch16_224 --batch-sizes 1 32
    python -m eval.efficiency --models ... --device cuda --out results

Weights do not matter, so random:NAME does for any timm model. With --out, the folder of results of `python -m eval`,
the report's table of models has the figures. `eval.jobs.measurement` says how they are measured.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tt_ray.terminal.command import program, read_arguments, run_command
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.gpu import device_of
from tt_ray.terminal.progress import Display

if TYPE_CHECKING:
    from eval.jobs.costs import Measured
    from tt_ray.models.flops import Counts


@dataclass(frozen=True)
class Arguments:
    """Parameters, FLOPs, activations, peak memory and throughput of models."""

    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=MODEL ...")]
    """Models, as for python -m eval."""
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    """Images of a forward pass and of a training step."""
    device: str = "cpu"
    """cpu or cuda."""
    out: Path | None = None
    """Folder of results of python -m eval, whose report then shows the figures."""


def main(arguments: list[str]) -> None:
    """Counts and measures what each model costs, and prints the table."""
    given = read_arguments(Arguments, arguments, program("eval.efficiency"))
    if not given.models:
        raise UserError("--models is empty: give NAME=MODEL, as for python -m eval")
    if min(given.batch_sizes, default=0) < 1:
        raise UserError(f"--batch-sizes are {given.batch_sizes}, but there must be some, all at least 1")
    # Only now: they bring torch and timm, which take seconds.
    from eval.features.backbone import open_backbone, parse_models
    from eval.jobs.costs import Costs, Measured, keep_costs
    from eval.jobs.measurement import device_name, measure
    from tt_ray.models.flops import count

    device = device_of(given.device)
    rows: list[list[str]] = []
    with Display() as display:
        for name, spec in parse_models(given.models).items():
            backbone = open_backbone(name, spec)
            counts = count(backbone.model, backbone.preprocessing.size)
            found: list[Measured] = []
            for number, batch_size in enumerate(given.batch_sizes):
                display.show(f"measuring {name}", number, len(given.batch_sizes))
                found.append(measure(backbone, batch_size, device))
            if given.out is not None:
                costs = replace(Costs.of(counts), device=device_name(device), measured=tuple(found))
                keep_costs(given.out, backbone.identity, costs)
            rows += [_row(name, counts, each) for each in found]
    head = ["model", "parameters (M)", "GFLOPs", "activations (M)", "px", "batch", "images/s"]
    head += ["inference (MB)", "training step (MB)"]
    print(f"{device_name(device)}\n")
    print("\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]))


def _row(name: str, counts: "Counts", found: "Measured") -> list[str]:
    counted = [f"{counts.params / 1e6:.2f}", f"{counts.flops / 1e9:.2f}", f"{counts.activations / 1e6:.2f}"]
    measured = [str(found.batch_size), f"{found.images_per_s:.1f}", f"{found.inference_mb:.1f}"]
    return [name, *counted, str(counts.image_size), *measured, f"{found.training_mb:.1f}"]


if __name__ == "__main__":
    run_command(main)
