"""Images that cannot be read, and labels that are missing or unknown: one line, or left out and counted."""

import json
from collections.abc import Callable

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.command_here import (
    TRAINING,
    VALIDATION,
    Command,
    cut_off,
    draw,
    last_line,
    text_file,
    without_ray,
)
from tests.command_here import command as command
from tt_ray.data.prepare import open_images
from tt_ray.recipes import RECIPES
from tt_ray.training import preflight


def no_root(command: Command) -> None:
    command.root = command.root / "elsewhere"


def no_split(command: Command) -> None:
    (command.root / "test").rename(command.root / "val")


def empty_split(command: Command) -> None:
    for path in (command.root / "test").rglob("*.png"):
        path.unlink()


def another_class(command: Command) -> None:
    draw(command.root / "test" / "emu" / "0.png")


def cut_off_jpeg(command: Command) -> None:
    path = command.root / "train" / "cat" / "9.jpg"
    draw(path)
    path.write_bytes(path.read_bytes()[:-200])


def loose_image(command: Command) -> None:
    draw(command.root / "train" / "loose.png")


def empty_image(command: Command) -> None:
    (command.root / "train" / TRAINING[0]).write_bytes(b"")


BAD_IMAGES: list[tuple[Callable[[Command], None], list[str]]] = [
    (no_root, ["data.root", "elsewhere is not a folder", "--data.root"]),
    (no_split, ["images has no folder 'test'", "train, val", "--data.val_split"]),
    (empty_split, ["split 'test'", "has no images", "--data.root"]),
    (another_class, ["validation's classes are not in training", "'emu' (1 images)", "check the splits"]),
    (text_file, ["cannot read image", "images/train/dog/1.png", "--data.on_bad_image skip"]),
    (cut_off, ["cannot read image", "images/test/dog/1.png", "--data.on_bad_image skip"]),
    (cut_off_jpeg, ["cannot read image", "images/train/cat/9.jpg", "truncated", "--data.on_bad_image skip"]),
    (empty_image, ["cannot read image", "images/train/cat/0.png", "--data.on_bad_image skip"]),
    (loose_image, ["1 images have no label: loose.png", "class sub-folders"]),
]


@pytest.mark.parametrize(("spoil", "parts"), BAD_IMAGES)
def test_bad_images(spoil: Callable[[Command], None], parts: list[str], command: Command) -> None:
    spoil(command)
    text = command.mistake(command.baseline)
    for part in parts:
        assert part in text


def write_metadata(command: Command, split: str, suffix: str, labels: list[object]) -> None:
    """Metadata of a split in one of the three formats."""
    names = TRAINING if split == "train" else VALIDATION
    path, rows = command.root / split / f"metadata.{suffix}", list(zip(names, labels, strict=True))
    if suffix == "csv":
        path.write_text("file_name,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps({"file_name": name, "label": label}) + "\n" for name, label in rows))
    else:
        pq.write_table(pa.table({"file_name": names, "label": labels}), path)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("split", "spoilt", "part"),
    [
        ("train", "", "1 images have no label"),
        ("test", "", "1 images have no label"),
        ("test", "emu", "'emu' (1 images)"),
        ("train", " cat", "'cat' and ' cat'"),
        ("test", " cat", "'cat' and ' cat'"),
    ],
)
def test_metadata_with_a_bad_label(suffix: str, split: str, spoilt: str, part: str, command: Command) -> None:
    labels: list[object] = [name.split("/")[0] for name in (TRAINING if split == "train" else VALIDATION)]
    labels[1] = spoilt
    write_metadata(command, split, suffix, labels)
    text = command.mistake(command.baseline)
    assert part in text
    if not spoilt:
        assert f"{split}/metadata.{suffix}:{2 + (suffix == 'csv')} ({TRAINING[1]})" in text


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("wrong", "part"), [(5, "label is 5, but it names 2 classes"), (-1, "null, -1 or a blank name")]
)
def test_a_table_with_a_number_that_has_no_name(split: str, wrong: int, part: str, command: Command) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    image = (command.root / "train" / TRAINING[0]).read_bytes()
    root = command.storage.parent / "tables [v2]"
    root.mkdir()
    for name in ("train", "test"):
        labels = [0, wrong if name == split else 1, 1, 0] * 2
        table = pa.table({"image": [{"bytes": image, "path": None}] * 8, "label": labels}, features.arrow_schema)
        pq.write_table(table, root / f"{name}.parquet")
    command.monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(root.parent / "cache"))
    text = command.mistake([*command.baseline, "--data.source", "datasets", "--data.root", str(root)])
    assert part in text and f"{split}.parquet, row 1, id 1" in text


def test_metadata_that_is_not_used_is_said_on_the_screen(command: Command) -> None:
    (command.root / "metadata.csv").write_text("file_name,label\ntrain/cat/0.png,dog\n")
    draw(command.root / "test" / "loose.png")
    assert "loose.png" in command.mistake(command.baseline)
    (command.root / "test" / "loose.png").unlink()
    config = RECIPES["shapes_baseline"]().override("data.source", "imagefolder")
    config = config.override("data.root", str(command.root)).override("run.storage", str(command.storage))
    notes = open_images(config)[2]
    assert len(notes) == 2 and all("metadata.csv is ignored" in note for note in notes)
    assert list(preflight.prepare(config.override("train.batch_size", 4)).notes) == notes


def test_data_root_is_needed(command: Command) -> None:
    arguments = ["shapes_baseline", "--data.source", "imagefolder", "--run.storage", str(command.storage)]
    assert "data.root is empty" in command.mistake(arguments)


def test_unreadable_images_are_left_out_and_counted(command: Command) -> None:
    without_ray(command)
    text_file(command)
    cut_off(command)
    code, out, err = command.run([*command.baseline, "--train.epochs", "1", "--data.on_bad_image", "skip"])
    assert code == 0 and "error" not in err
    assert "1 unreadable images left out of train: dog/1.png" in out
    assert "1 unreadable images left out of test: dog/1.png" in out
    assert "on 3 validation images" in out


def test_labels_of_images_are_kept_and_noise_is_told_at_the_start(command: Command) -> None:
    without_ray(command)
    code, out, err = command.run([*command.baseline, "--train.epochs", "1"])
    assert code == 0 and "replaced" not in out and "label_noise" not in err
    asked = ["--data.label_noise", "0.5", "--run.name", "noisy"]
    code, out, err = command.run([*command.baseline, "--train.epochs", "1", *asked])
    assert code == 0 and "6 of 12 training labels were replaced" in out
    assert err.splitlines()[0].endswith("noisy; 0.5 of its training labels are made wrong (data.label_noise)")


@pytest.mark.parametrize("loaders", ["0", "1"])
def test_an_unreadable_image_of_a_large_split_stops_the_run_when_it_comes(loaders: str, command: Command) -> None:
    without_ray(command)
    text_file(command)
    large = ["--data.cache_gb", "0", "--data.num_loaders", loaders]
    code, out, err = command.run([*command.baseline, *large, "--train.epochs", "1"])
    assert (code, out) == (2, "")
    text = last_line(err, command.storage / "shapes_baseline")
    assert text.startswith("cannot read image") and "images/train/dog/1.png" in text
    assert text.endswith("--data.on_bad_image skip")
