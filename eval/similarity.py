"""Similarity of models: CKA between their features, or between their layers, on a task's test images.

    python -m eval.similarity --models base=RUN textteacher=RUN2 --task digits
    python -m eval.similarity --models base=RUN textteacher=RUN2 --task digits --layers

`python -m eval.why` follows it over a run's epochs. The measure is `eval.features.cka`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tt_ray.io.files import new_file
from tt_ray.io.resumable import OTHERWISE, disk_problems, make_room
from tt_ray.terminal.command import program, read_arguments, run_command
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.gpu import device_of

if TYPE_CHECKING:
    from eval.features.cka import Grid

_IMAGES = 1024
"""Images whose layers are compared, where nothing else is asked for."""


@dataclass(frozen=True)
class Arguments:
    """CKA between models' features or layers, on a task's test images."""

    models: tuple[str, ...]
    """NAME=MODEL, as for python -m eval."""
    task: str
    """Task on whose test images models are compared."""
    layers: bool = False
    """Compare the layers of the first two models (of the first with itself, if it is alone) instead of the features."""
    modules: bool = False
    """layers: the outputs of every attention and MLP, as in the paper's analysis, in place of those of blocks."""
    images: int = 0
    """layers: test images to use, drawn at random; 0 takes 1,024, or all where there are fewer."""
    data_root: Path = Path("data")
    """Folder that holds the files of tasks."""
    task_root: str = ""
    """The task's own folder, DIR or, as for python -m eval, NAME=DIR."""
    cache: Path = Path("features")
    """Folder of extracted features, such as OUT/features of python -m eval."""
    out: Path | None = None
    """JSON file to write: rows, columns and values, null where features of all images are alike."""
    device: str = "cpu"
    """cpu or cuda."""


def main(arguments: list[str]) -> None:
    """Compares models' features, or the layers of two models, and prints the table."""
    given = read_arguments(Arguments, arguments, program("eval.similarity"))
    if not given.models:
        raise UserError("--models is empty: give NAME=MODEL, as for python -m eval")
    for option, used in (("--modules", given.modules), ("--images", given.images)):
        if used and not given.layers:
            raise UserError(f"{option} is about layers: pass --layers too")
    if given.images < 0:
        raise UserError(f"--images is {given.images}, but must be at least 0")
    if given.layers and len(given.models) > 2:
        raise UserError(f"--layers compares two models, but --models has {len(given.models)}: leave some out")
    if given.out is not None:
        make_room(given.out)
    # Only now: they bring torch and timm, which take seconds.
    import numpy as np
    import torch

    from eval.contract import EvalConfig
    from eval.features.backbone import open_backbone, parse_models
    from eval.features.cka import between_layers, between_models, layer_names
    from eval.tasks.registry import tasks

    device_of(given.device)
    roots = {given.task: given.task_root.removeprefix(f"{given.task}=")} if given.task_root else {}
    task = tasks([given.task], roots, given.data_root)[given.task]
    backbones = [open_backbone(name, spec) for name, spec in parse_models(given.models).items()]
    config = EvalConfig(None, given.cache, device=given.device, threads=torch.get_num_threads())
    if given.layers:
        source = task.open("test")
        chosen = np.sort(np.random.default_rng(0).permutation(len(source))[: given.images or _IMAGES])
        first, second = backbones[0], backbones[min(1, len(backbones) - 1)]
        kind = "modules" if given.modules else "blocks"
        rows, columns = ([f"{each.name} {name}" for name in layer_names(each, kind)] for each in (first, second))
        values = between_layers(first, second, source.select(chosen), config, kind)
    else:
        values = between_models(backbones, task, config)
        rows = columns = [backbone.name for backbone in backbones]
    print(table(rows, columns, values))
    if not np.isfinite(values).all():
        print("nan: features of all images are alike there, so that there is nothing to compare")
    if given.out is not None:
        known = [[value if np.isfinite(value) else None for value in row] for row in values.tolist()]
        tree = {"task": task.name, "rows": rows, "columns": columns, "values": known}
        with disk_problems(given.out, OTHERWISE), new_file(given.out, durable=False) as partial:
            partial.write_text(json.dumps(tree, indent=2))


def table(rows: Sequence[str], columns: Sequence[str], values: "Grid") -> str:
    """As Markdown."""
    lines = [f"| CKA | {' | '.join(columns)} |", f"|{' --- |' * (len(columns) + 1)}"]
    for name, line in zip(rows, values, strict=True):
        lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in line)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
