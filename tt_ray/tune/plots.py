"""Plots of a search: the metric over every dimension, all dimensions at once, and schedules that a population found."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from tt_ray.io.files import new_file
from tt_ray.tune.journal import Record
from tt_ray.tune.live_table import value_text
from tt_ray.tune.space import Space

_DOT = {"s": 14, "alpha": 0.6, "linewidths": 0}


def write_plots(out: Path, space: Space, records: Sequence[Record]) -> list[str]:
    """Writes PNG files and returns their names. Shows trials with a report; those that ended early are grey."""
    found = [record for record in records if record.reports]
    names = ["dimensions.png", "parallel.png"]
    _save(_dimensions(space, found), out / names[0])
    _save(_parallel(space, found), out / names[1])
    if any(report["generation"] for record in found for report in record.reports):
        _save(_lineages(space, found), out / "lineages.png")
        names.append("lineages.png")
    return names


def _save(figure: Any, path: Path) -> None:
    with new_file(path, durable=False) as partial:
        figure.savefig(partial, format="png", dpi=80)
    plt.close(figure)


def _dimensions(space: Space, records: Sequence[Record]) -> Any:
    """The metric against each dimension, of trials that had it: a point for each seed, a bar for their mean."""
    columns = min(len(space.domains), 4)
    rows = -(-len(space.domains) // columns)
    size = (3.2 * columns + 0.4, 2.8 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, path in zip(axes.flat, space.domains, strict=False):
        having = [record for record in records if path in record.job()["values"]]
        places, ticks = _places(space, path, having)
        for record, place in zip(having, places, strict=True):
            last = record.reports[-1]
            seeds = [row[space.metric] for row in last["seeds"].values()]
            colour = "C0" if record.status == "done" else "0.7"
            axis.scatter([place] * len(seeds), seeds, color=colour, **_DOT)
            axis.scatter([place], [last[space.metric]], color=colour, marker="_", s=90, linewidths=1.5)
        if ticks:
            axis.set_xticks(range(len(ticks)), ticks, rotation=30 if max(map(len, ticks)) > 6 else 0)
        elif _is_log(space, path):
            axis.set_xscale("log")
        axis.set_xlabel(path)
    for axis in axes[:, 0]:
        axis.set_ylabel(f"{space.heading}, selection split")
    for axis in axes.flat[len(space.domains) :]:
        axis.set_visible(False)
    return figure


def _places(space: Space, path: str, records: Sequence[Record]) -> tuple[list[float], list[str]]:
    """Positions of values on an axis, and its ticks where the dimension is a choice."""
    values = [record.job()["values"][path] for record in records]
    categories = getattr(space.domains[path], "categories", None)
    if categories is None:
        return [float(value) for value in values], []
    # Spread a little, so that trials of one choice do not hide each other.
    spread = np.random.default_rng(0).uniform(-0.18, 0.18, len(values))
    return [categories.index(v) + float(s) for v, s in zip(values, spread, strict=True)], [str(c) for c in categories]


def _is_log(space: Space, path: str) -> bool:
    from ray.tune.search.sample import LogUniform, Quantized

    sampler = space.domains[path].get_sampler()
    return isinstance(sampler.get_sampler() if isinstance(sampler, Quantized) else sampler, LogUniform)


def _parallel(space: Space, records: Sequence[Record]) -> Any:
    """Parallel coordinates: a line for each trial with a finite value, coloured by the metric, the best on top."""
    records = [record for record in records if math.isfinite(record.reports[-1][space.metric])]
    paths = list(space.domains)
    figure, axis = plt.subplots(figsize=(1.6 * len(paths) + 2.4, 3.4), layout="constrained")
    scores = np.array([record.reports[-1][space.metric] for record in records])
    low, high = float(scores.min()), float(scores.max())
    columns = np.array([_heights(space, path, records) for path in paths] + [(scores - low) / max(high - low, 1e-9)])
    order = np.argsort([space.better(score) for score in scores])
    for number in order:
        share = (scores[number] - low) / max(high - low, 1e-9)
        colour = plt.get_cmap("viridis")(share if space.mode == "max" else 1 - share)
        style = "-" if records[number].status == "done" else ":"
        here = np.isfinite(columns[:, number])  # a line passes by a dimension that its trial did not have
        axis.plot(np.flatnonzero(here), columns[here, number], style, color=colour, linewidth=1.3, alpha=0.85)
    for place, path in enumerate(paths):
        for height, text in _marks(space, path):
            axis.text(place + 0.03, height, text, fontsize=7, va="center")
        axis.axvline(place, color="0.8", linewidth=0.8, zorder=0)
    for height, value in ((0, low), (1, high)):
        axis.text(len(paths) + 0.03, height, space.shown(value), fontsize=7, va="center")
    axis.set_xticks(range(len(columns)), [*(path.replace(".", ".\n", 1) for path in paths), space.heading], fontsize=8)
    axis.set_yticks([])
    axis.set_frame_on(False)
    axis.margins(x=0.08)
    axis.set_ylim(-0.05, 1.05)  # the whole range, also where the values are close together
    return figure


def _heights(space: Space, path: str, records: Sequence[Record]) -> list[float]:
    """Places between 0 and 1; nan for trials that did not have the dimension."""
    domain = space.domains[path]
    values = [record.job()["values"].get(path, math.nan) for record in records]
    if hasattr(domain, "categories"):
        last = max(len(domain.categories) - 1, 1)
        return [domain.categories.index(value) / last if value in domain.categories else math.nan for value in values]
    ends = np.array([domain.lower, domain.upper, *values], float)
    ends = np.log(ends) if _is_log(space, path) else ends
    return list((ends[2:] - ends[0]) / (ends[1] - ends[0]))


def _marks(space: Space, path: str) -> list[tuple[float, str]]:
    domain = space.domains[path]
    if hasattr(domain, "categories"):
        last = max(len(domain.categories) - 1, 1)
        return [(number / last, str(name)) for number, name in enumerate(domain.categories)]
    return [(0.0, value_text(domain.lower)), (1.0, value_text(domain.upper))]


def _lineages(space: Space, records: Sequence[Record]) -> Any:
    """How values moved in population-based training: each trial's own reports, takeovers as steps."""
    paths = list(space.domains)
    figure, axes = plt.subplots(len(paths), 1, figsize=(5.6, 2.6 * len(paths)), squeeze=False, layout="constrained")
    for axis, path in zip(axes[:, 0], paths, strict=True):
        for record in records:
            rows = record.reports
            axis.step([row["epoch"] for row in rows], [row["values"][path] for row in rows], where="pre", alpha=0.7)
        axis.set_ylabel(path)
        axis.set_xlabel("epoch")
    return figure
