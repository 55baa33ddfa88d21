"""A picture of features: a panel a model with the same images, coloured by class, as one SVG with its legend."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eval.report.html import environment

_PANEL, _GAP, _HEAD, _ITEM, _LINE = 300, 20, 46, 150, 18
"""Pixels: side of a panel, space around it, its title, an entry of the legend and its line."""
_ACROSS = 3
_LONGEST_NAME = 20


class Projected(NamedTuple):
    """One model's features in two dimensions."""

    model: str
    places: npt.NDArray[np.float64]
    """Of the images, (n, 2)."""
    alike: float
    """Share of images whose nearest image in the picture is of their class, per cent."""


class Dots(NamedTuple):
    """The images of one class: a path of one dot each."""

    name: str
    colour: str
    path: str


def draw(title: str, projected: Sequence[Projected], labels: npt.NDArray[np.int64], names: Sequence[str]) -> str:
    """The SVG.

    Args:
        title: What is drawn, in one line: the picture's text alternative begins with it.
        projected: A panel each.
        labels: Class of each image, (n,).
        names: Names of the classes, by number.
    """
    there = np.unique(labels)
    colours = {int(number): _colour(place, len(there)) for place, number in enumerate(there)}
    columns = min(_ACROSS, len(projected))
    width = columns * (_PANEL + _GAP) + _GAP
    panels = []
    for number, each in enumerate(projected):
        left = _GAP + number % columns * (_PANEL + _GAP)
        top = _HEAD + number // columns * (_PANEL + _HEAD)
        places = _fit(each.places)
        dots = [Dots(names[label], colours[label], _dots(places[labels == label])) for label in colours]
        panels.append((left, top, each, dots))
    bottom = -(-len(projected) // columns) * (_PANEL + _HEAD) + _GAP
    across = (width - _GAP) // _ITEM
    legend = [
        (_GAP + place % across * _ITEM, bottom + place // across * _LINE, _short(names[label]), names[label], colour)
        for place, (label, colour) in enumerate(colours.items())
    ]
    height = bottom + -(-len(legend) // across) * _LINE + _GAP
    words = "; ".join(f"{each.model}: {each.alike:.1f} % next to their class" for each in projected)
    template = environment().get_template("picture.svg.j2")
    return template.render(
        title=title, words=words, panels=panels, legend=legend, width=width, height=height, side=_PANEL
    )


def _colour(place: int, count: int) -> str:
    """Hues around the circle; of many classes neighbours differ in lightness too."""
    return f"hsl({360 * place / count:.0f} 70% {(45, 62)[place % 2] if count > 8 else 50}%)"


def _fit(places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Places in a panel, both directions at one scale."""
    low, high = places.min(0), places.max(0)
    scale = (_PANEL - 16) / max(float((high - low).max()), 1e-12)
    return _PANEL / 2 + (places - (low + high) / 2) * scale


def _dots(places: npt.NDArray[np.float64]) -> str:
    return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places.tolist())


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
