"""What runs learn in which layer and when: every part draws a PNG, writes a CSV and returns its Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from eval.contract import EvalConfig
from eval.feature_metrics import alignment, uniformity
from eval.features.backbone import Backbone, open_backbone
from eval.features.cka import Grid, Layers, cka_of_grams, layer_grams, layer_names
from eval.features.extract import extract
from eval.why.figures import Curve, Panel, draw_curves, draw_panels, panels_to_csv, to_csv, to_markdown, write
from eval.why.gradients import gradient_agreements
from tt_ray.config import Config
from tt_ray.data.prepare import find_store, open_data, open_images
from tt_ray.data.sources.base import Source
from tt_ray.io.checkpoint_folder import check_manifest, checkpoints, step_of
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.progress import Display
from tt_ray.training.metrics_log import read_rows

MOST_RUNS = 2


class RunHistory(NamedTuple):
    """A run and its checkpoints."""

    name: str
    config: Config
    epochs: dict[int, Path]
    """Intact checkpoints at the end of an epoch, by the number of epochs, in order."""


def open_run(path: Path, display: Display) -> RunHistory:
    """The run and its intact checkpoints after whole epochs; raises UserError when there are none."""
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path} is not a run of tt-ray: it has no config.yaml")
    # The embedding store is where the run is now.
    config = Config.from_yaml(path / "config.yaml").override("run.storage", str(path.absolute().parent))
    ends = {row["step"]: row["epoch"] for row in read_rows(path / "metrics.jsonl") if row["kind"] == "validation"}
    per_epoch = next((step // epoch for step, epoch in ends.items()), 0)
    epochs: dict[int, Path] = {}
    for folder in reversed(checkpoints(path / "checkpoints")):
        if not per_epoch or step_of(folder) % per_epoch:
            continue
        try:
            check_manifest(folder)
        except UserError as error:
            display.say(f"left out: {error}")
        else:
            epochs[step_of(folder) // per_epoch] = folder
    if not epochs:
        raise UserError(f"{path} has no intact checkpoint at the end of an epoch")
    if len(epochs) < config.train.epochs:
        display.say(
            f"{path} has checkpoints of {len(epochs)} of {config.train.epochs} epochs: "
            "train with --run.keep_checkpoints 0 to keep one an epoch"
        )
    return RunHistory(path.absolute().name, config, epochs)


class _Seen(NamedTuple):
    """Results of one checkpoint's forward passes."""

    layers: Sequence[str]
    grams: list[list[Grid]]
    alignment: float
    uniformity: float


def representations(
    runs: Sequence[RunHistory], source: Source, config: EvalConfig, layers: Layers, out: Path, display: Display
) -> list[str]:
    """CKA by layer and by epoch, alignment and uniformity; draws, writes, and returns the Markdown of each part."""
    last = [_see(list(run.epochs.values())[-1], run, source, config, layers) for run in runs]
    steps = sorted(set().union(*(run.epochs for run in runs)))
    own: list[dict[int, Grid]] = [{} for _ in runs]
    between: dict[int, Grid] = {}
    points: list[dict[int, _Seen]] = [{} for _ in runs]
    for number, epoch in enumerate(steps):
        display.show("epochs looked at", number, len(steps))
        seen: list[_Seen] = []
        for place, run in enumerate(runs):
            if epoch in run.epochs:
                now = _see(run.epochs[epoch], run, source, config, layers)
                own[place][epoch] = np.diag(cka_of_grams(zip(now.grams, last[place].grams, strict=True)))
                points[place][epoch] = now._replace(grams=[])
                seen.append(now)
        if len(seen) == MOST_RUNS and seen[0].layers == seen[1].layers:
            between[epoch] = np.diag(cka_of_grams(zip(seen[0].grams, seen[1].grams, strict=True)))
    panels = [_by_epoch(f"{run.name}, with its last", last[i].layers, own[i]) for i, run in enumerate(runs)]
    if between:
        panels.append(_by_epoch(f"{runs[0].name}, with {runs[1].name}", last[0].layers, between))
    grid = cka_of_grams(zip(last[0].grams, last[-1].grams, strict=True))
    between_last = Panel(f"{runs[-1].name} (across), {runs[0].name} (up)", last[0].layers, last[-1].layers, grid)
    return [
        _part(out, "cka_layers", "CKA between layers, last epoch", [between_last], "layer", 0, "viridis"),
        _part(out, "cka_epochs", "CKA over epochs", panels, "epoch", 0, "viridis"),
        _sphere(out, {run.name: points[i] for i, run in enumerate(runs)}),
    ]


def _see(checkpoint: Path, run: RunHistory, source: Source, config: EvalConfig, layers: Layers) -> _Seen:
    backbone: Backbone = open_backbone(run.name, str(checkpoint))
    features = extract(backbone, source, config)
    grams = layer_grams(backbone, source, config, layers)
    return _Seen(layer_names(backbone, layers), grams, alignment(features, source.labels), uniformity(features))


def _by_epoch(title: str, layers: Sequence[str], columns: dict[int, Grid]) -> Panel:
    return Panel(title, layers, [str(epoch) for epoch in columns], np.stack(list(columns.values()), 1))


def gradients(runs: Sequence[RunHistory], batches: int, device: torch.device, out: Path, display: Display) -> str:
    """Cosines of the two losses' gradients; draws, writes, and returns the Markdown."""
    panels: list[Panel] = []
    lines: list[list[object]] = []
    for run in runs:
        if not run.config.teaches:
            continue
        display.show(f"gradients of {run.name}", 0, 1)
        data = open_data(run.config, find_store(run.config, open_images(run.config)[0]))
        found = gradient_agreements(list(run.epochs.values()), run.config, data, batches, device)
        by_epoch = dict(zip(run.epochs, found, strict=True))
        layers = list(found[0])
        cosines = {epoch: np.array([each[layer].cosine for layer in layers]) for epoch, each in by_epoch.items()}
        panels.append(_by_epoch(run.name, layers, cosines))
        lines += [[run.name, layer, epoch, *each[layer]] for epoch, each in by_epoch.items() for layer in layers]
    if not panels:
        return "No run has text, so there are no two losses to compare the gradients of."
    text = _part(out, "gradient_cosine", "Cosine of the gradients of L_cls and L_text", panels, "epoch", -1, "RdBu_r")
    write(out / "gradient_cosine.csv", to_csv(["run", "layer", "epoch", "cosine", "norm_cls", "norm_text"], lines))
    return text


def _part(out: Path, name: str, title: str, panels: Sequence[Panel], columns: str, low: float, colours: str) -> str:
    draw_panels(out / f"{name}.png", panels, columns, low, colours)
    write(out / f"{name}.csv", panels_to_csv(panels))
    tables = [f"{panel.title}:\n\n{to_markdown(panel, columns)}" for panel in panels]
    return "\n\n".join([f"## {title}", f"![{title}]({name}.png)", *tables])


def _sphere(out: Path, points: dict[str, dict[int, _Seen]]) -> str:
    """Alignment and uniformity of features by epoch."""
    name, title = "alignment_uniformity", "Alignment and uniformity of features"
    charts: dict[str, dict[str, Curve]] = {"alignment": {}, "uniformity": {}}
    for run, seen in points.items():
        for measure, curves in charts.items():
            curves[run] = Curve(list(seen), [getattr(each, measure) for each in seen.values()])
    draw_curves(out / f"{name}.png", charts, "epoch")
    lines = [[run, epoch, s.alignment, s.uniformity] for run, seen in points.items() for epoch, s in seen.items()]
    write(out / f"{name}.csv", to_csv(["run", "epoch", "alignment", "uniformity"], lines))
    rows = [f"| {run} | {epoch} | {first:.3f} | {second:.3f} |" for run, epoch, first, second in lines]
    table = "\n".join(["| run | epoch | alignment | uniformity |", "| --- | --- | --- | --- |", *rows])
    return f"## {title}\n\n![{title}]({name}.png)\n\n{table}"
