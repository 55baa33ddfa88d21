"""Built-in data: captioned pictures of shapes, drawn when asked for; an image is a function of (seed, index) alone.

A picture has a main object (the biggest, drawn last), up to three smaller ones and a background. Lengths are in units
of half the picture's side: the picture is [-1, 1] x [-1, 1], x to the right, y down; angles are in radians.
"""

import math
from dataclasses import dataclass, fields
from functools import cache
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from tt_ray.config import ShapesConfig
from tt_ray.data.sources.base import DataSource, Pixels, Source
from tt_ray.data.sources.shape_outlines import SHAPES
from tt_ray.stateless_random import uniform

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

# Difficulty: after a few minutes on a CPU core, or one on a GPU, a ViT of width 96, depth 4, patch 8 at 32 px shall be
# far from chance (6% for shapes) and from 100%, so that what a teacher adds can be seen. Too hard (under 20% after
# 80,000 samples) were small objects, and objects lighter than some backgrounds but darker than others: hence OUTLINE.
RADII = (0.52, 0.64, 0.76)  # main object, small to large
FIRST_RADIUS = 0.22  # the distractor that the relation is about is bigger than the others, so that a viewer can know it
OTHER_RADIUS = 0.16
RADIUS_SPREAD = 0.06  # relative; less than half a step between sizes, so that sizes never overlap
MAX_TURN = np.pi / 10  # free rotation makes learning slow; none at all lets templates of pixels suffice
OUTLINE, INK = 0.11, 0.2  # width as a share of the radius, and brightness as a share of the colour's
SPREAD = 0.8  # how far off the centre places are, as a share of the room that the main object leaves
JITTER = 0.05  # largest deviation from these places
LIGHT, DARK, PATTERNED = (210, 245), (80, 120), (160, 225)  # greys of backgrounds, 0-255
CONTRAST = (20, 45)  # how much darker a pattern's second grey is
PERIOD = (0.55, 0.85)  # of stripes, checks and dots: at least 8 pixels at 32 px, which a viewer still resolves
NOISE = 6.0  # standard deviation of the pixel noise, in grey levels
_NOISE_STARTS = 1 << 16  # different patches of noise
COLOUR_SPREAD = 18.0  # largest deviation of an object's channels from the named colour, in grey levels
CANDIDATES = 12  # places tried for each further distractor, so that it rarely touches another object

COLOURS = {
    "red": (205, 20, 30), "orange": (235, 115, 0), "yellow": (235, 205, 0), "green": (20, 130, 40),
    "cyan": (0, 175, 195), "blue": (30, 60, 205), "purple": (115, 25, 155), "pink": (240, 95, 165),
}  # fmt: skip
SIZES = ("small", "medium", "large")
COUNTS = ("none", "one", "two", "three")
RELATIONS = ("left of", "right of", "above", "below", "alone")
BACKGROUNDS = ("plain light", "plain dark", "striped", "checked", "dotted", "gradient")
POSITIONS = (
    "in the top left", "at the top", "in the top right", "on the left", "in the centre", "on the right",
    "in the bottom left", "at the bottom", "in the bottom right",
)  # fmt: skip
TEMPLATES = {
    "full": (
        "a {size} {colour} {shape} {position}, {relation}{others}, on a {background} background",
        "on a {background} background, a {size} {colour} {shape} {position}, {relation}{others}",
        "a {size} {colour} {shape} on a {background} background, {position}, {relation}{others}",
        "a {background} picture of a {size} {colour} {shape} that is {position}, {relation}{others}",
    ),
    "brief": (  # as people caption: what it is, and one thing that they notice
        *("{a_shape} in {colour}", "a {size} {shape}", "{a_shape} {position}"),
        *("{a_shape} on a {background} background", "{a_shape}, {relation}", "{a_shape}{others}"),
    ),
    "class": ("a picture of {a_shape}", "an image that shows {a_shape}", "{a_shape}"),
}

OBJECTS = 4


@dataclass(frozen=True)
class Scenes:
    """What n pictures show. Column 0 of (n, 4) arrays is the main object, 1 the distractor that the relation names.

    Distractors beyond `count` have values too, but are neither drawn nor described.
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
    y: Floats
    """Centres, (n, 4)."""
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

    def below(self, end: int, *shape: int) -> Ints:
        """Whole numbers in 0 .. end-1, (n, *shape)."""
        return np.minimum(self.between(0, 1, *shape) * end, end - 1).astype(np.int64)


def draw_scenes(seed: int, indices: npt.ArrayLike) -> Scenes:
    """Scenes of these indices, (n,): each a function of (seed, index) alone."""
    draws = _Draws(seed, indices)
    shape = draws.below(len(SHAPES), OBJECTS)
    colour = draws.below(len(COLOURS), OBJECTS)
    step = draws.below(len(COLOURS) - 1, OBJECTS - 1)
    colour[:, 1:] = (colour[:, :1] + 1 + step) % len(COLOURS)  # no distractor has the main object's colour
    rgb = np.array(list(COLOURS.values()), np.float32)[colour]
    rgb += draws.between(-COLOUR_SPREAD, COLOUR_SPREAD, OBJECTS, 3)
    size, count = draws.below(3), draws.below(len(COUNTS))
    relation = np.where(count == 0, RELATIONS.index("alone"), draws.below(4))
    radius = np.tile(np.array([0, FIRST_RADIUS, OTHER_RADIUS, OTHER_RADIUS], np.float32), (len(size), 1))
    radius[:, 0] = np.array(RADII, np.float32)[size]
    radius *= draws.between(1 - RADIUS_SPREAD, 1 + RADIUS_SPREAD, OBJECTS)
    position, x, y = _place(draws, radius, relation)
    background = draws.below(len(BACKGROUNDS))
    wave = 2 * np.pi / draws.between(*PERIOD)
    ground = np.stack([draws.between(0, np.pi), wave, *draws.between(0, 2 * np.pi, 2).T], 1)
    return Scenes(
        shape=shape, colour=colour, rgb=np.clip(rgb, 0, 255), radius=radius, x=x, y=y,
        angle=draws.between(-MAX_TURN, MAX_TURN, OBJECTS), size=size, position=position, count=count, relation=relation,
        background=background, ground_rgb=_ground_colours(draws, background), ground=ground,
        noise=draws.below(_NOISE_STARTS), template=draws.between(0, 1 - 1e-6),
    )  # fmt: skip


def _place(draws: _Draws, radius: Floats, relation: Ints) -> tuple[Ints, Floats, Floats]:
    """Position's index (n,) and centres (n, 4): first distractor as the relation says, others where there is room."""
    column, row = draws.below(3), draws.below(3)
    # An object that stands left of another needs room on its right, and so on.
    column = np.where(relation == 0, column // 2, np.where(relation == 1, (column + 3) // 2, column))
    row = np.where(relation == 2, row // 2, np.where(relation == 3, (row + 3) // 2, row))
    centre = np.stack([column - 1, row - 1], 1) * (SPREAD * (1 - radius[:, :1])) + draws.between(-JITTER, JITTER, 2)
    axis = np.isin(relation, (2, 3)).astype(np.int64)  # that the relation is about: 0 for x, 1 for y
    sign = np.where(np.isin(relation, (0, 2)), 1, -1)
    rows = np.arange(len(radius))
    near = sign * centre[rows, axis] + 0.95 * radius[:, 0] + radius[:, 1]
    far = 1 - 0.9 * radius[:, 1]
    along = np.minimum(near + draws.between(0, 1) * np.maximum(far - near, 0), far)
    gap = along - sign * centre[rows, axis]
    first = np.empty_like(centre)
    first[rows, axis] = sign * along
    # At most half as far across as along, so that nobody could call "left of" "above".
    across = centre[rows, 1 - axis] + draws.between(-0.5, 0.5) * gap
    first[rows, 1 - axis] = np.clip(across, -far, far)

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
    """Two muted colours per picture, (n, 2, 3); plain backgrounds have the first alone."""
    low, high = np.array([LIGHT, DARK, *[PATTERNED] * 4], np.float32)[background].T
    grey = low + (high - low) * draws.between(0, 1)
    greys = np.stack([grey, grey - draws.between(*CONTRAST)], 1)
    return greys[:, :, None] + draws.between(-15, 15, 2, 3)


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
        rise = np.sin(wave[at] * u + phase_u[at])
        if name == "checked":
            rise *= np.sin(wave[at] * v + phase_v[at])
        elif name == "dotted":
            rise += np.sin(wave[at] * v + phase_v[at]) - np.float32(0.8)
        share[at] = 0.5 + 0.5 * u if name == "gradient" else np.clip(0.5 + sharp[at] * rise, 0, 1)
    first, second = scenes.ground_rgb.transpose(1, 0, 2)[..., None, None]
    return first + share[:, None] * (second - first)


def _paint_objects(canvas: Floats, scenes: Scenes, column: int) -> None:
    """Draws each scene's object of this column onto canvas, (n, 3, size, size), where the scene has it."""
    rows = np.flatnonzero(scenes.count >= column)
    rows = rows[np.argsort(scenes.shape[rows, column], kind="stable")]
    size = canvas.shape[-1]
    x, y, radius, angle = (values[rows, column] for values in (scenes.x, scenes.y, scenes.radius, scenes.angle))
    half = np.float32(size / 2)
    # Work on squares of pixels just large enough for the objects.
    largest = (RADII[-1] if column == 0 else FIRST_RADIUS) * (1 + RADIUS_SPREAD)
    side = min(size, math.ceil(largest * size) + 3)
    left, top = (np.clip(((c + 1) * half - side / 2).round(), 0, size - side).astype(np.int64) for c in (x, y))
    steps = np.arange(side)
    dx, dy = (((a[:, None] + steps + 0.5) / half - 1 - c[:, None]) / radius[:, None] for a, c in ((left, x), (top, y)))
    dx, dy, cos, sin = dx.astype(np.float32), dy.astype(np.float32), np.cos(angle)[:, None], np.sin(angle)[:, None]
    u = (dx * cos)[:, None, :] - (dy * sin)[:, :, None]
    v = -(dx * sin)[:, None, :] - (dy * cos)[:, :, None]  # up, where dy is down
    distance = np.empty_like(u)
    ends = np.searchsorted(scenes.shape[rows, column], np.arange(len(SHAPES) + 1))
    for outline, start, end in zip(SHAPES.values(), ends[:-1], ends[1:], strict=True):
        if start < end:
            distance[start:end] = outline(u[start:end], v[start:end])
    scale = (radius * half)[:, None, None]
    cover = np.clip(0.5 - distance * scale, 0, 1)
    bright = INK + (1 - INK) * np.clip(0.5 - (distance + OUTLINE) * scale, 0, 1)
    places = ((rows * 3 * size + top)[:, None] + steps)[:, :, None] * size + (left[:, None] + steps)[:, None, :]
    flat, rgb = canvas.reshape(-1), scenes.rgb[rows, column]
    for channel in range(3):
        at = places + channel * size * size
        under = flat[at]
        flat[at] = under + cover * (rgb[:, channel, None, None] * bright - under)


def describe(scenes: Scenes, detail: Literal["full", "brief", "class"]) -> list[str]:
    """One caption per scene: every attribute, the main object's shape and one more, or the shape alone."""
    shapes, colours, templates = tuple(SHAPES), tuple(COLOURS), TEMPLATES[detail]
    texts = [templates[int(share * len(templates))] for share in scenes.template.tolist()]
    others = ("", "", ", with one more object", ", with two more objects")
    told = "shape colour size position count relation background".split()
    lists = [getattr(scenes, name).tolist() for name in told]
    return [
        text.format(
            shape=shapes[shape[0]],
            a_shape=("an " if shapes[shape[0]][0] in "aeiou" else "a ") + shapes[shape[0]],
            colour=colours[colour[0]],
            size=SIZES[size],
            position=POSITIONS[position],
            relation=RELATIONS[relation] + (f" a smaller {colours[colour[1]]} {shapes[shape[1]]}" if count else ""),
            others=others[count],
            background=BACKGROUNDS[background],
        )
        for text, shape, colour, size, position, count, relation, background in zip(texts, *lists, strict=True)
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


SOURCE = DataSource(
    lambda config, split, need_captions: shapes_source(config.shapes, split, config.image_size), declares_classes=True
)
