"""Outlines of the built-in shapes: signed distances in units of the radius, negative inside.

y is up, and everything is inside the unit circle. Formulas of ellipse, heart, moon, star and boolean operations: Inigo
Quilez, iquilezles.org/articles/distfunctions2d; bounds rather than exact distances outside corners, as only the pixels
at the edge matter.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.floating]  # a coordinate or distance for each pixel, float32 in fact


def _polygon(x: Field, y: Field, sides: int, radius: float) -> Field:
    """Regular polygon with an edge below: the farthest of its edges' half-planes."""
    angles = [2 * math.pi / sides * edge - math.pi / 2 for edge in range(sides // 2 + 1)]
    edges = [np.abs(x) * math.cos(angle) + y * math.sin(angle) for angle in angles]
    return np.maximum.reduce(edges) - radius * math.cos(math.pi / sides)


def _box(x: Field, y: Field, half_width: float, low: float, high: float) -> Field:
    return np.maximum(np.abs(x) - half_width, np.abs(y - (low + high) / 2) - (high - low) / 2)


def _slope(x: Field, y: Field, low: tuple[float, float], high: tuple[float, float]) -> Field:
    """Left of the edge from `low` up to `high`, and right of its mirror image."""
    across, along = high[1] - low[1], low[0] - high[0]
    return (across * (np.abs(x) - low[0]) + along * (y - low[1])) / math.hypot(across, along)


def _ellipse(x: Field, y: Field) -> Field:
    near = np.hypot(x, y / 0.56)
    return near * (near - 1) / (np.hypot(x, y / 0.56**2) + 1e-6)


def _heart(x: Field, y: Field) -> Field:
    x, y = np.abs(x) * 0.68, y * 0.68 + 0.55
    lobe = np.hypot(x - 0.25, y - 0.75) - math.sqrt(0.125)
    on_edge = 0.5 * np.maximum(x + y, 0)
    tip = np.minimum(np.hypot(x, y - 1), np.hypot(x - on_edge, y - on_edge)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, tip) / 0.68


def _star(x: Field, y: Field, inner: float = 0.42) -> Field:
    cos, sin = math.cos(math.pi / 5), math.sin(math.pi / 5)
    x = np.abs(x)
    for side in (1, -1):  # fold all points of the star onto the upper one
        over = 2 * np.maximum(side * cos * x - sin * y, 0)
        x, y = x - over * side * cos, y + over * sin
    x, y = np.abs(x), y - 1
    edge_x, edge_y = inner * sin, inner * cos - 1
    along = np.clip((x * edge_x + y * edge_y) / (edge_x**2 + edge_y**2), 0, 1)
    return np.hypot(x - edge_x * along, y - edge_y * along) * np.sign(y * edge_x - x * edge_y)


def _arrow(x: Field, y: Field) -> Field:
    return np.minimum(np.maximum(0.1 - y, _slope(x, y, (0.78, 0.1), (0, 0.95))), _box(x, y, 0.24, -0.95, 0.2))


SHAPES: dict[str, Callable[[Field, Field], Field]] = {
    "circle": lambda x, y: np.hypot(x, y) - 0.82,
    "ellipse": _ellipse,
    "semicircle": lambda x, y: np.maximum(np.hypot(x, y + 0.38) - 0.9, -y - 0.38),
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 0.92, 0.74 - np.hypot(x - 0.44, y)),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.66) - 0.2,
    "heart": _heart,
    "triangle": lambda x, y: _polygon(x, y, 3, 1),
    "square": lambda x, y: _box(x, y, 0.7, -0.7, 0.7),
    "diamond": lambda x, y: _slope(x, np.abs(y), (0.58, 0), (0, 1)),
    "trapezoid": lambda x, y: np.maximum(np.abs(y) - 0.54, _slope(x, y, (0.84, -0.54), (0.4, 0.54))),
    "pentagon": lambda x, y: _polygon(x, y, 5, 0.92),
    "hexagon": lambda x, y: _polygon(x, y, 6, 0.9),
    "star": _star,
    "cross": lambda x, y: np.minimum(_box(x, y, 0.27, -0.9, 0.9), _box(y, x, 0.27, -0.9, 0.9)),
    "arrow": _arrow,
    "T-shape": lambda x, y: np.minimum(_box(x, y, 0.74, 0.2, 0.66), _box(x, y, 0.24, -0.94, 0.3)),
}
