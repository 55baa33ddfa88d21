"""Metadata of image folders: read as Hugging Face's imagefolder reads them, or said to be ignored."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tt_ray.config import DataConfig
from tt_ray.data.sources.metadata import unused_metadata
from tt_ray.data.sources.registry import open_source, open_splits
from tt_ray.terminal.errors import UserError
from tt_ray.text.image_ids import read_labels

FILES = ["a/0.png", "a/1.png", "b/0.png"]
FORMATS = ["csv", "jsonl", "parquet"]


def message(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def draw(split: Path, files: list[str] = FILES) -> None:
    for name in files:
        (split / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(split / name)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows in the format of the suffix."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)


def config(root: Path, **changes: Any) -> DataConfig:
    return DataConfig(**{"source": "imagefolder", "root": str(root), **changes})


def by_name(root: Path, need_captions: bool = False, **changes: Any) -> dict[str, str]:
    source = open_source(config(root, **changes), "train", need_captions)
    return {image: source.classes[label] for image, label in zip(source.ids.to_pylist(), source.labels, strict=True)}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("labels", "more", "expected"),
    [
        (["dog", "cat", "dog"], {}, ["dog", "cat", "dog"]),
        ([2, 0, 2], {}, ["2", "0", "2"]),
        ([1, 0, 1], {"label_name": ["x", "y", "x"]}, ["x", "y", "x"]),
        ([" dog", "cat", " dog"], {}, ["dog", "cat", "dog"]),
    ],
)
def test_every_format_gives_the_labels(
    tmp_path: Path, suffix: str, labels: list[Any], more: dict[str, list[Any]], expected: list[str]
) -> None:
    draw(tmp_path / "train")
    captions = ['a "red", one', "", "two\nlines"]
    columns = {"file_name": FILES, "label": labels, "caption": captions, **more}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    write(tmp_path / f"train/metadata.{suffix}", rows)
    assert by_name(tmp_path, need_captions=True) == dict(zip(FILES, expected, strict=True))
    source = open_source(config(tmp_path), "train", True)
    assert source.captions is not None and source.captions.to_pylist() == ['a "red", one', None, "two\nlines"]
    (note,) = source.left_out
    assert f"metadata.{suffix} (label); its folders' names are not used" in note
    named = read_labels(tmp_path / "train", pa.array(FILES)).to_pylist()
    assert named == expected


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("nested", [["a", "b"], ["", "b"], ["a/deep", "a", "b"]])
def test_one_file_for_each_folder(tmp_path: Path, suffix: str, nested: list[str]) -> None:
    files = [*FILES, "a/deep/0.png"] if "a/deep" in nested else FILES
    draw(tmp_path / "train", files)
    expected = {name: f"class of {name}" for name in files}
    for folder in nested:
        inside = [name for name in files if name.startswith(f"{folder}/" if folder else "a/")]
        if folder == "a" and "a/deep" in nested:
            inside = FILES[:2]
        rows = [{"file_name": name.removeprefix(f"{folder}/"), "label": expected[name]} for name in inside]
        write(tmp_path / "train" / folder / f"metadata.{suffix}", rows)
    assert by_name(tmp_path) == expected


def test_hugging_face_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    draw(tmp_path / "data/train")
    for folder, rows in {
        "a": [{"image_file_name": "0.png", "label": 1}, {"image_file_name": "./1.png", "label": 0}],
        "b": [{"image_file_name": "0.png", "label": 1}],
    }.items():
        write(tmp_path / f"data/train/{folder}/metadata.jsonl", rows)
    theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "data"), split="train")
    decoded = theirs.cast_column("image", datasets.Image(decode=False))
    images: Any = decoded["image"]
    paths = [Path(image["path"]).relative_to(tmp_path / "data/train").as_posix() for image in images]
    assert by_name(tmp_path / "data") == dict(zip(paths, map(str, decoded["label"]), strict=True))


def test_class_names_of_parquet_count(tmp_path: Path) -> None:
    for split, names in (("train", ["ant", "bee"]), ("test", ["bee", "ant"])):
        draw(tmp_path / split)
        kind = datasets.Features({"file_name": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        rows = {"file_name": FILES, "label": [0, 1, 1]}
        datasets.Dataset.from_dict(rows, features=kind).to_parquet(str(tmp_path / split / "metadata.parquet"))
    train, val = open_splits(config(tmp_path), need_captions=False)
    assert train.classes == ("ant", "bee") and train.labels.tolist() == [0, 1, 1] and val.labels.tolist() == [1, 0, 0]
    assert read_labels(tmp_path / "test", pa.array(FILES)).to_pylist() == ["bee", "ant", "ant"]
    rows["label"] = [0, -1, 1]
    datasets.Dataset.from_dict(rows, features=kind).to_parquet(str(tmp_path / "train/metadata.parquet"))
    assert "1 images have no label" in message(lambda: by_name(tmp_path))
    table = pq.read_table(tmp_path / "train/metadata.parquet")
    pq.write_table(table.set_column(1, table.schema.field(1), [[0, 5, 1]]), tmp_path / "train/metadata.parquet")
    assert "metadata.parquet:2: label is 5, but it names 2 classes" in message(lambda: by_name(tmp_path))


@pytest.mark.parametrize("suffix", FORMATS)
def test_captions_without_labels_leave_the_folders_as_classes(tmp_path: Path, suffix: str) -> None:
    draw(tmp_path / "train")
    write(tmp_path / f"train/metadata.{suffix}", [{"file_name": name, "caption": "x"} for name in FILES])
    assert by_name(tmp_path, need_captions=True) == {name: name[0] for name in FILES}


def test_masks_are_no_images_of_the_split(tmp_path: Path) -> None:
    draw(tmp_path / "train", [*FILES, "masks/0.png"])
    rows = [{"image_file_name": name, "mask_file_name": "masks/0.png", "label": "x"} for name in FILES]
    write(tmp_path / "train/metadata.jsonl", rows)
    assert list(by_name(tmp_path)) == FILES
    text = message(lambda: by_name(tmp_path, image_column="picture"))
    assert "metadata.jsonl:1" in text and "image_file_name, mask_file_name" in text and "--data.image_column" in text


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("csv", "file_name,label\na/0.png,0\na/1.png,01\nb/0.png,1\n", ["metadata.csv:3 (a/1.png): label '01'"]),
        ("csv", "file_name,label\na/0.png,0.0\na/1.png,1.0\nb/0.png,\n", ["metadata.csv:2", "label '0.0'"]),
        ("csv", "file_name,label\na/0.png,0\na/1.png,\nb/0.png,1\n", ["1 images have no label", "metadata.csv:3"]),
        ("csv", "file_name,label\na/0.png,x\na/1.png,  \nb/0.png,y\n", ["1 images have no label", "metadata.csv:3"]),
        ("csv", "file_name,label\na/0.png,0\na/1.png,-1\nb/0.png,1\n", ["metadata.csv:3 (a/1.png): label -1"]),
        ("csv", "file_name,label\na/0.png,x\na/1.png\n", ["metadata.csv:3: 1 columns instead of 2"]),
        ("csv", 'file_name,label\na/0.png,"x\na/1.png,x\nb/0.png,y\n', ["metadata.csv:2: a quote that is not closed"]),
        ("csv", "name,label\na/0.png,x\n", ["metadata.csv:2 needs a text file_name, but has none"]),
        ("csv", b"file_name,label\na/0.png,\xff\n", ["metadata.csv:2: not UTF-8"]),
        ("csv", "", ["3 images have no row"]),
        ("csv", "file_name,label\n", ["3 images have no row"]),
        ("jsonl", "", ["3 images have no row"]),
        ("jsonl", "[" * 100_000 + "]" * 100_000, ["metadata.jsonl:1: not JSON"]),
        ("jsonl", '{"file_name": "a/0.png", "label": ' + "[" * 100_000 + "]" * 100_000 + "}", ["jsonl:1: not JSON"]),
        ("jsonl", '{"file_name": "a/0.png", "label": ' + "1" * 5000 + "}", ["metadata.jsonl:1: not JSON"]),
        ("jsonl", '{"file_name": "a/0.png", "label": "\\ud800"}', ["metadata.jsonl:1: not UTF-8"]),
        ("jsonl", '{"file_name": "a/0.png", "label": NaN}', ["3 images"]),
        ("jsonl", "[1]", ["metadata.jsonl:1: not a JSON object"]),
        ("jsonl", '{"file_name": 3}', ["metadata.jsonl:1 is not a row with texts file_name"]),
        ("jsonl", '{"file_name": "../test/0.png"}', ["metadata.jsonl:1: file '../test/0.png' is not in the folder"]),
        ("jsonl", '{"file_name": "/etc/passwd"}', ["metadata.jsonl:1: file '/etc/passwd'"]),
        ("jsonl", '{"file_name": "file://x"}', ["metadata.jsonl:1: file 'file://x'"]),
        ("parquet", b"PAR1 nonsense", ["cannot read", "metadata.parquet"]),
        ("parquet", b"", ["cannot read", "metadata.parquet"]),
    ],
)
def test_bad_metadata_is_one_line_with_file_and_row(
    tmp_path: Path, name: str, content: str | bytes, parts: list[str]
) -> None:
    draw(tmp_path / "train")
    data = content.encode() if isinstance(content, str) else content
    (tmp_path / f"train/metadata.{name}").write_bytes(data)
    text = message(lambda: by_name(tmp_path))
    if "NaN" not in str(content):
        assert all(part in text for part in parts), text
    assert len(text) < 600


@pytest.mark.parametrize("labels", [[0.5, 1.0, 1.0], [math.nan, 0.0, 1.0], [True, False, True]])
def test_parquet_labels_that_are_no_names(tmp_path: Path, labels: list[Any]) -> None:
    draw(tmp_path / "train")
    rows = [{"file_name": name, "label": label} for name, label in zip(FILES, labels, strict=True)]
    write(tmp_path / "train/metadata.parquet", rows)
    text = message(lambda: by_name(tmp_path))
    assert "all integers or all text" in text and "metadata.parquet:1 (a/0.png)" in text


def test_several_formats_are_refused(tmp_path: Path) -> None:
    draw(tmp_path / "train")
    for place in ("metadata.csv", "a/metadata.jsonl"):
        write(tmp_path / "train" / place, [{"file_name": name, "label": 0} for name in FILES])
    assert "has metadata.csv and metadata.jsonl" in message(lambda: by_name(tmp_path))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_metadata_above_the_splits_is_said_to_be_ignored(tmp_path: Path, name: str) -> None:
    draw(tmp_path / "train")
    write(tmp_path / name, [{"file_name": f"train/{file}", "label": "other"} for file in FILES])
    source = open_source(config(tmp_path), "train", False)
    assert source.classes == ("a", "b")
    assert source.left_out == (f"{tmp_path / name} is ignored: metadata belong into {tmp_path / 'train'}",)


def test_metadata_of_other_names_are_said_to_be_ignored(tmp_path: Path) -> None:
    draw(tmp_path / "train")
    for name in ("metadata.json", "a/Metadata.CSV", "metadata.jsonl.gz"):
        (tmp_path / "train" / name).touch()
    source = open_source(config(tmp_path), "train", False)
    assert [text.split(" is ignored")[0].removeprefix(f"{tmp_path}/train/") for text in source.left_out] == [
        "a/Metadata.CSV",
        "metadata.json",
        "metadata.jsonl.gz",
    ]
    assert unused_metadata(tmp_path / "train", FILES) == ()


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ([" dog", "cat"], ["cat", "dog"]),
        (["Ka\u0308fer", "cat"], ["Käfer", "cat"]),
        (["Ka\u0308fer", "Käfer"], ["Käfer"]),
        (["dog", " dog"], None),
        (["  ", "dog"], None),
        (["1", "01"], None),
    ],
)
def test_names_of_class_folders(tmp_path: Path, folders: list[str], expected: list[str] | None) -> None:
    draw(tmp_path / "train", [f"{folder}/0.png" for folder in folders])
    if expected is None:
        text = message(lambda: by_name(tmp_path))
        assert "  /0.png" in text or all(repr(folder) in text for folder in folders)
    else:
        assert sorted(set(by_name(tmp_path).values())) == sorted(expected)


def test_folders_whose_names_look_like_patterns(tmp_path: Path) -> None:
    root = tmp_path / "cl [v2] {a,b} *?"
    draw(root / "train", ["c[1]/0.png", "c*/0.png", "c?/0 [1].png"])
    assert sorted(set(by_name(root).values())) == ["c*", "c?", "c[1]"]
