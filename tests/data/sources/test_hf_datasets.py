"""Tables (Parquet, Arrow, saved folders) and torchvision's sets: real files, and one-line errors."""

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tt_ray.config import DataConfig
from tt_ray.data.sources.registry import drop_unreadable, open_source, open_splits
from tt_ray.terminal.errors import UserError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
COLOURS = (RED, GREEN, BLUE)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def encoded(colour: tuple[int, ...]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 12), colour).save(out, "PNG")
    return out.getvalue()


def message(call: Callable[[], object]) -> str:
    """The text of the UserError that a call raises, which must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def table(labels: list[Any], **more: Any) -> pa.Table:
    images = [{"bytes": encoded(colour), "path": None} for colour in COLOURS]
    return pa.table({"image": images, "label": labels, **more})


def write_tables(root: Path, train: pa.Table, test: pa.Table) -> DataConfig:
    root.mkdir(exist_ok=True)
    pq.write_table(train, root / "train-00000-of-00001.parquet")
    pq.write_table(test, root / "test-00000-of-00001.parquet")
    return DataConfig(source="datasets", root=str(root))


def test_parquet_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    captions = ["red", "", None]
    datasets.enable_progress_bars()  # whatever was in this process before
    config = write_tables(tmp_path / "data", table(["x", "b", "x"], caption=captions), table(["b", "b", "x"]))
    train, val = open_splits(config, need_captions=True)
    assert train.ids.to_pylist() == ["0", "1", "2"] and train.classes == val.classes == ("b", "x")
    assert train.labels.tolist() == [1, 0, 1] and val.labels.tolist() == [0, 0, 1]
    assert train.captions is not None and train.captions.to_pylist() == ["red", None, None] and val.captions is None
    assert train.pixels(np.array([2, 0]), 4)[:, 1, 1].tolist() == [list(BLUE), list(RED)]
    assert train.read(1).getpixel((0, 0)) == GREEN
    assert capfd.readouterr() == ("", ""), "progress bars or warnings were shown"
    assert datasets.is_progress_bar_enabled()


def test_image_feature_class_labels_and_ids(tmp_path: Path) -> None:
    kind = datasets.ClassLabel(names=["ant", "bee", "cow"])
    features = datasets.Features({"pic": datasets.Image(), "kind": kind, "key": datasets.Value("int64")})
    rows = {"pic": [{"bytes": encoded(c), "path": None} for c in COLOURS], "kind": [1, 0, 1], "key": [7, 8, 9]}
    data = datasets.Dataset.from_dict(rows, features=features)
    data.to_parquet(str(tmp_path / "one.parquet"))
    config = DataConfig(
        source="datasets",
        root=str(tmp_path / "one.parquet"),
        image_column="pic",
        label_column="kind",
        id_column="key",
        train_split="train[:2]",
        val_split="train[2:]",
    )
    train, val = open_splits(config, need_captions=False)
    assert train.classes == ("ant", "bee", "cow") and train.labels.tolist() == [1, 0]
    assert train.ids.to_pylist() == ["7", "8"] and val.ids.to_pylist() == ["9"] and val.labels.tolist() == [1]
    assert val.pixels(np.array([0]), 4)[0, 0, 0].tolist() == list(BLUE)
    text = message(lambda: open_source(DataConfig(source="datasets", root=config.root), "val", False))
    assert "['train']" in text and "--data.val_split" in text


def test_saved_folders(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"image": [encoded(c) for c in COLOURS], "label": [0, 1, 1]})
    datasets.disable_progress_bars()
    data.save_to_disk(str(tmp_path / "single"))
    datasets.DatasetDict({"train": data, "valid": data.select([0, 1])}).save_to_disk(str(tmp_path / "several"))
    datasets.enable_progress_bars()
    single = DataConfig(source="datasets", root=str(tmp_path / "single"))
    assert open_source(single, "train", False).labels.tolist() == [0, 1, 1]
    assert "has no split 'test'" in message(lambda: open_source(single, "val", False))
    several = DataConfig(source="datasets", root=str(tmp_path / "several"), val_split="valid")
    _, val = open_splits(several, need_captions=False)
    assert val.labels.tolist() == [0, 1] and val.pixels(np.array([1]), 4)[0, 0, 0].tolist() == list(GREEN)
    wrong = DataConfig(source="datasets", root=str(tmp_path / "several"), val_split="vaild")
    assert "did you mean valid?" in message(lambda: open_source(wrong, "val", False))


@pytest.mark.parametrize(
    ("changes", "need_captions", "expected"),
    [
        ({"image_column": "img"}, False, ["no column 'img'", "image", "--data.image_column"]),
        ({"image_column": "label"}, False, ["'label' does not hold encoded images", "--data.image_column"]),
        ({"label_column": "lable"}, False, ["did you mean label?", "--data.label_column"]),
        ({"id_column": "label"}, False, ["empty or repeated ids", "--data.id_column"]),
        ({"id_column": "image"}, False, ["cannot be read as ids"]),
        ({"caption_column": "text"}, True, ["--data.caption_column", "--text.captions"]),
        ({"caption_column": "label"}, True, ["does not hold one text"]),
        ({"label_column": "gaps"}, False, ["1 images have no gaps: train-00000-of-00001.parquet, row 1, id 1;"]),
        ({"train_split": "training"}, False, ["training", "['train', 'test']", "--data.train_split"]),
        ({"root": "./nowhere"}, False, ["./nowhere does not exist"]),
        ({"root": ""}, False, ["--data.root"]),
    ],
)
def test_table_mistakes(tmp_path: Path, changes: dict[str, str], need_captions: bool, expected: list[str]) -> None:
    data = table([0, 1, 1], gaps=[0, None, 1])
    root = write_tables(tmp_path / "data", data, data).root
    config = DataConfig(**{"source": "datasets", "root": root, **changes})  # pyright: ignore[reportArgumentType]
    text = message(lambda: open_source(config, "train", need_captions))
    assert all(part in text for part in expected), text


def test_bad_image_in_a_table_is_named(tmp_path: Path) -> None:
    images = [{"bytes": encoded(RED), "path": None}, {"bytes": encoded(RED)[:45], "path": None}, None]
    data = pa.table({"image": images, "label": [0, 0, 0]})
    source = open_source(write_tables(tmp_path / "data", data, data), "train", False)
    assert "row 1, id 1" in message(lambda: source.read(1))
    assert "row 2, id 2 (it is null)" in message(lambda: source.pixels(np.array([0, 2]), 4))
    assert drop_unreadable(source).skipped == ("1", "2")


def test_damaged_table_and_unreachable_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    bad = DataConfig(source="datasets", root=str(tmp_path / "bad.parquet"))
    assert "cannot load" in message(lambda: open_source(bad, "train", False))
    (tmp_path / "bad.txt").write_text("")
    text = message(lambda: open_source(DataConfig(source="datasets", root=str(tmp_path / "bad.txt")), "train", False))
    assert "neither a folder nor a .parquet or .arrow file" in text

    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nat all")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    hub = DataConfig(source="datasets", root="someone/pictures")
    assert "cannot load someone/pictures (train): Couldn't reach the Hub at all" in message(
        lambda: open_source(hub, "train", False)
    )


# torchvision


def write_mnist(root: Path, prefix: str, labels: list[int]) -> None:
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.repeat(np.array(labels, np.uint8) * 20, 28 * 28).tobytes()
    count = len(labels)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, count, 28, 28) + pixels)
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, count) + bytes(labels))


def test_torchvision_with_train_flag(tmp_path: Path) -> None:
    write_mnist(tmp_path, "train", [3, 1, 4])
    write_mnist(tmp_path, "t10k", [9, 1])
    train, val = open_splits(DataConfig(source="torchvision", name="MNIST", root=str(tmp_path)), need_captions=False)
    assert train.labels.tolist() == [3, 1, 4] and train.ids.to_pylist() == ["0", "1", "2"]
    assert val.labels.tolist() == [9, 1] and len(val.classes) == 10 and val.captions is None
    assert train.pixels(np.array([2, 1]), 32)[:, 5, 5].tolist() == [[80] * 3, [20] * 3]
    assert train.read(0).mode == "RGB"


def test_torchvision_with_split_name(tmp_path: Path) -> None:
    meta = tmp_path / "food-101/meta"
    meta.mkdir(parents=True)
    for split in ("train", "test"):
        content = {"apple_pie": [f"apple_pie/{split}"], "ramen": [f"ramen/{split}"]}
        (meta / f"{split}.json").write_text(json.dumps(content))
        for name, colour in (("apple_pie", RED), ("ramen", BLUE)):
            folder = tmp_path / "food-101/images" / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 12), colour).save(folder / f"{split}.jpg")
    config = DataConfig(source="torchvision", name="Food101", root=str(tmp_path))
    source = open_source(config, "val", need_captions=False)
    assert source.classes == ("apple_pie", "ramen") and source.labels.tolist() == [0, 1]
    np.testing.assert_allclose(source.pixels(np.array([1]), 4)[0, 1, 1], BLUE, atol=3)
    (tmp_path / "food-101/images/ramen/test.jpg").write_bytes(b"")
    assert "Food101 (test)" in message(lambda: source.read(1))
    wrong = DataConfig(source="torchvision", name="Food101", root=str(tmp_path), val_split="val")
    assert "Valid values are" in message(lambda: open_source(wrong, "val", False))


def test_torchvision_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def config(**changes: Any) -> DataConfig:
        return DataConfig(**{"source": "torchvision", "name": "MNIST", "root": str(tmp_path), **changes})

    assert "did you mean CIFAR10 or CIFAR100?" in message(lambda: open_source(config(name="CIFAR1O0"), "train", False))
    assert "did you mean MNIST?" in message(lambda: open_source(config(name="mnist"), "train", False))
    assert "--data.root" in message(lambda: open_source(config(root=""), "train", False))
    assert "has no split 'val'" in message(lambda: open_source(config(val_split="val"), "val", False))
    text = message(lambda: open_source(config(), "train", True))
    assert "--data.caption_column" in text and "--text.captions" in text

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    text = message(lambda: open_source(config(), "train", False))
    assert "cannot download MNIST (train)" in text and "no route to host" in text
