"""The built-in captioned shapes: one image is one function of (seed, index), and captions and labels tell the truth."""

from dataclasses import fields, replace

import numpy as np
import pytest

from tt_ray.config import ShapesConfig
from tt_ray.data.sources import shapes
from tt_ray.data.sources.shapes import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    describe,
    draw_scenes,
    render,
)

SCENES = draw_scenes(0, np.arange(4096))
TASKS = ("shape", "colour", "count", "relation", "background")


def on_white(scenes):
    """The same scenes on plain white."""
    plain = np.full_like(scenes.background, BACKGROUNDS.index("plain light"))
    return replace(scenes, background=plain, ground_rgb=np.full_like(scenes.ground_rgb, 255))


def test_an_image_does_not_depend_on_its_batch():
    rows = np.array([700, 3, 64, 3])
    again = draw_scenes(0, rows)
    for item in fields(again):
        np.testing.assert_array_equal(getattr(again, item.name), getattr(SCENES, item.name)[rows], item.name)
    together = render(SCENES.take(np.arange(800)), 32)
    np.testing.assert_array_equal(render(again, 32), together[rows])
    np.testing.assert_array_equal(render(again.take(slice(1, 2)), 32)[0], together[3])
    assert describe(again, "full") == [describe(SCENES, "full")[row] for row in rows]


def test_seeds_give_other_images():
    assert (render(draw_scenes(1, np.arange(8)), 32) != render(SCENES.take(slice(0, 8)), 32)).any((1, 2, 3)).all()


def test_splits_share_no_scene():
    config = ShapesConfig(train_size=500, val_size=400)
    train, val = shapes.shapes_source(config, "train", 32), shapes.shapes_source(config, "val", 32)
    assert (len(train), len(val)) == (500, 400)
    assert train.ids[123].as_py() == "train/000123" and val.ids[399].as_py() == "val/000399"
    # Neither the other split's scenes, nor the neighbouring seed's.
    sources = [
        shapes.shapes_source(replace(config, seed=seed), split, 32) for seed in (0, 1) for split in ("train", "val")
    ]
    images = [source.pixels(np.arange(400), 8).reshape(400, -1) for source in sources]
    assert len(np.unique(np.concatenate(images), axis=0)) == 4 * 400


@pytest.mark.parametrize("task", TASKS)
def test_classes_are_balanced(task):
    labels, classes = SCENES.tasks()[task]
    share = np.bincount(labels, minlength=len(classes)) / len(labels)
    expected = np.full(len(classes), 1 / len(classes))
    if task == "relation":  # a quarter of the pictures has one object alone
        expected = np.where(np.arange(5) == RELATIONS.index("alone"), 1 / 4, 3 / 16)
    np.testing.assert_allclose(share, expected, atol=4 * np.sqrt(expected.max() / len(labels)))


@pytest.mark.parametrize("task", TASKS)
def test_the_label_is_the_configured_attribute(task):
    source = shapes.shapes_source(ShapesConfig(train_size=300, label=task), "train", 32)
    scenes = draw_scenes(0, np.arange(300))
    attribute = getattr(scenes, task)
    np.testing.assert_array_equal(source.labels, attribute[:, 0] if attribute.ndim == 2 else attribute)
    assert tuple(source.tasks) == TASKS
    np.testing.assert_array_equal(source.tasks[task][0], source.labels)
    assert source.tasks[task][1] == source.classes


def test_relation_and_count_agree_with_the_places():
    dx, dy = SCENES.x[:, 0] - SCENES.x[:, 1], SCENES.y[:, 0] - SCENES.y[:, 1]
    sideways = np.abs(dx) > 1.9 * np.abs(dy)
    seen = np.select([sideways & (dx < 0), sideways, dy < 0], [0, 1, 2], 3)
    some = SCENES.count > 0
    np.testing.assert_array_equal(SCENES.relation == RELATIONS.index("alone"), ~some)
    np.testing.assert_array_equal(SCENES.relation[some], seen[some])


def test_position_and_size_agree_with_the_places():
    column = np.digitize(SCENES.x[:, 0], [-0.1, 0.1])
    row = np.digitize(SCENES.y[:, 0], [-0.1, 0.1])
    np.testing.assert_array_equal(SCENES.position, 3 * row + column)
    largest, smallest = (f(SCENES.radius[SCENES.size == s, 0]) for s, f in ((0, np.max), (1, np.min)))
    assert largest < smallest
    assert (SCENES.radius[:, 1:].max(1) < 0.6 * SCENES.radius[:, 0]).all()


def test_full_captions_tell_every_attribute():
    for row, caption in enumerate(describe(SCENES, "full")):
        words = zip(SCENES.colour[row, :2], SCENES.shape[row, :2], strict=True)
        main, other = (f"{list(COLOURS)[colour]} {list(SHAPES)[shape]}" for colour, shape in words)
        assert f"a {SIZES[SCENES.size[row]]} {main}" in caption
        assert shapes.POSITIONS[SCENES.position[row]] in caption
        assert BACKGROUNDS[SCENES.background[row]] in caption
        relation, count = RELATIONS[SCENES.relation[row]], SCENES.count[row]
        assert (f"{relation} a smaller {other}" if count else relation) in caption
        assert ("one more object" in caption, "two more objects" in caption) == (count == 2, count == 3)
        assert len(caption.split()) < 30


def test_brief_captions_tell_the_shape_and_true_things():
    captions = describe(SCENES, "brief")
    for row, caption in enumerate(captions):
        assert tuple(SHAPES)[SCENES.shape[row, 0]] in caption
        told = [name for name in shapes.COLOURS if f" in {name}" in caption]
        assert told in ([], [tuple(shapes.COLOURS)[SCENES.colour[row, 0]]])
        told = [name for name in BACKGROUNDS if f"on a {name} background" in caption]
        assert told in ([], [BACKGROUNDS[SCENES.background[row]]])
    assert len(set(captions)) > 5 * len(SHAPES)


def test_class_captions_tell_the_shape_alone():
    captions = describe(SCENES, "class")
    assert len(set(captions)) == len(SHAPES) * len(shapes.TEMPLATES["class"])
    for shape, caption in zip(SCENES.shape[:, 0], captions, strict=True):
        assert caption.split()[-1] == tuple(SHAPES)[shape]
    assert {"an arrow", "an ellipse", "a star"} <= set(captions)


@pytest.mark.parametrize("size", [32, 48, 64])
def test_the_middle_has_the_main_colour(size):
    filled = ~np.isin(SCENES.shape[:, 0], [list(SHAPES).index(name) for name in ("ring", "crescent")])
    scenes = SCENES.take(np.flatnonzero(filled)[:1000])
    pixels = render(scenes, size).astype(np.float32)
    middle = [((centre[:, 0] + 1) * size / 2 - 0.5).round().astype(int) for centre in (scenes.y, scenes.x)]
    seen = pixels[np.arange(1000), *middle]
    named = np.array(list(COLOURS.values()))[scenes.colour[:, 0]]
    assert (np.abs(seen - named).max(1) < shapes.COLOUR_SPREAD + 4 * shapes.NOISE).mean() > 0.99
    nearest = np.linalg.norm(seen[:, None] - np.array(list(COLOURS.values())), axis=-1).argmin(1)
    assert (nearest == scenes.colour[:, 0]).mean() > 0.97


@pytest.mark.parametrize("size", [32, 64])
def test_distractors_are_drawn_where_the_scene_has_them(size):
    scenes = on_white(SCENES.take(slice(0, 600)))
    drawn = (render(scenes, size) < 200).any(3)  # no object is nearly white
    centres = (np.arange(size) + 0.5) * 2 / size - 1
    away = np.hypot(centres - scenes.x[:, :, None, None], centres[:, None] - scenes.y[:, :, None, None])
    inside = away < scenes.radius[:, :, None, None] + 2 / size
    told = np.arange(4) <= scenes.count[:, None]
    assert not (drawn & ~(inside & told[:, :, None, None]).any(1)).any()
    own = inside & ~(inside[:, :1] & (np.arange(4) > 0)[:, None, None])  # pixels that the main object cannot cover
    visible = (drawn[:, None] & own).sum((2, 3)) >= 3
    assert visible[:, 0].all() and visible[told].mean() > 0.995


def test_the_first_distractor_has_its_colour():
    simple = [list(SHAPES).index(name) for name in ("circle", "square", "hexagon", "pentagon")]
    scenes = SCENES.take(np.flatnonzero(np.isin(SCENES.shape[:, 1], simple) & (SCENES.count > 0)))
    middle = [((centre[:, 1] + 1) * 32 - 0.5).round().astype(int) for centre in (scenes.y, scenes.x)]
    seen = render(scenes, 64)[np.arange(len(scenes)), *middle].astype(np.float32)
    nearest = np.linalg.norm(seen[:, None] - np.array(list(COLOURS.values())), axis=-1).argmin(1)
    assert (nearest == scenes.colour[:, 1]).mean() > 0.9  # the main object may reach over the centre


def test_shapes_are_distinct_and_inside_their_circle():
    line = np.linspace(-1.2, 1.2, 97, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    masks = np.stack([outline(x, y) < 0 for outline in SHAPES.values()])
    assert not (masks & (np.hypot(x, y) > 1.01)).any()
    for one in range(len(masks)):
        for other in range(one):
            overlap = (masks[one] & masks[other]).sum() / (masks[one] | masks[other]).sum()
            assert overlap < 0.93, (list(SHAPES)[one], list(SHAPES)[other])


def test_read_gives_the_image_that_pixels_gives():
    source = shapes.shapes_source(ShapesConfig(train_size=20), "train", 48)
    image = source.read(7)
    assert image.mode == "RGB" and image.size == (48, 48)
    np.testing.assert_array_equal(np.asarray(image), source.pixels(np.array([3, 7]), 48)[1])
    chosen = source.select(np.array([7, 2]))
    np.testing.assert_array_equal(np.asarray(chosen.read(0)), np.asarray(image))
    assert source.pixels(np.array([], np.int64), 32).shape == (0, 32, 32, 3)
