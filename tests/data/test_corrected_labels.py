"""`data.labels` replaces labels of training images before anything else does, in every command, and nothing else."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.command_here import TRAINING, Command
from tests.command_here import command as command
from tests.data.sources.test_webdataset import jpeg
from tests.data.sources.test_webdataset import write as write_tar
from tests.toy import toy_config
from tt_ray.config import Config
from tt_ray.data.corrected_labels import correct_labels, read_label_table
from tt_ray.data.prepare import open_data, open_images
from tt_ray.terminal.errors import UserError
from tt_ray.training.model_card import public
from tt_ray.training.same_data import open_record

Rows = list[tuple[str, str | None]]


def csv(path: Path, rows: Rows) -> Path:
    path.write_text("image_id,label\n" + "".join(f"{name},{label or ''}\n" for name, label in rows))
    return path


def tsv(path: Path, rows: Rows) -> Path:
    path = path.with_suffix(".tsv")
    path.write_text("file_name\tlabel\n" + "".join(f"{name}\t{label or ''}\n" for name, label in rows))
    return path


def jsonl(path: Path, rows: Rows) -> Path:
    path = path.with_suffix(".jsonl")
    lines = [{"image_id": name} | ({"label": label} if label else {}) for name, label in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def parquet(path: Path, rows: Rows) -> Path:
    path = path.with_suffix(".parquet")
    columns = {"image_id": [name for name, _ in rows], "label": [label or None for _, label in rows]}
    pq.write_table(pa.table({**columns, "further": [0.5] * len(rows)}), path)
    return path


def labels_of(config: Config) -> dict[str, str]:
    train = open_data(config, None).train
    return {name: train.classes[label] for name, label in zip(train.ids.to_pylist(), train.labels, strict=True)}


@pytest.fixture
def plain(tmp_path: Path) -> Config:
    return toy_config(tmp_path, text__weight=0.0)


@pytest.mark.parametrize("write", [csv, tsv, jsonl, parquet])
def test_labels_are_replaced_and_images_without_one_are_left_out(
    write: Callable[[Path, Rows], Path], plain: Config, tmp_path: Path
) -> None:
    train, val, _ = open_images(plain)
    ids, before = train.ids.to_pylist(), labels_of(plain)
    rows = [(ids[1], train.classes[2]), (ids[3], None), (ids[7], train.classes[5]), (ids[8], before[ids[8]])]
    config = plain.override("data.labels", str(write(tmp_path / "labels.csv", rows)))
    after = labels_of(config)
    expected = {**before, ids[1]: train.classes[2], ids[7]: train.classes[5]}
    changed = sum(expected[name] != before[name] for name in expected)
    del expected[ids[3]]
    assert after == expected and changed
    found, other, notes = open_images(config)
    assert notes == [f"{changed} training labels were corrected, and 1 images left out (data.labels)"]
    assert np.array_equal(other.labels, val.labels) and other.ids.equals(val.ids)
    rows_left = np.setdiff1d(np.arange(len(train)), [3])
    assert np.array_equal(found.pixels(np.arange(5), 8), train.pixels(rows_left[:5], 8)), "each keeps its image"


def test_noise_comes_after_and_the_subset_stays(plain: Config, tmp_path: Path) -> None:
    plain = plain.override("data.shapes.train_size", 200)
    train, _, _ = open_images(plain)
    ids, own = train.ids.to_pylist(), train.labels
    moved = [(ids[row], train.classes[(own[row] + 1) % len(train.classes)]) for row in (0, 5, 9)]
    corrected = plain.override("data.labels", str(csv(tmp_path / "labels.csv", moved)))
    clean, noisy = labels_of(corrected), labels_of(corrected.override("data.label_noise", 0.5))
    assert sum(clean[name] != noisy[name] for name in ids) == len(ids) // 2, "half of the corrected ones"
    half = {"data.subset": 0.5}
    assert open_images(plain.override(half))[0].ids.equals(open_images(corrected.override(half))[0].ids)


def test_the_same_images_stay_without_a_label(plain: Config, tmp_path: Path) -> None:
    """Else arms with and without a table would know the labels of other images."""
    plain = plain.override({"data.shapes.train_size": 200, "data.unlabelled": 0.5})
    train, _, _ = open_images(plain)
    ids = train.ids.to_pylist()
    moved = [(name, train.classes[row % len(train.classes)]) for row, name in enumerate(ids[::2])]
    corrected = plain.override("data.labels", str(csv(tmp_path / "labels.csv", [*moved, (ids[1], None)])))
    known, after = labels_of(plain), labels_of(corrected)
    assert len(known) == 100 and known.keys() - {ids[1]} == after.keys() and known != after


def test_images_that_are_held_out_keep_their_labels(plain: Config, tmp_path: Path) -> None:
    split = plain.override({"data.val_share": 0.3, "data.shapes.train_size": 200})
    train, val, _ = open_images(split)
    after_one = train.classes[(train.labels[0] + 1) % len(train.classes)]
    rows = [(train.ids[0].as_py(), after_one), *((name, after_one) for name in val.ids.to_pylist())]
    after, held, notes = open_images(split.override("data.labels", str(csv(tmp_path / "labels.csv", rows))))
    assert train.classes[after.labels[0]] == after_one and np.array_equal(held.labels, val.labels)
    assert f"{len(val)} rows of data.labels are of validation images, whose labels stay" in notes


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_table_may_name_images_that_shards_could_not_read(share: float, tmp_path: Path) -> None:
    """As it may with folders, of which the table was made."""
    for split in ("train", "test"):
        files: dict[str, bytes | str] = {}
        for row in range(12):
            bad = split == "train" and row == 3
            files |= {f"{row}.jpg": b"a web page" if bad else jpeg(row), f"{row}.cls": str(row % 2)}
        write_tar(tmp_path / f"{split}.tar", files)
    data = {"data.source": "webdataset", "data.root": str(tmp_path), "data.on_bad_image": "skip"}
    config = toy_config(tmp_path, text__weight=0.0).override({**data, "data.val_share": share})
    ids = open_images(config)[0].ids.to_pylist()
    bad, gone = ("train/3" if "/" in ids[0] else "3"), ids[0]
    table = csv(tmp_path / "labels.csv", [(bad, "1"), (gone, None)])
    train, _, notes = open_images(config.override("data.labels", str(table)))
    assert train.ids.to_pylist() == ids[1:] and "0 training labels were corrected, and 1 images left out" in notes[0]
    assert sum("left out of train" in note for note in notes) == 1, "of the one that cannot be read, once"
    with pytest.raises(UserError, match="1 of 1 image ids are of no training image"):
        open_images(config.override("data.labels", str(csv(tmp_path / "odd.csv", [("odd", None)]))))


def test_a_run_records_the_labels_it_was_trained_on(plain: Config, tmp_path: Path) -> None:
    train, _, _ = open_images(plain)
    name, label = train.ids[0].as_py(), train.classes[(train.labels[0] + 1) % len(train.classes)]
    config = plain.override("data.labels", str(csv(tmp_path / "labels.csv", [(name, label)])))
    first = open_record(config)
    assert first.schema.metadata != open_record(plain).schema.metadata
    csv(tmp_path / "labels.csv", [(name, None)])
    assert open_record(config).schema.metadata != first.schema.metadata, "the file's content counts, not its name"
    assert public(config).data.labels == "labels.csv", "model cards name no folder of this machine"


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["cannot read", "labels.csv"]),
        ("image_id,class\ncat/0.png,dog\n", ["needs columns image_id and label", "image_id, class"]),
        ("image_id;label\ncat/0.png;dog\n", ["separated by semicolons", "by commas"]),
        ("image_id,label,label\ncat/0.png,dog,cat\n", ["labels.csv has several columns label", "rename"]),
        ("image_id,label\ncat/9.png,dog\n", ["labels.csv:2", "1 of 1 image ids", "cat/9.png", "called as cat/0.png"]),
        ("image_id,label\ncat/0.png,dgo\n", ["labels.csv:2", "label 'dgo' is no class", "did you mean dog?"]),
        ("image_id,label\ncat/0.png,dog\ncat/0.png,cat\n", ["labels.csv:3", "second, different label", "line 2"]),
        ("image_id,label\ncat/0.png,dog\ncat/0.png,\n", ["labels.csv:3", "second, different label"]),
        ("image_id,label\n,dog\n", ["labels.csv:2", "no image_id"]),
        ("image_id,label\ncat/0.png\n", ["labels.csv:2", "1 columns instead of 2"]),
        ("image_id,label\n" + "".join(f"{name},\n" for name in TRAINING), ["leaves no training image"]),
        ("image_id,label\n" + "".join(f"dog/{n}.png,\n" for n in range(6)), ["leaves 1 classes", "dog"]),
    ],
)
def test_what_a_table_cannot_say_is_one_line(
    content: str | None, parts: list[str], command: Command, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "labels.csv").write_text(content)
    text = command.mistake([*command.baseline, "--data.labels", str(tmp_path / "labels.csv")])
    assert all(part in text for part in parts), text


def test_the_first_column_of_labels_counts_and_blank_columns_do_not(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("image_id,label_name,label,,\na,,cat,,\nb,dog,cat,,\n")
    assert read_label_table(path).labels.to_pylist() == [None, "dog"]


def test_a_name_of_two_classes_names_none(plain: Config, tmp_path: Path) -> None:
    train, val, _ = open_images(plain)
    train = replace(train, classes=("x", "x", *train.classes[2:]))
    for label, refused in (("x", True), (train.classes[2], False)):
        data = plain.override("data.labels", str(csv(tmp_path / "labels.csv", [(train.ids[0].as_py(), label)]))).data
        with pytest.raises(UserError, match="several classes are called 'x'") if refused else nullcontext():
            correct_labels(data, train, val, train.ids)


def test_a_repeated_equal_row_is_no_problem(tmp_path: Path) -> None:
    table = read_label_table(csv(tmp_path / "labels.csv", [("a", "x"), ("b", ""), ("a", " x "), ("b", None)]))
    assert (table.ids.to_pylist(), table.labels.to_pylist()) == (["a", "b"], ["x", None])
    with pytest.raises(UserError, match="no table of images"):
        read_label_table(tmp_path / "labels.xlsx")
