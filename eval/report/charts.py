"""Geometry of a report's charts, which charts.svg.j2 draws as inline SVG.

By hand: half a kilobyte a chart instead of matplotlib's thirty, text stays text, bars fill any width, and the page's
style sheet colours them, so that they follow light and dark.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from eval.report import calibration
from eval.report.content import Cell, Difference, Section
from eval.report.text import interval, number, signed

BAR = 20
"""Pixels from one bar to the next."""
ROW = 16
"""Pixels from one interval to the next."""
SIDE = 360.0
"""Width and height of the scatter plot."""
STRIP = 18.0
"""Height of the counts below a reliability diagram that is 100 wide."""
_COLOURS = 8
_LEFT, _BOTTOM, _MARGIN = 44.0, 38.0, 10.0
_LETTER = 6.0
"""Pixels of an average letter at the size of the labels."""
_Box = tuple[float, float, float, float]


def describe(task: str, model: str, cell: Cell | None) -> str:
    """Text of a tooltip."""
    if cell is None:
        return f"{model} on {task}: no result"
    text = f"{model} on {task}: {number(cell.mean)}" + ("" if cell.std is None else f" ± {number(cell.std)}")
    if cell.difference is None:
        return text
    return f"{text}, {signed(cell.difference.value)} {interval(cell.difference)}".rstrip()


def colour(model: int) -> int:
    """The style sheet's number for a model's colour: 0 is the baseline's alone."""
    return 1 + (model - 1) % (_COLOURS - 1) if model else 0


class Bar(NamedTuple):
    """One model's bar; lengths are per cent of the chart's width."""

    model: str
    title: str
    cell: Cell | None
    length: float = 0.0
    low: float = 0.0
    high: float = 0.0


def bars(section: Section, task: str) -> list[Bar]:
    """One task's bars, from 0 to 100 %, with whiskers of one standard deviation; in the order of the models."""
    found: list[Bar] = []
    for model in section.models:
        cell = section.cells.get((task, model))
        title = describe(task, model, cell)
        if cell is None:
            found.append(Bar(model, title, None))
            continue
        sd = cell.std or 0.0
        # Bars take 80 % of the width, the rest is for the value at their end.
        ends = (0.8 * min(max(each, 0.0), 100.0) for each in (cell.mean, cell.mean - sd, cell.mean + sd))
        found.append(Bar(model, title, cell, *ends))
    return found


class Axis(NamedTuple):
    """A range of values, and round numbers in it."""

    low: float
    high: float
    ticks: list[float]

    def share(self, value: float) -> float:
        """Place of a value between the ends, from 0 to 1."""
        return (value - self.low) / (self.high - self.low)

    def per_cent(self, value: float) -> str:
        """The same as a length of SVG."""
        return f"{100 * self.share(value):.2f}%"


def axis(values: Sequence[float]) -> Axis:
    """The axis that shows all values."""
    low, high = min(values), max(values)
    margin = max(0.06 * (high - low), 0.5)
    low, high = low - margin, high + margin
    rough = (high - low) / 7
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return Axis(low, high, [step * place for place in range(math.ceil(low / step), math.floor(high / step) + 1)])


class Forest(NamedTuple):
    """Differences to the baseline with their intervals, on one scale."""

    x: Axis
    rows: dict[str, list[tuple[str, str, Difference]]]
    """Model, tooltip and difference of each line, by task."""


def forest(section: Section) -> Forest | None:
    """Every difference to the baseline, a row a task; None without any."""
    rows: dict[str, list[tuple[str, str, Difference]]] = {}
    bounds = [0.0]
    for task in section.tasks:
        for model in section.models:
            cell = section.cells.get((task, model))
            if cell is not None and (difference := cell.difference) is not None:
                rows.setdefault(task, []).append((model, describe(task, model, cell), difference))
                bounds += [difference.value, *(difference.interval or ())[:2]]
    return Forest(axis(bounds), rows) if rows else None


class Point(NamedTuple):
    """A model on a task: the baseline's mean is across, the model's up; in pixels."""

    x: float
    y: float
    task: str
    model: str
    title: str
    filled: bool
    """The difference is significant."""


class Scatter(NamedTuple):
    """Every other model against the baseline."""

    axis: Axis
    """Axis of both directions; ticks are within 0 and 100."""
    points: list[Point]
    labels: list[tuple[str, float, float]]
    """Tasks' names with the place of their left end, in pixels."""

    def x(self, value: float) -> float:
        """Pixels from the left."""
        return _x(self.axis, value)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return _y(self.axis, value)


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.share(value) * (SIDE - _LEFT - _MARGIN)


def _y(axis: Axis, value: float) -> float:
    return SIDE - _BOTTOM - axis.share(value) * (SIDE - _BOTTOM - _MARGIN)


def scatter(section: Section, baseline: str) -> Scatter | None:
    """A point a task and model: above the diagonal it is better than the baseline. None without a common task."""
    pairs = {
        (task, model): (section.cells[task, baseline].mean, cell)
        for (task, model), cell in sorted(section.cells.items())
        if model != baseline and (task, baseline) in section.cells
    }
    if not pairs:
        return None
    both = axis([value for first, cell in pairs.values() for value in (first, cell.mean)])
    both = both._replace(ticks=[tick for tick in both.ticks if 0 <= tick <= 100])
    points = [
        Point(
            _x(both, first),
            _y(both, cell.mean),
            task,
            model,
            describe(task, model, cell),
            bool(cell.difference and cell.difference.mark),
        )
        for (task, model), (first, cell) in pairs.items()
    ]
    return Scatter(both, points, _labels(points))


def _labels(points: Sequence[Point]) -> list[tuple[str, float, float]]:
    """The tasks' names next to their topmost points, where they cover neither points nor each other."""
    taken: list[_Box] = [(point.x - 6, point.y - 6, point.x + 6, point.y + 6) for point in points]
    topmost: Mapping[str, Point] = {}
    for point in points:
        if point.task not in topmost or point.y < topmost[point.task].y:
            topmost[point.task] = point
    found: list[tuple[str, float, float]] = []
    for task, point in sorted(topmost.items()):
        width = _LETTER * len(task)
        for left in (point.x + 8, point.x - 8 - width):
            box = (left, point.y - 6, left + width, point.y + 6)
            inside = box[0] > _LEFT and box[2] < SIDE
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                found.append((task, left, point.y + 3.5))
                break
    return found


class Reliability(NamedTuple):
    """A reliability diagram as paths: 100 across, 100 up, and a strip of counts below."""

    bars: str
    """Accuracy of each bin that has images."""
    gaps: str
    """From the accuracy of a bin to its mean confidence."""
    counts: str
    """Images of each bin, the most being the strip's height."""


def reliability_diagram(found: calibration.Reliability) -> Reliability:
    """One rectangle a bin in each path."""
    width = 100 / len(found.images)
    bars, gaps, counts = [], [], []
    for place in np.flatnonzero(found.images).tolist():
        left, accuracy, sure = place * width, 100 * found.accuracy[place], 100 * found.confidence[place]
        bars.append(_rectangle(left, 100 - accuracy, width, accuracy))
        gaps.append(_rectangle(left, 100 - max(accuracy, sure), width, abs(accuracy - sure)))
        height = STRIP * found.images[place] / found.images.max()
        counts.append(_rectangle(left, 104 + STRIP - height, width, height))
    return Reliability("".join(bars), "".join(gaps), "".join(counts))


def _rectangle(left: float, top: float, width: float, height: float) -> str:
    return f"M{left:.1f} {top:.1f}h{width - 0.5:.1f}v{height:.1f}h-{width - 0.5:.1f}z"


def _overlap(first: _Box, second: _Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
