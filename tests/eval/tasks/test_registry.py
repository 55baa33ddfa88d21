"""The table is consistent, built-in tasks are what they say, and data that is not as defined is refused."""

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from PIL import Image

from eval.tasks.layouts import ClassFolders
from eval.tasks.origins import Hub, Opened, Place, Split, Torchvision, mark_share
from eval.tasks.registry import Task, folder_task, images_fingerprint, load_tasks, split_rows, tasks
from eval.tasks.table import SUITES, TABLE
from tests.data.sources.test_hf_datasets import encoded, write_mnist
from tt_ray.terminal.errors import UserError

COLOURS = {"ant": (255, 0, 0), "bee": (0, 255, 0), "cow": (0, 0, 255)}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf_cache"))


def message(call: Callable[[], object]) -> str:
    """The text of the UserError that a call raises, which must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def picture(path: Path, colour: tuple[int, ...] = (9, 9, 9)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


def class_folders(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        for number in range(count):
            picture(root / name / f"{number}.png", COLOURS.get(name, (1, 2, 3)))
    return root


def own_folder(root: Path, val: bool = False) -> Path:
    for split, count in (("train", 5), ("test", 2), *((("valid", 3),) if val else ())):
        class_folders(root / split, dict.fromkeys(COLOURS, count))
    return root


def opened(origin: Any, split: Split, root: Path, given: bool = True) -> Opened:
    return origin.open(split, Place(root, given))


# The table


def test_table_is_consistent() -> None:
    for name, line in TABLE.items():
        assert line.citation and line.origins and line.version >= 1 and line.classes > 1, name
        assert line.metric in ("top1", "mean_per_class") and "test" in line.sizes, name
        assert ("train" in line.sizes) == (line.subset is None), name
        for origin in line.origins:
            if isinstance(origin, Torchvision):
                assert hasattr(torchvision.datasets, origin.name), name
            if isinstance(origin, Torchvision | Hub):
                assert set(origin.splits) >= set(line.sizes), name
    for suite, names in SUITES.items():
        assert set(names) <= set(TABLE) and len(set(names)) == len(names), suite
    for name in SUITES["paper"]:
        assert TABLE[name].metric == ("mean_per_class" if name in ("aircraft", "flowers102", "pets") else "top1")


def test_names_and_suites() -> None:
    found = tasks(["builtin", "digits", "flowers102"])
    assert list(found) == [*SUITES["builtin"], "flowers102"]
    assert found["flowers102"].has_val and not found["digits"].has_val
    assert len(tasks(["all"])) == len(TABLE)
    assert pickle.loads(pickle.dumps(found["digits"])) == found["digits"]
    assert "did you mean flowers102?" in message(lambda: tasks(["flowers"]))
    assert "did you mean digits?" in message(lambda: tasks(["digits"], roots={"digts": "/nowhere"}))
    assert "no such folder" in message(lambda: tasks(["cub200"], roots={"cub200": "/nowhere"}))


@pytest.mark.parametrize("name", SUITES["builtin"])
def test_builtin_tasks_open(name: str) -> None:
    task = tasks([name])[name]
    train, test = task.open("train"), task.open("test")
    assert len(train) == task.sizes["train"] and len(test) == task.sizes["test"]
    assert len(train.classes) == task.classes and set(train.labels) == set(test.labels) == set(range(task.classes))
    pixels = train.pixels(np.array([3, 0]), 48)
    assert pixels.shape == (2, 48, 48, 3) and pixels.dtype == np.uint8 and np.ptp(pixels) > 50
    assert not (set(train.ids.to_pylist()) & set(test.ids.to_pylist()))
    train, again, test = (images_fingerprint(task.opened(split)) for split in ("train", "train", "test"))
    assert train == again != test
    assert "has no split val" in message(lambda: task.open("val"))


def test_digits_split_is_stratified_and_fixed() -> None:
    task = tasks(["digits"])["digits"]
    train, test = task.open("train"), task.open("test")
    share = np.bincount(test.labels) / (np.bincount(train.labels) + np.bincount(test.labels))
    assert np.abs(share - 0.2).max() < 0.01
    assert test.ids.to_pylist()[:4] == FIRST_TEST_DIGITS, "the split changed: results are not comparable any more"


FIRST_TEST_DIGITS = ["0", "5", "9", "12"]


def test_shapes_are_drawn_once_and_never_as_in_training() -> None:
    from tt_ray.config import ShapesConfig
    from tt_ray.data.sources.shapes import shapes_source

    found = tasks(["shapes_shape", "shapes_count"])
    first, second = (task.opened("test") for task in found.values())
    assert images_fingerprint(first) == images_fingerprint(second), "labels are no part of it"
    rows = np.arange(64)
    pixels = first.source.pixels(rows, 32)
    assert first.identity == second.identity and (pixels == second.source.pixels(rows, 32)).all()
    assert (pixels[7] == np.asarray(first.source.read(7))).all()
    trained = shapes_source(ShapesConfig(train_size=64), "train", 32).pixels(rows, 32)
    assert not (trained[:, None] == pixels[None]).all((2, 3, 4)).any()
    assert (first.source.pixels(rows[:1], 64)[0] == np.asarray(first.source.read(0).resize((64, 64), 3))).all()


# Validation images


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_stratified_rows(share: float) -> None:
    labels = np.repeat(np.arange(30), np.r_[np.arange(1, 30), 500])[np.random.default_rng(0).permutation(935)]
    marked = mark_share(labels, share, 0)
    counts, taken = np.bincount(labels), np.bincount(labels[marked], minlength=30)
    assert (taken <= counts - 1).all() and np.abs(taken - share * counts).max() <= 1
    assert abs(marked.sum() - share * len(labels)) <= 1
    assert (mark_share(labels, share, 0) == marked).all() and (mark_share(labels, share, 1) != marked).any()


def test_split_rows() -> None:
    digits, flowers = tasks(["digits", "flowers102"]).values()
    labels = np.arange(2040) % 102
    fit, val = split_rows(flowers, labels, 1020, 0)
    assert fit.tolist() == list(range(1020)) and val.tolist() == list(range(1020, 2040))
    fit, val = split_rows(digits, labels, 2040, 1)
    assert sorted([*fit, *val]) == list(range(2040)) and len(val) == 408
    assert (np.bincount(labels[val]) == 4).all()
    many = np.arange(50_010) % 10
    assert len(split_rows(digits, many, len(many), 0)[1]) == 5001
    assert "too few training images" in message(lambda: split_rows(digits, np.arange(3), 3, 0))


# Data that is not as defined


def small(sizes: dict[Split, int], classes: int, **changes: Any) -> Task:
    return Task("mine", 1, classes, "top1", "-", sizes, **changes)


def test_definition_is_checked(tmp_path: Path) -> None:
    folder = Place(own_folder(tmp_path / "data"), True)
    origins = (ClassFolders(("train",), "-", train_share=0.8),)
    good: dict[Split, int] = {"train": 12, "test": 3}
    assert len(small(good, 3, origins=origins, place=Place(folder.root, False)).open("train")) == 12
    text = message(lambda: small({**good, "test": 4}, 3, origins=origins, place=Place(folder.root, False)).open("test"))
    assert "must have 4 images, but 3 are there" in text
    text = message(lambda: small(good, 4, origins=origins, place=Place(folder.root, False)).open("train"))
    assert "must have 4 classes, but 3 are there" in text


def test_data_that_is_not_there(tmp_path: Path) -> None:
    found = tasks(["flowers102", "cars", "cub200", "sun397", "inat2018", "imagenet", "eurosat"], data_root=tmp_path)
    texts = {name: message(lambda task=task: task.open("test")) for name, task in found.items()}
    for name, text in texts.items():
        assert f"--task-root {name}=DIR" in text and str(tmp_path) in text
    assert f"torchvision.datasets.Flowers102('{tmp_path}', split='train', download=True)" in texts["flowers102"]
    assert 'datasets.load_dataset("tanganke/stanford_cars")'.replace('"', "'") in texts["cars"]
    assert "CUB_200_2011.tgz" in texts["cub200"] and "Partitions.zip" in texts["sun397"]


def test_class_without_training_image(tmp_path: Path) -> None:
    meta = tmp_path / "food-101" / "meta"
    meta.mkdir(parents=True)
    for split in ("train", "test"):
        (meta / f"{split}.json").write_text(json.dumps({"ant": [f"ant/{split}"], "bee": []}))
        picture(tmp_path / f"food-101/images/ant/{split}.jpg")
    (tmp_path / "food-101/images/bee").mkdir()
    origin = Torchvision("Food101", {"train": "train", "test": "test"})
    task = small({"train": 1, "test": 1}, 2, origins=(origin,), place=Place(tmp_path, False))
    assert len(task.open("test")) == 1
    assert "1 classes have no training image: bee" in message(lambda: task.open("train"))


def test_torchvision_set_with_train_flag(tmp_path: Path) -> None:
    write_mnist(tmp_path, "train", [1, 0, 2])
    write_mnist(tmp_path, "t10k", [2, 1])
    (tmp_path / "MNIST").rename(tmp_path / "FashionMNIST")
    task = tasks(["fashion_mnist"], data_root=tmp_path)["fashion_mnist"]
    assert "must have 10,000 images, but 2 are there" in message(lambda: task.open("test"))
    source = opened(task.origins[0], "train", tmp_path).source
    assert source.labels.tolist() == [1, 0, 2] and len(source.classes) == 10
    assert source.pixels(np.array([2]), 32)[0, 5, 5].tolist() == [40] * 3


def test_hub_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"train": list(COLOURS), "validation": list(COLOURS)[::-1]}
    for split, order in names.items():
        features = datasets.Features({"image": datasets.Image(), "fine": datasets.ClassLabel(names=order)})
        rows = {"image": [{"bytes": encoded(c), "path": None} for c in COLOURS.values()], "fine": list(COLOURS)}
        (tmp_path / "hub").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / f"hub/{split}.parquet"))
    asked: list[tuple[Any, ...]] = []
    load = datasets.load_dataset_builder

    def load_dataset_builder(*given: Any) -> datasets.DatasetBuilder:
        asked.append(given)
        return load(str(tmp_path / "hub"))

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    hub = Hub("some/set", {"train": "train", "test": "validation"}, label="fine", name="big")
    source = opened(hub, "test", tmp_path, given=False).source
    assert set(asked) == {("some/set", "big")}
    assert source.labels.tolist() == [0, 1, 2], "classes of the test split are those of training, by name"
    assert source.classes == tuple(COLOURS) and source.read(0).getpixel((0, 0)) == COLOURS["ant"]
    assert "where a folder is given" in message(lambda: opened(hub, "test", tmp_path))


# Tasks of the user's own


@pytest.mark.parametrize("val", [False, True])
def test_own_folder(tmp_path: Path, val: bool) -> None:
    task = tasks(["mine"], roots={"mine": own_folder(tmp_path / "data", val)})["mine"]
    assert task.classes == 3 and task.sizes == {"train": 15, "test": 6, **({"val": 9} if val else {})}
    assert task.has_val == val and task.metric == "top1" and task.images == sum(task.sizes.values())
    test = task.open("test")
    assert test.classes == ("ant", "bee", "cow") and test.read(5).getpixel((0, 0)) == COLOURS["cow"]
    before = images_fingerprint(task.opened("test"))
    picture(tmp_path / "data" / "test" / "cow" / "1.png", (1, 1, 1))
    assert images_fingerprint(task.opened("test")) != before
    picture(tmp_path / "data" / "test" / "cow" / "9.png")
    assert "must have 6 images, but 7 are there" in message(lambda: task.open("test"))


def test_own_metadata_and_splits_of_other_names(tmp_path: Path) -> None:
    for split in ("fit", "exam"):
        lines = []
        for number, (kind, colour) in enumerate(COLOURS.items()):
            picture(tmp_path / "data" / split / f"{number}.png", colour)
            lines.append(json.dumps({"file_name": f"{number}.png", "species": kind}))
        (tmp_path / "data" / split / "metadata.jsonl").write_text("\n".join(lines))
    text = "mine: {root: data, train: fit, test: exam, label: species, metric: mean_per_class, version: 2}"
    (tmp_path / "tasks.yaml").write_text(text)
    task = load_tasks(tmp_path / "tasks.yaml")["mine"]
    assert task.metric == "mean_per_class" and task.version == 2 and task.open("train").classes == tuple(COLOURS)
    assert tasks(["mine", "digits"], own={"mine": task})["mine"] is task


def test_own_parquet(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, kinds in (("train", "ant bee cow ant"), ("validation", "cow ant"), ("test", "bee cow")):
        rows = [{"bytes": encoded(COLOURS[kind]), "path": None} for kind in kinds.split()]
        pq.write_table(pa.table({"image": rows, "label": kinds.split()}), tmp_path / "data" / f"{split}-0-of-1.parquet")
    task = tasks(["mine"], roots={"mine": tmp_path / "data"})["mine"]
    assert task.sizes == {"train": 4, "val": 2, "test": 2}
    test = task.open("test")
    assert test.labels.tolist() == [1, 2] and test.classes == ("ant", "bee", "cow")
    assert test.read(1).getpixel((0, 0)) == COLOURS["cow"]


@pytest.mark.parametrize("name", ["data", "cl [v2]*"])
def test_own_data_is_matched_by_class_name(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    root.mkdir()
    for split, order in (("train", list(COLOURS)), ("test", list(COLOURS)[::-1])):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=order)})
        rows = {"image": [{"bytes": encoded(c), "path": None} for c in COLOURS.values()], "label": list(COLOURS)}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(root / f"{split}.parquet"))
    task = tasks(["mine"], roots={"mine": root})["mine"]
    assert task.open("test").labels.tolist() == task.open("train").labels.tolist() == [0, 1, 2]


def test_own_images_with_metadata_in_parquet(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for kind, colour in COLOURS.items():
            picture(tmp_path / split / f"{kind}.png", colour)
        rows = {"file_name": [f"{kind}.png" for kind in COLOURS], "label": list(COLOURS)}
        pq.write_table(pa.table(rows), tmp_path / split / "metadata.parquet")
    task = tasks(["mine"], roots={"mine": tmp_path})["mine"]
    assert task.open("test").ids.to_pylist() == rows["file_name"] and task.open("test").classes == tuple(COLOURS)


def test_table_task_from_an_image_folder(tmp_path: Path) -> None:
    class_folders(tmp_path / "pets" / "train", dict.fromkeys(COLOURS, 3))
    class_folders(tmp_path / "pets" / "test", dict.fromkeys(COLOURS, 1))
    for roots, data_root in (({"pets": tmp_path / "pets"}, "data"), ({}, tmp_path)):
        task = tasks(["pets"], roots=roots, data_root=data_root)["pets"]
        assert "must have 3,680 images, but 9 are there" in message(lambda task=task: task.open("train"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mine: {root: data, lable: x}", ["no key 'lable'", "did you mean label"]),
        ("mine: {root: data, metric: top5}", ["mine.metric is 'top5'"]),
        ("mine: {root: data, version: 0}", ["mine.version is 0"]),
        ("mine: {metric: top1}", ["either root", "or hub"]),
        ("mine: [1]", ["mine is [1]"]),
        ("digits: {root: data}", ["digits is a task of the table"]),
        ("- mine", ["must map names"]),
        ("mine: {root: nowhere}", ["neither train/ and test/ nor Parquet"]),
        ("mine: {root: data, test: exam}", ["no split 'exam'", "train, valid"]),
        ("mine: {root: data, classes: 7, test: valid}", ["must have 7 classes, but 3"]),
        ("mine: {root: [", ["is not YAML"]),
        (
            "mine: {hub: someone/something}",
            ["hub's someone/something cannot", "load_dataset('someone/something')"],
        ),
    ],
)
def test_task_file_mistakes(tmp_path: Path, text: str, expected: list[str]) -> None:
    class_folders(tmp_path / "data" / "train", dict.fromkeys(COLOURS, 2))
    class_folders(tmp_path / "data" / "valid", dict.fromkeys(COLOURS, 2))
    (tmp_path / "tasks.yaml").write_text(text)
    found = message(lambda: load_tasks(tmp_path / "tasks.yaml"))
    assert all(part in found for part in expected), found


def test_own_mistakes(tmp_path: Path) -> None:
    own_folder(tmp_path / "data")
    assert "no such folder" in message(lambda: tasks(["mine"], roots={"mine": tmp_path / "nowhere"}))
    assert "cannot read" in message(lambda: load_tasks(tmp_path / "nowhere.yaml"))
    picture(tmp_path / "data" / "test" / "dog" / "1.png")
    assert "'dog'" in message(lambda: tasks(["mine"], roots={"mine": tmp_path / "data"}))


def test_one_class_alone_is_no_task(tmp_path: Path) -> None:
    for split in ("train", "test"):
        picture(tmp_path / split / "cat" / "0.png")
    assert "task mine: " in (text := message(lambda: tasks(["mine"], roots={"mine": tmp_path})))
    assert "has one class alone: there is nothing to tell apart" in text


def test_a_class_that_only_the_test_split_has_is_told_as_that(tmp_path: Path) -> None:
    root = own_folder(tmp_path / "own")
    picture(root / "test" / "stray" / "0.png")
    text = message(lambda: tasks(["mine"], {"mine": root})["mine"].open("test"))
    assert "1 of test's classes are not in training: 'stray' (1 images)" in text


def test_counts_of_the_builtin_suite_are_small() -> None:
    sizes = Counter({name: tasks([name])[name].images for name in SUITES["builtin"]})
    assert max(sizes.values()) <= 5120


def test_changed_data_of_the_users_own_makes_another_task(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("a", "b"):
            for row in range(5):
                file = tmp_path / split / label / f"{row}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (row, 0, 0)).save(file)
    before = folder_task("own", tmp_path).data
    assert folder_task("own", tmp_path).data == before
    (tmp_path / "test" / "a" / "0.png").rename(tmp_path / "test" / "b" / "9.png")
    assert folder_task("own", tmp_path).data != before
