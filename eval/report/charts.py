"""Charts of a report as inline SVG, coloured by the page's style sheet, so that they follow light and dark.

Written by hand: half a kilobyte a chart instead of matplotlib's thirty, text stays text, and bars fill any width.
"""

import math
import re
from collections.abc import Callable
from html import escape

from eval.report.content import Cell, Difference, Section
from eval.report.text import interval, number, signed

BAR = 20
"""Pixels from one bar to the next."""
ROW = 16
"""Pixels from one interval to the next."""
_COLOURS = 8
_SIDE, _LEFT, _BOTTOM = 360.0, 44.0, 38.0
_LETTER = 6.0
"""Pixels of an average letter at the size of the labels."""
Scale = Callable[[float], float]
_Point = tuple[float, float, str, str, Cell]
_Box = tuple[float, float, float, float]
_Ends = tuple[float, float]


def bars(section: Section, task: str, numbers: dict[str, int]) -> str:
    """One task's bar chart: a bar for each model with a whisker of one standard deviation, from 0 to 100 %.

    `numbers` gives each model's number, which is its colour and the name that filters use.
    """
    parts: list[str] = []
    for line, model in enumerate(section.models):
        cell = section.cells.get((task, model))
        opening = f'<g data-m="{numbers[model]}" transform="translate(0 {line * BAR})">'
        parts.append(f"{opening}<title>{escape(describe(task, model, cell))}</title>{_bar(cell, numbers[model])}</g>")
    height = BAR * len(section.models)
    label = escape(f"{section.label}, {task}: per cent of {section.metric(task)} by model")
    opening = f'<svg class="bars" data-step="{BAR}" width="100%" height="{height}" role="img" aria-label="{label}">'
    return f"{opening}{''.join(parts)}</svg>"


def describe(task: str, model: str, cell: Cell | None) -> str:
    """What a tooltip says."""
    if cell is None:
        return f"{model} on {task}: no result"
    text = f"{model} on {task}: {number(cell.mean)}" + ("" if cell.std is None else f" ± {number(cell.std)}")
    if cell.difference is None:
        return text
    return f"{text}, {signed(cell.difference.value)} {interval(cell.difference)}".rstrip()


def _bar(cell: Cell | None, place: int) -> str:
    """Bars take 80 % of the width, the rest is for the value at their end."""
    if cell is None:
        return f'<text class="none" x="0" y="14">{number(None)}</text>'
    value, low, high = (0.8 * min(max(each, 0.0), 100.0) for each in (cell.mean, *_whisker(cell)))
    whisker = f'<line class="w" x1="{low:.2f}%" x2="{high:.2f}%" y1="9.5" y2="9.5"/>' if cell.std else ""
    return (
        f'<rect class="track" width="80%" y="3" height="13" rx="2"/>'
        f'<rect class="f{colour(place)}" width="{value:.2f}%" y="3" height="13" rx="2"/>{whisker}'
        f'<text x="{high:.2f}%" dx="8" y="14">{number(cell.mean)}</text>'
    )


def _whisker(cell: Cell) -> tuple[float, float]:
    spread = cell.std or 0.0
    return cell.mean - spread, cell.mean + spread


def forest(section: Section, numbers: dict[str, int]) -> str:
    """Every difference to the baseline with its interval, a row a task, on one scale; empty without any."""
    found = {place: cell.difference for place, cell in section.cells.items() if cell.difference is not None}
    if not found:
        return ""
    bounds = [bound for each in found.values() for bound in (each.value, *(each.interval or ())[:2])]
    low, high, ticks = _range([0.0, *bounds])

    def x(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    rows: list[str] = []
    for task in section.tasks:
        models = [model for model in section.models if (task, model) in found]
        if not models:
            continue
        parts = [f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="0" y2="100%"/>']
        for line, model in enumerate(models):
            text = escape(describe(task, model, section.cells[task, model]))
            opening = f'<g data-m="{numbers[model]}" transform="translate(0 {line * ROW})"><title>{text}</title>'
            parts.append(f"{opening}{_interval(found[task, model], x, colour(numbers[model]))}</g>")
        height = ROW * len(models)
        label = escape(f"{section.label}, {task}: difference to the baseline")
        opening = f'<svg data-step="{ROW}" width="100%" height="{height}" role="img" aria-label="{label}">'
        caption = f"<figcaption>{breakable(task)}</figcaption>"
        rows.append(f'<figure data-task="{escape(task)}">{caption}{opening}{"".join(parts)}</svg></figure>')
    labels = "".join(f'<text x="{x(tick)}" y="12" text-anchor="middle">{_tick(tick)}</text>' for tick in ticks)
    axis = f'<div class="axis"><span></span><svg width="100%" height="16" aria-hidden="true">{labels}</svg></div>'
    return f'<div class="forest">{"".join(rows)}{axis}</div>'


def _interval(difference: Difference, x: Callable[[float], str], look: int) -> str:
    kind = "f" if difference.mark else "s"
    point = f'<circle class="{kind}{look}" cx="{x(difference.value)}" cy="8" r="4"/>'
    if difference.interval is None:
        return point
    ends = f'x1="{x(difference.interval.low)}" x2="{x(difference.interval.high)}"'
    return f'<line class="f{look} l" {ends} y1="8" y2="8"/>{point}'


def _tick(value: float) -> str:
    return f"{value:+g}" if value else "0"


def colour(model: int) -> int:
    """The style sheet's number for a model's colour: 0 is the baseline's alone."""
    return 1 + (model - 1) % (_COLOURS - 1) if model else 0


def breakable(name: str) -> str:
    """HTML of a name that may break into lines after its signs, rather than anywhere."""
    return re.sub(r"([_/.-])", r"\1<wbr>", escape(name))


def scatter(section: Section, baseline: str, numbers: dict[str, int]) -> str:
    """Every other model against the baseline, a point a task; empty without a task that both have.

    Points above the diagonal are better than the baseline; filled ones significantly differ from it.
    """
    points = [
        (section.cells[task, baseline].mean, cell.mean, task, model, cell)
        for (task, model), cell in sorted(section.cells.items())
        if model != baseline and (task, baseline) in section.cells
    ]
    if not points:
        return ""
    low, high, ticks = _range([value for point in points for value in point[:2]])
    ticks = [tick for tick in ticks if 0 <= tick <= 100]

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_SIDE - _LEFT - 10)

    def y(value: float) -> float:
        return _SIDE - _BOTTOM - (value - low) / (high - low) * (_SIDE - _BOTTOM - 10)

    parts = [_axes((low, high), ticks, x, y, baseline)]
    for first, second, task, model, cell in points:
        mark = cell.difference.mark if cell.difference else 0
        look = f"f{colour(numbers[model])}" if mark else f"s{colour(numbers[model])}"
        parts.append(
            f'<circle class="{look}" data-m="{numbers[model]}" data-task="{escape(task)}" cx="{x(first):.1f}" '
            f'cy="{y(second):.1f}" r="5"><title>{escape(describe(task, model, cell))}</title></circle>'
        )
    parts.append(_names(points, x, y))
    label = escape(f"{section.label}: models against {baseline}, a point a task")
    box = f"0 0 {_SIDE:.0f} {_SIDE:.0f}"
    return f'<svg class="scatter" viewBox="{box}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _range(values: list[float]) -> tuple[float, float, list[float]]:
    """Ends of both axes, and round numbers between them."""
    low, high = min(values), max(values)
    margin = max(0.06 * (high - low), 0.5)
    low, high = low - margin, high + margin
    rough = (high - low) / 7
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    ticks = [step * place for place in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return low, high, ticks


def _axes(ends: _Ends, ticks: list[float], x: Scale, y: Scale, baseline: str) -> str:
    low, high = ends
    right, bottom = x(high), y(low)
    parts = [f'<path class="diagonal" d="M{x(low):.1f} {bottom:.1f}L{right:.1f} {y(high):.1f}"/>']
    for tick in ticks:
        parts.append(f'<path class="grid" d="M{x(tick):.1f} {y(high):.1f}V{bottom:.1f}"/>')
        parts.append(f'<path class="grid" d="M{x(low):.1f} {y(tick):.1f}H{right:.1f}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 14:.1f}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{x(low) - 6:.1f}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{tick:g}</text>')
    middle = (x(low) + right) / 2
    name = escape(baseline if len(baseline) <= 40 else f"{baseline[:39]}…")
    parts.append(f'<text class="axis" x="{middle:.1f}" y="{_SIDE - 6:.1f}" text-anchor="middle">{name}, %</text>')
    turn = f'transform="translate(11 {(bottom + y(high)) / 2:.1f}) rotate(-90)"'
    parts.append(f'<text class="axis" {turn} text-anchor="middle">other models, %</text>')
    return "".join(parts)


def _names(points: list[_Point], x: Scale, y: Scale) -> str:
    """The tasks' names beside their topmost points, where they cover neither points nor each other."""
    taken = [(x(point[0]) - 6, y(point[1]) - 6, x(point[0]) + 6, y(point[1]) + 6) for point in points]
    parts: list[str] = []
    for task in sorted({point[2] for point in points}):
        first, second = max((point for point in points if point[2] == task), key=lambda point: point[1])[:2]
        width = _LETTER * len(task)
        for left in (x(first) + 8, x(first) - 8 - width):
            box = (left, y(second) - 6, left + width, y(second) + 6)
            inside = box[0] > _LEFT and box[2] < _SIDE
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                place = f'x="{left:.1f}" y="{y(second) + 3.5:.1f}"'
                parts.append(f'<text data-task="{escape(task)}" {place}>{escape(task)}</text>')
                break
    return "".join(parts)


def _overlap(first: _Box, second: _Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
