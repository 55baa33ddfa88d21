"""Pictures of features: which images, where they lie, and how they are drawn."""

import importlib.util
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from eval.features import projection as module
from eval.features.projection import FEWEST, check_method, neighbours_alike, projection, stratified
from eval.picture import main
from eval.report.feature_picture import Projected, draw
from tests.eval.toy_task import COLOURS, ToyTask, toy_backbone
from tt_ray.terminal.errors import UserError

SVG = "{http://www.w3.org/2000/svg}"


def blobs(n: int = 60, groups: int = 3, width: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, width) in groups that lie far apart, and their groups."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % groups
    return 10 * rng.normal(size=(groups, width))[labels] + rng.normal(size=(n, width)), labels


@pytest.mark.parametrize(("images", "classes"), [(50, 100), (400, 100), (400, 3), (3, 100), (10_000, 100)])
def test_every_class_gives_the_same_share_of_its_images(images: int, classes: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(12), np.arange(1, 13) * 10))
    rows = stratified(labels, images, classes, seed=1)
    assert np.array_equal(rows, stratified(labels, images, classes, seed=1)) and np.array_equal(rows, np.unique(rows))
    counts, whole = np.bincount(labels[rows], minlength=12), np.bincount(labels)
    there = counts > 0
    assert there.sum() == min(12, classes, images) and len(rows) == min(images, whole[there].sum())
    if images > 12:
        assert not np.array_equal(rows, stratified(labels, images, classes, seed=2)) or len(rows) == len(labels)
        assert np.abs(counts[there] - len(rows) * whole[there] / whole[there].sum()).max() < 2


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_groups_stay_apart_and_places_are_the_same_every_time(scale: float) -> None:
    features, labels = blobs()
    places = projection(scale * features.astype(np.float32))
    assert places.shape == (60, 2) and np.isfinite(places).all() and neighbours_alike(places, labels) == 100
    assert np.array_equal(places, projection(scale * features.astype(np.float32)))


@pytest.mark.slow
def test_umap_where_it_is_installed() -> None:
    pytest.importorskip("umap", exc_type=ImportError)
    features, labels = blobs()
    places = projection(features, "umap")
    assert neighbours_alike(places, labels) == 100 and np.array_equal(places, projection(features, "umap"))


def test_few_images_are_drawn_and_fewer_refused() -> None:
    features, _ = blobs(FEWEST)
    assert projection(features).shape == (FEWEST, 2)
    with pytest.raises(UserError, match="at least 8 images, not 7"):
        projection(features[1:])
    with pytest.raises(UserError, match="not finite"):
        projection(np.where(np.arange(16) == 3, np.nan, features))
    for alike in (np.ones((20, 4)), np.zeros((20, 4))):
        with pytest.raises(UserError, match="alike"):
            projection(alike)


def test_neighbours_alike_counts_the_nearest_other_image() -> None:
    places = np.array([[0, 0], [0, 1], [5, 0], [5, 1], [5, 3]])
    assert neighbours_alike(places, np.array([0, 0, 1, 2, 2])) == pytest.approx(60)


def test_a_picture_has_all_images_and_the_names_of_their_classes() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 2, 3], [5, 7, 9])
    names = ["red", "unused", '<b>&"', "a name of more than twenty letters"]
    panels = [Projected(model, rng.normal(size=(21, 2)) * 1e-3, 50.0) for model in ("base", "<i>", "c", "d")]
    text = draw("t-SNE of <features>", panels, labels, names)
    assert text == draw("t-SNE of <features>", panels, labels, names)
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img"
    assert root.get("aria-label") == "t-SNE of <features>. " + "; ".join(
        f"{each.model}: 50.0 % next to their class" for each in panels
    )
    paths = root.findall(f".//{SVG}path")
    assert [path.get("d", "").count("M") for path in paths] == [5, 7, 9] * 4
    assert len({path.get("stroke") for path in paths}) == 3
    assert [path.findtext(f"{SVG}title") for path in paths[:3]] == ["red", *names[2:]]
    shown = [each.text for each in root.iter(f"{SVG}text")]
    assert [each for each in shown if each in ("base", "<i>", "c", "d")] == ["base", "<i>", "c", "d"]
    assert shown[-3:] == ["red", names[2], "a name of more than…"]
    numbers = [
        float(number) for path in paths for point in path.get("d", "").split("M")[1:] for number in point[:-2].split()
    ]
    assert min(numbers) >= 0 and max(numbers) <= 300


def test_the_command_draws_the_same_images_for_all_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task: Any = ToyTask()
    monkeypatch.setattr("eval.tasks.registry.tasks", lambda *_: {"coloured": task})
    monkeypatch.setattr("eval.features.backbone.open_backbone", lambda name, _: toy_backbone(depth=len(name)))
    command = ["--models", "a=random:x", "bb=random:y", "--task", "coloured", "--cache", str(tmp_path / "features")]
    for name in ("first", "second"):
        main([*command, "--images", "30", "--out", str(tmp_path / name / "out.svg")])
    first, second = ((tmp_path / name / "out.svg").read_bytes() for name in ("first", "second"))
    assert first == second
    paths = ElementTree.fromstring(first).findall(f".//{SVG}path")
    assert [path.get("d", "").count("M") for path in paths] == [10] * 6
    assert [path.findtext(f"{SVG}title") for path in paths] == [*COLOURS, *COLOURS]
    assert paths[0].get("d") != paths[3].get("d")
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("a: ") and shown[1].startswith("bb: ") and shown[2].endswith("out.svg")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--out", "picture.png"], "--out picture.png must be an SVG file"),
        (["--out", f"{__file__}/picture.svg"], "cannot write .*picture.svg: .*choose another --out"),
        (["--images", "0"], "--images and --classes must be at least 1"),
        (["--classes", "-1"], "--images and --classes must be at least 1"),
        (["--seed", "-1"], "--seed at least 0"),
        (["--method", "umap"], "pip install 'tt-ray\\[umap\\]'"),
        (["--task", "digitz"], "did you mean digits"),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(
    given: list[str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    command = {"--models": "a=random:test_vit", "--task": "digits"} | dict(zip(given[::2], given[1::2], strict=True))
    with pytest.raises(UserError, match=text):
        main([word for pair in command.items() for word in pair])


def test_tsne_needs_no_package_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_method("tsne")
