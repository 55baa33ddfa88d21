"""Sets as their authors publish them: splits, class numbers and ImageNet's masks."""

import json
from pathlib import Path

import numpy as np

from eval.tasks.layouts import ClassFolders, Cub, ImageNet, INaturalist, Sun397, real_labels, wordnet_ids
from eval.tasks.registry import tasks
from eval.tasks.table import TABLE
from tests.eval.tasks.test_registry import class_folders, message, opened, picture


def test_cub(tmp_path: Path) -> None:
    root = tmp_path / "CUB_200_2011"
    lines = {"images": "", "image_class_labels": "", "train_test_split": "", "classes": "1 001.A\n2 002.B\n"}
    for number, (kind, train) in enumerate([(1, 1), (1, 0), (2, 1), (2, 1)], 1):
        name = f"00{kind}.{'AB'[kind - 1]}/{number}.jpg"
        picture(root / "images" / name)
        lines["images"] += f"{number} {name}\n"
        lines["image_class_labels"] += f"{number} {kind}\n"
        lines["train_test_split"] += f"{number} {train}\n"
    for name, text in lines.items():
        (root / f"{name}.txt").write_text(text)
    train, test = (opened(Cub(), split, tmp_path, given=False).source for split in ("train", "test"))
    assert train.labels.tolist() == [0, 1, 1] and test.ids.to_pylist() == ["images/001.A/2.jpg"]
    assert train.classes == ("001.A", "002.B") and train.read(2).size == (8, 8)


def test_sun397(tmp_path: Path) -> None:
    files = ["/a/abbey/sun_1.jpg", "/b/bathroom/indoor/sun_2.jpg"]
    for split in ("Training", "Testing"):
        text = "".join(name.replace("sun_", f"sun_{split}") + "\n" for name in files)
        for line in text.splitlines():
            picture(tmp_path / "SUN397" / line[1:])
        (tmp_path / "SUN397" / f"{split}_01.txt").write_text(text)
    source = opened(Sun397(), "test", tmp_path, given=False).source
    assert source.classes == ("abbey", "bathroom/indoor") and source.labels.tolist() == [0, 1]
    assert source.read(1).size == (8, 8)


def test_inaturalist(tmp_path: Path) -> None:
    picture(tmp_path / "2019" / "Birds" / "3" / "x.jpg")
    data = {
        "images": [{"id": 7, "file_name": "train_val2019/Birds/3/x.jpg"}],
        "annotations": [{"image_id": 7, "category_id": 3}],
        "categories": [{"id": number, "name": f"kind {number}"} for number in range(4)],
    }
    (tmp_path / "val2019.json").write_text(json.dumps(data))
    source = opened(INaturalist(2019), "test", tmp_path, given=False).source
    assert source.labels.tolist() == [3] and len(source.classes) == 4 and source.read(0).size == (8, 8)
    (tmp_path / "val2019.json").write_text("{}")
    assert "is not a list of iNaturalist" in message(lambda: opened(INaturalist(2019), "test", tmp_path))


def test_caltech_takes_a_fixed_number_of_each_class(tmp_path: Path) -> None:
    class_folders(tmp_path, {"ant": 7, "bee": 4, "BACKGROUND_Google": 2})
    origin = ClassFolders(("x",), "-", leave_out=("BACKGROUND_Google",), train_per_class=3)
    train, test = (opened(origin, split, tmp_path).source for split in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [3, 3] and np.bincount(test.labels).tolist() == [4, 1]
    assert not set(train.ids.to_pylist()) & set(test.ids.to_pylist()) and train.classes == ("ant", "bee")


# ImageNet and its variants


def test_masks() -> None:
    known = wordnet_ids()
    assert len(known) == 1000 and list(known) == sorted(known)
    found = tasks(["imagenet_a", "imagenet_r", "imagenet_v2", "imagenet", "imagenet_real"])
    assert found["imagenet"].mask is None and not found["imagenet"].evaluation_only
    for name, subset in (("imagenet_a", "imagenet_a"), ("imagenet_r", "imagenet_r")):
        mask = found[name].mask
        assert mask is not None and len(mask) == 200 == len(set(mask.tolist())) and found[name].evaluation_only
        assert [known[number] for number in mask] == list(wordnet_ids(subset))
    mask = found["imagenet_v2"].mask
    assert mask is not None and mask.tolist() == list(range(1000))


def test_imagenet_folders(tmp_path: Path) -> None:
    kinds = wordnet_ids("imagenet_a")
    for kind in kinds[::-1]:
        picture(tmp_path / "imagenet-a" / kind / "x.jpg")
    origin = ImageNet(("imagenet-a",), "-", "imagenet_a")
    source = opened(origin, "test", tmp_path, given=False).source
    assert source.labels.tolist() == list(range(200)) and source.ids[199].as_py() == f"{kinds[-1]}/x.jpg"
    (tmp_path / "imagenet-a" / kinds[4]).rename(tmp_path / "imagenet-a" / "n00000000")
    assert "n00000000 are not among its classes" in message(lambda: opened(origin, "test", tmp_path, given=False))


def test_imagenet_v2_has_numbers_for_names(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "x.jpeg").touch()
    source = opened(ImageNet(("v2",), "-"), "test", tmp_path).source
    right = {row: int(name.split("/")[0]) for row, name in enumerate(source.ids.to_pylist())}
    assert source.labels.tolist() == list(right.values()) and source.classes == wordnet_ids()


def test_real_labels(tmp_path: Path) -> None:
    answers = real_labels()
    assert len(answers) == 50_001 and sum(map(bool, answers)) == TABLE["imagenet_real"].sizes["test"]
    kinds = wordnet_ids()
    for place, kind in enumerate(kinds):
        number = 1 + place  # image 1 has no right label, as published
        (tmp_path / "val" / kind).mkdir(parents=True)
        (tmp_path / "val" / kind / f"ILSVRC2012_val_{number:08d}.JPEG").touch()
    origin = ImageNet(("imagenet",), "-", splits=True, real=True)
    source = opened(origin, "test", tmp_path).source
    task = tasks(["imagenet_real"])["imagenet_real"]
    accepted = task.accepted(source)
    assert accepted is not None and accepted.shape == (len(source), 1000)
    assert accepted[np.arange(len(source)), source.labels].all()
    left = [name for name in source.ids.to_pylist() if name.endswith("_00000001.JPEG")]
    assert not left and len(source) == sum(map(bool, answers[1:1001]))
    assert accepted.sum() == sum(map(len, answers[1:1001]))
    assert tasks(["digits"])["digits"].accepted(source) is None
