"""Built-in data: captioned pictures of shapes, drawn when asked for; an image is a function of (seed, index) alone.

A picture has a main object (the biggest, drawn last), up to three smaller ones and a background. Lengths are in units
of half the picture's side: the picture is [-1, 1] x [-1, 1], x to the right, y down; angles are in radians.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from tt_ray.config import ShapesConfig
from tt_ray.data.hashing import uniform
from tt_ray.data.source import Pixels, Source

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

# Difficulty. At 32 px, a ViT of width 96 and depth 4 shall end well above chance (6% for shapes) and well below 100%
# after a minute of training, so that what a teacher adds can be seen.
MAX_TURN = np.pi / 6  # free rotation makes learning slow; none at all makes templates of pixels sufficient
RADII = (0.34, 0.43, 0.53)  # main object, small to large: the small ones are 11 pixels wide at 32 px
RADIUS_SPREAD = 0.06  # relative; less than half a step between sizes, so that sizes never meet
FIRST_RADIUS = 0.24  # the distractor that the relation is about is bigger than the others, so that a viewer can know it
OTHER_RADIUS = 0.17
SPREAD = 0.9  # how far off the centre places are, as a share of the room that the object leaves
JITTER = 0.1  # of places
NOISE = 14.0  # standard deviation of the pixel noise, in grey levels of 255
COLOUR_SPREAD = 18.0  # largest deviation of an object's channels from the named colour, in grey levels
CONTRAST = (30.0, 60.0)  # distance between the two greys of a patterned background, in grey levels
PERIOD = (0.55, 0.85)  # of stripes, checks and dots: at least 8 pixels at 32 px, which a viewer still resolves
CANDIDATES = 12  # places tried for each further distractor, so that it rarely touches another object

COLOURS = {
    "red": (220, 30, 40), "orange": (250, 130, 10), "yellow": (250, 225, 30), "green": (30, 160, 50),
    "cyan": (30, 205, 220), "blue": (35, 70, 220), "purple": (125, 35, 165), "pink": (255, 125, 190),
}  # fmt: skip
SIZES = ("small", "medium", "large")
COUNTS = ("none", "one", "two", "three")
RELATIONS = ("left of", "right of", "above", "below", "alone")
BACKGROUNDS = ("plain light", "plain dark", "striped", "checked", "dotted", "gradient")
POSITIONS = (
    "in the top left", "at the top", "in the top right",
    "on the left", "in the centre", "on the right",
    "in the bottom left", "at the bottom", "in the bottom right",
)  # fmt: skip
FULL_TEMPLATES = (
    "a {size} {colour} {shape} {position}, {relation}{others}, on a {background} background",
    "on a {background} background, a {size} {colour} {shape} {position}, {relation}{others}",
    "{position}, {relation}, a {size} {colour} {shape} on a {background} background{others}",
    "a {background} picture of a {size} {colour} {shape} that is {position}, {relation}{others}",
)
CLASS_TEMPLATES = ("a picture of {shape}", "an image that shows {shape}", "{shape}")


def _half_planes(x: Floats, y: Floats, sides: int, apothem: float) -> Floats:
    """Regular polygon with a vertex at the top: the farthest of its edges' half-planes."""
    angles = -np.pi / 2 + 2 * np.pi / sides * np.arange(sides // 2 + 1)
    ax = np.abs(x)
    edges = [ax * np.float32(np.cos(a)) + y * np.float32(np.sin(a)) for a in angles]
    return np.maximum.reduce(edges) - apothem


def _box(x: Floats, y: Floats, half_width: float, low: float, high: float) -> Floats:
    return np.maximum(np.abs(x) - half_width, np.abs(y - (low + high) / 2) - (high - low) / 2)


def _slope(x: Floats, y: Floats, low: tuple[float, float], high: tuple[float, float]) -> Floats:
    """Left of the edge from `low` up to `high`, and its mirror image."""
    across, along = high[1] - low[1], low[0] - high[0]
    return (across * (np.abs(x) - low[0]) + along * (y - low[1])) / np.hypot(across, along)


def _circle(x: Floats, y: Floats) -> Floats:
    return np.hypot(x, y) - 0.82


def _ellipse(x: Floats, y: Floats) -> Floats:
    near = np.hypot(x, y / 0.56)
    return near * (near - 1) / (np.hypot(x, y / 0.56**2) + 1e-6)


def _semicircle(x: Floats, y: Floats) -> Floats:
    return np.maximum(np.hypot(x, y + 0.38) - 0.9, -y - 0.38)


def _crescent(x: Floats, y: Floats) -> Floats:
    return np.maximum(np.hypot(x, y) - 0.92, 0.74 - np.hypot(x - 0.44, y))


def _ring(x: Floats, y: Floats) -> Floats:
    return np.abs(np.hypot(x, y) - 0.66) - 0.2


def _heart(x: Floats, y: Floats) -> Floats:
    x, y = np.abs(x) * 0.62, y * 0.62 + 0.53
    lobe = np.hypot(x - 0.25, y - 0.75) - np.sqrt(0.125)
    on_edge = 0.5 * np.maximum(x + y, 0)
    tip = np.minimum(np.hypot(x, y - 1), np.hypot(x - on_edge, y - on_edge)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, tip) / 0.62


def _triangle(x: Floats, y: Floats) -> Floats:
    return _half_planes(x, y, 3, 0.5)


def _square(x: Floats, y: Floats) -> Floats:
    return _box(x, y, 0.7, -0.7, 0.7)


def _diamond(x: Floats, y: Floats) -> Floats:
    return _slope(x, np.abs(y), (0.58, 0), (0, 1))


def _trapezoid(x: Floats, y: Floats) -> Floats:
    return np.maximum(np.abs(y) - 0.54, _slope(x, y, (0.84, -0.54), (0.4, 0.54)))


def _pentagon(x: Floats, y: Floats) -> Floats:
    return _half_planes(x, y, 5, 0.92 * np.cos(np.pi / 5))


def _hexagon(x: Floats, y: Floats) -> Floats:
    return _half_planes(x, y, 6, 0.9 * np.cos(np.pi / 6))


def _star(x: Floats, y: Floats, inner: float = 0.42) -> Floats:
    cos, sin = float(np.cos(np.pi / 5)), float(np.sin(np.pi / 5))
    x = np.abs(x)
    for side in (1, -1):  # fold all points of the star onto the upper one
        over = 2 * np.maximum(side * cos * x - sin * y, 0)
        x, y = x - over * side * cos, y + over * sin
    x, y = np.abs(x), y - 1
    edge_x, edge_y = inner * sin, inner * cos - 1
    along = np.clip((x * edge_x + y * edge_y) / (edge_x**2 + edge_y**2), 0, 1)
    return np.hypot(x - edge_x * along, y - edge_y * along) * np.sign(y * edge_x - x * edge_y)


def _cross(x: Floats, y: Floats) -> Floats:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.minimum(x, y) - 0.27, np.maximum(x, y) - 0.9)


def _arrow(x: Floats, y: Floats) -> Floats:
    head = np.maximum(0.1 - y, _slope(x, y, (0.78, 0.1), (0, 0.95)))
    return np.minimum(head, _box(x, y, 0.24, -0.95, 0.2))


def _t_shape(x: Floats, y: Floats) -> Floats:
    return np.minimum(_box(x, y, 0.78, 0.3, 0.8), _box(x, y, 0.25, -0.9, 0.4))


# Signed distances to the outline in units of the radius, negative inside; y up, everything inside the unit circle.
# Formulas of ellipse, heart, moon, star, box and boolean operations: Inigo Quilez, iquilezles.org/articles/distfunctions2d
# (bounds rather than exact distances outside corners: only the pixel at the edge matters).
SHAPES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "circle": _circle, "ellipse": _ellipse, "semicircle": _semicircle, "crescent": _crescent, "ring": _ring,
    "heart": _heart, "triangle": _triangle, "square": _square, "diamond": _diamond, "trapezoid": _trapezoid,
    "pentagon": _pentagon, "hexagon": _hexagon, "star": _star, "cross": _cross, "arrow": _arrow, "T-shape": _t_shape,
}  # fmt: skip
OBJECTS = 4


@dataclass(frozen=True)
class Scenes:
    """What n pictures show. Column 0 of (n, 4) arrays is the main object, 1 the distractor that the relation names.

    Distractors beyond `count` have values too, but are neither drawn nor told.
    """

    shape: Ints
    """Index into SHAPES, (n, 4)."""
    colour: Ints
    """Index into COLOURS, (n, 4)."""
    rgb: Floats
    """Colours as drawn, 0-255, (n, 4, 3)."""
    radius: Floats
    """Radius of the circle around each object, (n, 4)."""
    x: Floats
    """Centres, to the right, (n, 4)."""
    y: Floats
    """Centres, downwards, (n, 4)."""
    angle: Floats
    """Anticlockwise turn, (n, 4)."""
    size: Ints
    """Main object's size, index into SIZES, (n,)."""
    position: Ints
    """Main object's place, index into POSITIONS, (n,)."""
    count: Ints
    """Number of distractors, 0 to 3, (n,)."""
    relation: Ints
    """Where the main object is, seen from the first distractor, index into RELATIONS, (n,)."""
    background: Ints
    """Index into BACKGROUNDS, (n,)."""
    ground_rgb: Floats
    """The background's two colours, 0-255, (n, 2, 3)."""
    ground: Floats
    """The pattern's turn, wave number and two phases, in radians (per unit length), (n, 4)."""
    noise: Ints
    """Where in the table of noise the picture's begins, (n,)."""
    template: Floats
    """Which caption template, from 0 to 1, (n,)."""

    def __len__(self) -> int:
        return len(self.count)

    def take(self, rows: Ints | slice) -> Self:
        """The scenes of these rows."""
        return type(self)(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})

    def tasks(self) -> dict[str, tuple[Ints, tuple[str, ...]]]:
        """Attributes that can be the label: class numbers (n,) and class names."""
        return {
            "shape": (self.shape[:, 0], tuple(SHAPES)),
            "colour": (self.colour[:, 0], tuple(COLOURS)),
            "count": (self.count, COUNTS),
            "relation": (self.relation, RELATIONS),
            "background": (self.background, BACKGROUNDS),
        }


class _Draws:
    """Hands out the hashed random numbers of n images, column by column."""

    def __init__(self, seed: int, indices: npt.ArrayLike) -> None:
        self.columns = uniform(indices, 64 + 4 * CANDIDATES, seed)
        self.used = 0

    def between(self, low: float, high: float, *shape: int) -> Floats:
        """Uniform numbers in [low, high), (n, *shape)."""
        first, self.used = self.used, self.used + int(np.prod(shape))
        assert self.used <= self.columns.shape[1]
        block = self.columns[:, first : self.used].reshape(-1, *shape)
        return (low + (high - low) * block).astype(np.float32)

    def below(self, end: int | Ints, *shape: int) -> Ints:
        """Whole numbers in 0 .. end-1, (n, *shape)."""
        return np.minimum(self.between(0, 1, *shape) * end, end - 1).astype(np.int64)


def draw_scenes(seed: int, indices: npt.ArrayLike) -> Scenes:
    """Scenes of these indices, (n,): each a function of (seed, index) alone."""
    draws = _Draws(seed, indices)
    shape = draws.below(len(SHAPES), OBJECTS)
    colour = draws.below(len(COLOURS), OBJECTS)
    step = draws.below(len(COLOURS) - 1, OBJECTS - 1)
    colour[:, 1:] = (colour[:, :1] + 1 + step) % len(COLOURS)  # no distractor has the main object's colour
    rgb = np.array(list(COLOURS.values()), np.float32)[colour] + draws.between(-COLOUR_SPREAD, COLOUR_SPREAD, OBJECTS, 3)
    size, count = draws.below(3), draws.below(len(COUNTS))
    relation = np.where(count == 0, RELATIONS.index("alone"), draws.below(4))
    base = np.stack([np.asarray(RADII)[size], *np.broadcast_arrays(np.full(len(size), FIRST_RADIUS), *[OTHER_RADIUS] * 2)], 1)
    radius = (base * draws.between(1 - RADIUS_SPREAD, 1 + RADIUS_SPREAD, OBJECTS)).astype(np.float32)
    position, x, y = _place(draws, radius, relation)
    background = draws.below(len(BACKGROUNDS))
    wave = 2 * np.pi / draws.between(*PERIOD)
    ground = np.stack([draws.between(0, np.pi), wave, *draws.between(0, 2 * np.pi, 2).T], 1)
    return Scenes(
        shape=shape, colour=colour, rgb=np.clip(rgb, 0, 255), radius=radius, x=x, y=y,
        angle=draws.between(-MAX_TURN, MAX_TURN, OBJECTS), size=size, position=position, count=count, relation=relation,
        background=background, ground_rgb=_ground_colours(draws, background), ground=ground.astype(np.float32),
        noise=draws.below(_NOISE_STARTS), template=draws.between(0, 1),
    )  # fmt: skip


def _place(draws: _Draws, radius: Floats, relation: Ints) -> tuple[Ints, Floats, Floats]:
    """Position's index (n,) and centres (n, 4): the first distractor where the relation has it, others where room is."""
    column, row = draws.below(3), draws.below(3)
    # An object that stands left of another needs room on its right, and so on.
    column = np.where(relation == 0, column // 2, np.where(relation == 1, 1 + column // 2, column))
    row = np.where(relation == 2, row // 2, np.where(relation == 3, 1 + row // 2, row))
    centre = np.stack([column - 1, row - 1], 1) * (SPREAD * (1 - radius[:, :1])) + draws.between(-JITTER, JITTER, 2)

    sideways = np.where(np.isin(relation, (2, 3)), 1, 0)  # the axis that the relation is about: 0 for x, 1 for y
    sign = np.where(np.isin(relation, (0, 2)), 1, -1)
    rows = np.arange(len(radius))
    near = sign * centre[rows, sideways] + 0.95 * radius[:, 0] + radius[:, 1]
    far = 1 - 0.9 * radius[:, 1]
    along = np.minimum(near + draws.between(0, 1) * np.maximum(far - near, 0), far)
    gap = along - sign * centre[rows, sideways]
    first = np.empty_like(centre)
    first[rows, sideways] = sign * along
    # At most half as far across as along, so that nobody could call "left of" "above".
    across = centre[rows, 1 - sideways] + draws.between(-0.5, 0.5) * gap
    first[rows, 1 - sideways] = np.clip(across, -far, far)

    centres = [centre, first]
    for other in range(2, OBJECTS):
        limit = 1 - 1.1 * OTHER_RADIUS
        tries = draws.between(-limit, limit, CANDIDATES, 2)
        placed = np.stack(centres, 1)[:, None]
        away = np.linalg.norm(tries[:, :, None] - placed, axis=-1) - radius[:, None, :other]
        room = np.minimum(away.min(-1) - radius[:, other, None], 0.06)  # the first that is far enough, or the best
        centres.append(tries[rows, room.argmax(1)])
    x, y = np.stack(centres, 1).astype(np.float32).transpose(2, 0, 1)
    return 3 * row + column, x, y


def _ground_colours(draws: _Draws, background: Ints) -> Floats:
    """Two muted colours per picture, (n, 2, 3): both light, both dark, or two greys with a tint."""
    low, high = np.array([(195, 230), (25, 60), *[(70, 185)] * 4], np.float32)[background].T
    grey = low + (high - low) * draws.between(0, 1)
    away = draws.between(*CONTRAST) * np.where(grey > 128, -1, 1)
    tints = draws.between(-18, 18, 2, 3)
    return (np.stack([grey, grey + away], 1)[:, :, None] + tints).astype(np.float32)


_NOISE_STARTS = 1 << 16


@cache
def _noise_table(size: int) -> Floats:
    """Windows of pixel noise, (_NOISE_STARTS, 3 * size * size), which overlap: hashing every pixel anew is too slow."""
    length = 3 * size * size
    sums = uniform(np.arange(_NOISE_STARTS + length), 4, 0).sum(1)  # four uniform numbers are normal enough
    return np.lib.stride_tricks.sliding_window_view((NOISE * (sums - 2) * np.sqrt(3)).astype(np.float32), length)


def render(scenes: Scenes, size: int) -> Pixels:
    """Pictures, (n, size, size, 3)."""
    pictures = np.empty((len(scenes), size, size, 3), np.uint8)
    chunk = max(1, (1 << 18) // size**2)  # chunks stay in the cache
    for start in range(0, len(scenes), chunk):
        part = scenes.take(slice(start, start + chunk))
        canvas = _paint_ground(part, size)
        for column in range(OBJECTS - 1, -1, -1):
            _paint_objects(canvas, part, column)
        canvas += _noise_table(size)[part.noise].reshape(canvas.shape)
        pictures[start : start + chunk] = np.clip(canvas + 0.5, 0, 255, out=canvas).transpose(0, 2, 3, 1)
    return pictures


def _paint_ground(scenes: Scenes, size: int) -> Floats:
    """Backgrounds, 0-255, (n, 3, size, size)."""
    pixels = (2 * np.arange(size, dtype=np.float32) + 1) / size - 1
    turn, wave, phase_u, phase_v = scenes.ground.T[..., None, None]
    cos, sin = np.cos(turn), np.sin(turn)
    sharp = size / (2 * wave)  # the sine's steepest rise then takes one pixel: anti-aliased edges
    share = np.zeros((len(scenes), size, size), np.float32)
    for kind, name in enumerate(BACKGROUNDS):
        at = np.flatnonzero(scenes.background == kind)
        if name.startswith("plain") or not len(at):
            continue
        u = pixels * cos[at] + pixels[:, None] * sin[at]
        v = pixels[:, None] * cos[at] - pixels * sin[at]
        if name == "gradient":
            share[at] = 0.5 + 0.5 * u
            continue
        rise = np.sin(wave[at] * u + phase_u[at])
        if name == "checked":
            rise *= np.sin(wave[at] * v + phase_v[at])
        elif name == "dotted":
            rise += np.sin(wave[at] * v + phase_v[at]) - np.float32(0.8)
        share[at] = np.clip(0.5 + sharp[at] * rise, 0, 1)
    first, second = scenes.ground_rgb.transpose(1, 0, 2)[..., None, None]
    return first + share[:, None] * (second - first)


def _paint_objects(canvas: Floats, scenes: Scenes, column: int) -> None:
    """Draws each scene's object of this column onto canvas, (n, 3, size, size), where the scene has it."""
    rows = np.flatnonzero(scenes.count >= column)
    if not len(rows):
        return
    rows = rows[np.argsort(scenes.shape[rows, column], kind="stable")]
    size = canvas.shape[-1]
    x, y, radius, angle = (values[rows, column] for values in (scenes.x, scenes.y, scenes.radius, scenes.angle))
    half = np.float32(size / 2)
    # Work on squares of pixels just large enough for the objects.
    side = min(size, int(np.ceil(2 * RADII[-1] * half if column == 0 else 2 * FIRST_RADIUS * half)) + 4)
    left, top = (np.clip(((c + 1) * half - side / 2).round(), 0, size - side).astype(np.int64) for c in (x, y))
    steps = np.arange(side)
    dx, dy = (((a[:, None] + steps + 0.5) / half - 1 - c[:, None]) / radius[:, None] for a, c in ((left, x), (top, y)))
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    dx, dy = dx.astype(np.float32), dy.astype(np.float32)
    u = (dx * cos)[:, None, :] - (dy * sin)[:, :, None]
    v = -(dx * sin)[:, None, :] - (dy * cos)[:, :, None]  # up, where dy is down
    distance = np.empty_like(u)
    ends = np.searchsorted(scenes.shape[rows, column], np.arange(len(SHAPES) + 1))
    for outline, start, end in zip(SHAPES.values(), ends[:-1], ends[1:], strict=True):
        if start < end:
            distance[start:end] = outline(u[start:end], v[start:end])
    cover = np.clip(0.5 - distance * (radius * half)[:, None, None], 0, 1)
    places = ((rows * 3 * size + top)[:, None] + steps)[:, :, None] * size + (left[:, None] + steps)[:, None, :]
    flat, rgb = canvas.reshape(-1), scenes.rgb[rows, column]
    for channel in range(3):
        at = places + channel * size * size
        under = flat[at]
        flat[at] = under + cover * (rgb[:, channel, None, None] - under)


def describe(scenes: Scenes, detail: Literal["full", "class"]) -> list[str]:
    """One caption per scene, with every attribute or with the main object's shape alone."""
    shapes, colours = tuple(SHAPES), tuple(COLOURS)
    templates = CLASS_TEMPLATES if detail == "class" else FULL_TEMPLATES
    which = (scenes.template * len(templates)).astype(np.int64).clip(max=len(templates) - 1).tolist()
    if detail == "class":
        articles = ["an" if name[0] in "aeiou" else "a" for name in shapes]
        names = [f"{article} {name}" for article, name in zip(articles, shapes, strict=True)]
        main = scenes.shape[:, 0].tolist()
        return [templates[t].format(shape=names[s]) for t, s in zip(which, main, strict=True)]
    alone = RELATIONS.index("alone")
    others = ("", "", ", with one more object", ", with two more objects")
    columns = (scenes.shape[:, :2], scenes.colour[:, :2], scenes.size, scenes.position, scenes.count, scenes.relation)
    lists = [column.tolist() for column in (*columns, scenes.background)]
    return [
        templates[t].format(
            shape=shapes[shape[0]],
            colour=colours[colour[0]],
            size=SIZES[size],
            position=POSITIONS[position],
            relation=RELATIONS[relation]
            + ("" if relation == alone else f" a smaller {colours[colour[1]]} {shapes[shape[1]]}"),
            others=others[count],
            background=BACKGROUNDS[background],
        )
        for t, shape, colour, size, position, count, relation, background in zip(which, *lists, strict=True)
    ]


def shapes_source(config: ShapesConfig, split: Literal["train", "val"], size: int) -> Source:
    """The split "train" or "val"; images of `read` are (size, size)."""
    n = config.train_size if split == "train" else config.val_size
    seed = 2 * config.seed + ("train", "val").index(split)  # no two (seed, split) share a scene
    scenes = draw_scenes(seed, np.arange(n))
    tasks = scenes.tasks()
    labels, classes = tasks[config.label]
    return Source(
        ids=pa.array([f"{split}/{row:06d}" for row in range(n)]),
        labels=labels,
        classes=classes,
        captions=pa.array(describe(scenes, config.caption)),
        read=lambda row: Image.fromarray(render(scenes.take(slice(row, row + 1)), size)[0]),
        pixels=lambda rows, side: render(scenes.take(rows), side),
        tasks=tasks,
    )
