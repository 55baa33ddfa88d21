"""Figures and tables of numbers by layer and epoch, drawn by matplotlib, a PNG and a CSV each."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tt_ray.io.files import new_file

Grid = npt.NDArray[np.float64]


class Panel(NamedTuple):
    """A matrix and what its rows and columns are."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Grid
    """(rows, columns); nan is left blank."""


class Curve(NamedTuple):
    """Values over numbers, perhaps with a spread."""

    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None


def draw_panels(path: Path, panels: Sequence[Panel], columns: str, low: float, colours: str) -> None:
    """Matrices side by side, coloured from `low` to 1; `columns` names the horizontal axis. Layers run upwards."""
    widths = [max(3.0, 0.34 * len(panel.columns)) + 1.2 for panel in panels]
    height = max(2.2, 0.34 * max(len(panel.rows) for panel in panels)) + 1.1
    figure, axes = _figure((sum(widths) + 0.6, height), (1, len(panels)), width_ratios=widths)
    image: Any = None
    for ax, panel in zip(axes, panels, strict=True):
        image = ax.imshow(panel.values, vmin=low, vmax=1, cmap=colours, origin="lower", aspect="auto")
        ax.set_title(panel.title, fontsize=9)
        ax.set_yticks(range(len(panel.rows)), panel.rows, fontsize=7)
        step = -(-len(panel.columns) // 24)
        places = range(0, len(panel.columns), step)
        turned = max(map(len, panel.columns)) > 3
        ax.set_xticks(places, [panel.columns[i] for i in places], fontsize=7, rotation=90 if turned else 0)
        ax.set_xlabel(columns, fontsize=8)
        if panel.values.size <= 60:
            for (row, column), value in np.ndenumerate(panel.values):
                light = (value - low) / (1 - low) < 0.4 if colours == "viridis" else abs(value) > 0.6
                text = "" if np.isnan(value) else f"{value:.2f}"
                ax.text(column, row, text, ha="center", va="center", fontsize=6, color="white" if light else "black")
    figure.colorbar(image, ax=axes.tolist())
    _save(figure, path)


def draw_curves(path: Path, charts: Mapping[str, Mapping[str, Curve]], x: str) -> None:
    """Line charts side by side: by the name of the vertical axis, curves by label."""
    figure, axes = _figure((3.8 * len(charts) + 0.4, 3.0), (1, len(charts)))
    for ax, (name, curves) in zip(axes, charts.items(), strict=True):
        for label, curve in curves.items():
            ax.errorbar(curve.x, curve.y, curve.spread, label=label, marker="o", markersize=3, linewidth=1, capsize=2)
        ax.set_xlabel(x, fontsize=8)
        ax.set_ylabel(name, fontsize=8)
        ax.tick_params(labelsize=7)
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    _save(figure, path)


def _figure(size: tuple[float, float], shape: tuple[int, int], **grid: Any) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(*shape, squeeze=False, gridspec_kw=grid)[0]


def _save(figure: Any, path: Path) -> None:
    with new_file(path, durable=False) as partial:
        figure.savefig(partial, format="png", dpi=110)


def panels_to_csv(panels: Sequence[Panel]) -> str:
    """One line a value: panel, row, column, value."""
    lines = [
        [panel.title, row, column, repr(float(panel.values[i, j]))]
        for panel in panels
        for i, row in enumerate(panel.rows)
        for j, column in enumerate(panel.columns)
    ]
    return to_csv(["panel", "row", "column", "value"], lines)


def to_csv(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """Comma-separated values."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([head, *lines])
    return stream.getvalue()


def to_markdown(panel: Panel, corner: str) -> str:
    """A panel as a table of three decimals."""
    lines = [f"| {corner} | {' | '.join(panel.columns)} |", f"|{' --- |' * (len(panel.columns) + 1)}"]
    for name, row in zip(panel.rows, panel.values, strict=True):
        cells = ["—" if np.isnan(value) else f"{value:.3f}" for value in row]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with new_file(path, durable=False) as partial:
        partial.write_text(text, encoding="utf-8")
