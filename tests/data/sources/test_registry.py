"""Sources: real files of every kind, and one-line errors for what users get wrong."""

import json
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tt_ray.config import DataConfig
from tt_ray.data.sources.registry import drop_unreadable, open_source, open_splits
from tt_ray.terminal.errors import UserError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
COLOURS = {"a/0.jpg": RED, "a/1.png": GREEN, "b/2.jpg": BLUE}


def save(path: Path, colour: tuple[int, ...], size: tuple[int, int] = (20, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB" if len(colour) == 3 else "RGBA", size, colour).save(path)


def rows_of(labels: Iterable[Any], **more: Any) -> list[dict[str, Any]]:
    rows = [{"file_name": name, "label": label} for name, label in zip(COLOURS, labels, strict=True)]
    return [{**row, **{key: values[i] for key, values in more.items()}} for i, row in enumerate(rows)]


def write_split(folder: Path, rows: list[dict[str, Any]] | None) -> None:
    for name, colour in COLOURS.items():
        save(folder / name, colour)
    if rows is not None:
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def folder_config(root: Path, **changes: Any) -> DataConfig:
    return DataConfig(**{"source": "imagefolder", "root": str(root), **changes})


def message(call: Callable[[], object]) -> str:
    """The text of the UserError that a call raises, which must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Folders


def test_folder_with_metadata(tmp_path: Path) -> None:
    captions = ["a red thing", " ", None]
    names = ["cat", "dog", "dog"]
    write_split(tmp_path / "train", rows_of([0, 2, 2], caption=captions, label_name=names))
    source = open_source(folder_config(tmp_path), "train", need_captions=True)
    assert source.ids.to_pylist() == list(COLOURS)
    assert source.labels.tolist() == [0, 2, 2] and source.labels.dtype == np.int64
    assert source.classes == ("cat", "1", "dog")
    assert source.captions is not None and source.captions.to_pylist() == ["a red thing", None, None]
    pixels = source.pixels(np.array([2, 0]), 8)
    assert pixels.shape == (2, 8, 8, 3) and pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels[:, 4, 4], [BLUE, RED], atol=3)
    image = source.read(1)
    assert image.mode == "RGB" and image.size == (20, 12) and image.getpixel((3, 3)) == GREEN


def test_folder_with_text_labels_is_numbered_by_training(tmp_path: Path) -> None:
    write_split(tmp_path / "train", rows_of(["zebra", "ant", "dog"]))
    write_split(tmp_path / "test", rows_of(["zebra", "zebra", "dog"]))
    assert open_source(folder_config(tmp_path), "val", False).labels.tolist() == [1, 1, 0]
    train, val = open_splits(folder_config(tmp_path), need_captions=False)
    assert train.classes == val.classes == ("ant", "dog", "zebra")
    assert train.labels.tolist() == [2, 0, 1] and val.labels.tolist() == [2, 2, 1]
    assert train.captions is None


def test_class_folders(tmp_path: Path) -> None:
    write_split(tmp_path / "train", None)
    save(tmp_path / "train/a/deeper/3.png", RED)
    save(tmp_path / "train/a/.hidden.png", RED)
    (tmp_path / "train/a/notes.txt").write_text("not an image")
    source = open_source(folder_config(tmp_path), "train", need_captions=False)
    assert source.ids.to_pylist() == ["a/0.jpg", "a/1.png", "a/deeper/3.png", "b/2.jpg"]
    assert source.classes == ("a", "b") and source.labels.tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(source.pixels(np.array([3]), 4)[0, 0, 0], BLUE, atol=3)


def test_captions_without_labels_take_the_sub_folder(tmp_path: Path) -> None:
    write_split(tmp_path / "train", [{"file_name": f"./{name}", "caption": name} for name in COLOURS])
    source = open_source(folder_config(tmp_path), "train", need_captions=True)
    assert source.classes == ("a", "b") and source.labels.tolist() == [0, 0, 1]
    text = message(lambda: open_source(folder_config(tmp_path, label_column="captoin"), "train", False))
    assert "did you mean caption?" in text and "file_name" in text and "--data.label_column" in text


def test_missing_folders(tmp_path: Path) -> None:
    assert "--data.root" in message(lambda: open_source(folder_config(Path("")), "train", False))
    assert "--data.root" in message(lambda: open_source(DataConfig(source="imagefolder"), "train", False))
    assert "/none is not a folder" in message(lambda: open_source(folder_config(tmp_path / "none"), "train", False))
    parquet = message(lambda: open_source(DataConfig(source="imagefolder", root="s3://b/x"), "train", False))
    assert "data.root s3://b/x is a URI" in parquet and "Parquet" in parquet
    write_split(tmp_path / "training", None)
    text = message(lambda: open_source(folder_config(tmp_path), "train", False))
    assert "did you mean training?" in text and "--data.train_split" in text


def test_empty_splits(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert "has no images" in message(lambda: open_source(folder_config(tmp_path), "train", False))
    (tmp_path / "train/metadata.jsonl").write_text("")
    assert "has no images" in message(lambda: open_source(folder_config(tmp_path), "train", False))


def test_metadata_that_does_not_fit_the_files(tmp_path: Path) -> None:
    gone = [{"file_name": f"gone{i}.jpg", "label": 0} for i in range(7)]
    write_split(tmp_path / "train", rows_of([0, 1, 1]) + gone)
    text = message(lambda: open_source(folder_config(tmp_path), "train", False))
    assert "7 rows" in text and "gone4.jpg" in text and "gone5.jpg" not in text and "2 more" in text
    write_split(tmp_path / "train", rows_of([0, 1, 1])[:1])
    text = message(lambda: open_source(folder_config(tmp_path), "train", False))
    assert "2 images have no row" in text and "b/2.jpg" in text
    write_split(tmp_path / "train", rows_of([0, 1, 1]) + rows_of([0, 1, 1])[1:2])
    assert "metadata.jsonl:4 (a/1.png)" in message(lambda: open_source(folder_config(tmp_path), "train", False))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (rows_of([0, None, None]), "2 images have no label: "),
        (rows_of([0, "dog", 1]), "all integers or all text, but are int, str"),
        (rows_of([0.5, 1.0, 1.0]), "all integers or all text, but are float"),
        (rows_of([0, -1, 1]), "label -1 is not a class number"),
        (rows_of([0, 10**9, 1]), "label 1000000000 is not a class number"),
        (rows_of([0, 0, 1], label_name=["cat", "dog", "cow"]), "label 0 is called both 'cat' and 'dog'"),
        (
            rows_of([0, 0, 1], caption=["x", ["y"], "z"]),
            "metadata.jsonl:2 is not a row with texts",
        ),
        ([{"label": 0}], "metadata.jsonl:1 needs a text file_name, but has none"),
    ],
)
def test_metadata_with_bad_rows(tmp_path: Path, rows: list[dict[str, Any]], expected: str) -> None:
    write_split(tmp_path / "train", rows)
    assert expected in message(lambda: open_source(folder_config(tmp_path), "train", False))


def test_metadata_in_another_encoding(tmp_path: Path) -> None:
    write_split(tmp_path / "train", rows_of([0, 1, 1]))
    with (tmp_path / "train/metadata.jsonl").open("ab") as file:
        file.write('{"file_name": "x.png", "label": 0, "caption": "ein Käfer"}\n'.encode("latin-1"))
    text = message(lambda: open_source(folder_config(tmp_path), "train", False))
    assert "train/metadata.jsonl:4: not UTF-8" in text


def test_metadata_with_a_broken_line(tmp_path: Path) -> None:
    write_split(tmp_path / "train", rows_of([0, 1, 1]))
    with (tmp_path / "train/metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "a/')
    assert "metadata.jsonl:5: not JSON" in message(lambda: open_source(folder_config(tmp_path), "train", False))


def test_loose_images_have_no_class(tmp_path: Path) -> None:
    write_split(tmp_path / "train", None)
    save(tmp_path / "train/loose.jpg", RED)
    assert "1 images have no label: loose.jpg" in message(lambda: open_source(folder_config(tmp_path), "train", False))


def test_missing_captions_name_both_options(tmp_path: Path) -> None:
    write_split(tmp_path / "train", rows_of([0, 1, 1], captions=["x", "y", "z"]))
    write_split(tmp_path / "test", None)
    text = message(lambda: open_source(folder_config(tmp_path), "train", True))
    assert "--data.caption_column" in text and "--text.captions" in text and "did you mean captions?" in text
    text = message(lambda: open_source(folder_config(tmp_path), "val", True))
    assert "--data.caption_column" in text and "--text.captions" in text
    assert open_source(folder_config(tmp_path), "train", False).captions is None
    write_split(tmp_path / "train", rows_of([0, 1, 1], caption=["", None, " "]))
    assert open_source(folder_config(tmp_path), "train", False).captions is None
    text = message(lambda: open_source(folder_config(tmp_path), "train", True))
    assert "no image in split 'train'" in text and "--data.caption_column" in text and "--text.captions" in text


def test_validation_needs_no_captions(tmp_path: Path) -> None:
    write_split(tmp_path / "train", rows_of(["a", "b", "b"], caption=["x", "y", "z"]))
    write_split(tmp_path / "test", None)
    train, val = open_splits(folder_config(tmp_path), need_captions=True)
    assert train.captions is not None and val.captions is None


# Classes of the two splits


def test_a_class_that_training_lacks_is_refused(tmp_path: Path) -> None:
    write_split(tmp_path / "train", rows_of(["cat", "cat", "dog"]))
    write_split(tmp_path / "test", rows_of(["cow", "cow", "dog"]))
    text = message(lambda: open_splits(folder_config(tmp_path), False))
    assert "1 of validation's classes are not in training: 'cow' (2 images)" in text
    write_split(tmp_path / "train", rows_of([0, 0, 2]))
    for labels in ([1, 1, 0], [0, 0, 3]):  # a number that training leaves out, and one above all of training's
        write_split(tmp_path / "test", rows_of(labels))
        text = message(lambda: open_splits(folder_config(tmp_path), False))
        assert f"'{max(labels)}' ({labels.count(max(labels))} images)" in text


def test_numbers_are_matched_by_name(tmp_path: Path) -> None:
    write_split(tmp_path / "train", rows_of([0, 1, 2], label_name=["ant", "bee", "cow"]))
    write_split(tmp_path / "test", rows_of([1, 1, 0], label_name=["ant", "ant", "bee"]))
    _, val = open_splits(folder_config(tmp_path), False)
    assert val.labels.tolist() == [0, 0, 1] and val.classes == ("ant", "bee", "cow")
    write_split(tmp_path / "train", rows_of([0, 1, 2], label_name=["crane", "bee", "crane"]))
    assert "labels 0 and 2 are both called 'crane'" in message(lambda: open_splits(folder_config(tmp_path), False))


# Decoding


@pytest.mark.parametrize("threads", [1, 3])
def test_pixels_keep_the_order_of_rows(tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(150):
        save(tmp_path / f"train/a/{i:03}.png", (i, 0, 0), (4, 4))
    source = open_source(folder_config(tmp_path), "train", False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rows = np.random.default_rng(0).permutation(150)
    assert (source.pixels(rows, 4)[:, 2, 2, 0] == rows).all()
    assert source.pixels(rows[:0], 4).shape == (0, 4, 4, 3)


def test_transparency_stands_on_white(tmp_path: Path) -> None:
    folder = tmp_path / "train/a"
    save(folder / "rgba.png", (0, 0, 0, 0))
    save(folder / "half.png", (255, 0, 0, 128))
    palette = Image.new("P", (9, 9), 1)
    palette.putpalette([*RED, *BLUE])
    palette.save(folder / "index.png", transparency=1)
    palette.save(folder / "bytes.png", transparency=b"\x00\x80")
    palette.save(folder / "opaque.gif")
    Image.new("LA", (9, 9), (0, 0)).save(folder / "la.png")
    Image.fromarray(np.full((9, 9), 0x80FF, np.uint16)).save(folder / "sixteen.png")
    Image.new("CMYK", (9, 9), (0, 0, 0, 255)).save(folder / "cmyk.jpg")
    Image.new("L", (9, 9), 77).save(folder / "grey.jpg")
    source = open_source(folder_config(tmp_path), "train", False)
    expected = {
        "rgba.png": (255, 255, 255),
        "half.png": (255, 127, 127),
        "index.png": (255, 255, 255),
        "bytes.png": (127, 127, 255),
        "opaque.gif": BLUE,
        "la.png": (255, 255, 255),
        "sixteen.png": (128, 128, 128),
        "cmyk.jpg": (0, 0, 0),
        "grey.jpg": (77, 77, 77),
    }
    pixels = source.pixels(np.arange(len(source)), 6)
    for row, name in enumerate(source.ids.to_pylist()):
        np.testing.assert_allclose(pixels[row, 3, 3], expected[name[2:]], atol=1, err_msg=name)
        np.testing.assert_allclose(np.asarray(source.read(row))[3, 3], expected[name[2:]], atol=1, err_msg=name)


def test_large_jpegs_look_like_a_full_decode(tmp_path: Path) -> None:
    y, x = np.mgrid[:600, :900] / 20.0
    smooth = 127 + 60 * np.stack([np.sin(x), np.cos(y), np.sin(x + y)], 2) + np.random.default_rng(0).normal(0, 10)
    path = tmp_path / "train/a/large.jpg"
    path.parent.mkdir(parents=True)
    Image.fromarray(smooth.astype(np.uint8)).save(path, quality=95)
    source = open_source(folder_config(tmp_path), "train", False)
    with Image.open(path) as image:
        full = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    difference = abs(source.pixels(np.array([0]), 32)[0] - full)  # 900 / 8 is no integer: also tests the box
    assert difference.mean() < 1 and full.std() > 15
    assert source.read(0).size == (900, 600), "read gives all pixels"


def damaged_split(root: Path) -> list[str]:
    """A class folder with three good and four bad images, whose ids are returned."""
    folder = root / "train/a"
    for name in ("0.jpg", "3.png", "9.jpg"):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(folder / name)
    whole = (folder / "0.jpg").read_bytes()
    (folder / "1.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "2.jpg").write_bytes(b"")
    (folder / "4.jpg").write_bytes(b"<html>404</html>")
    png = (folder / "3.png").read_bytes()
    (folder / "5.png").write_bytes(png[: len(png) // 2])
    return ["a/1.jpg", "a/2.jpg", "a/4.jpg", "a/5.png"]


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    bad = damaged_split(tmp_path)
    source = open_source(folder_config(tmp_path), "train", False)
    for row, name in enumerate(source.ids.to_pylist()):
        calls = [lambda row=row: source.read(row), lambda row=row: source.pixels(np.array([row]), 8)]
        for call in calls:
            if name in bad:
                text = message(call)
                assert f"{tmp_path}/train/{name}" in text and "training leaves such images out" in text
            else:
                call()


def test_drop_unreadable(tmp_path: Path) -> None:
    bad = damaged_split(tmp_path)
    source = open_source(folder_config(tmp_path), "train", False)
    done: list[int] = []
    kept = drop_unreadable(source, done.append)
    assert kept.skipped == tuple(bad) and done == list(range(1, 8))
    assert kept.ids.to_pylist() == ["a/0.jpg", "a/3.png", "a/9.jpg"] and len(kept) == 3
    assert (kept.pixels(np.array([1]), 64)[0] == np.asarray(source.read(3))).all()
    assert drop_unreadable(kept) is kept
    for name in ("0.jpg", "3.png", "9.jpg"):
        (tmp_path / "train/a" / name).write_bytes(b"")
    assert "none of 3 images can be read" in message(lambda: drop_unreadable(kept))


def test_a_class_of_which_no_image_can_be_read_is_refused(tmp_path: Path) -> None:
    write_split(tmp_path / "train", None)
    (tmp_path / "train/b/2.jpg").write_bytes(b"")
    source = open_source(folder_config(tmp_path), "train", False)
    text = message(lambda: drop_unreadable(source))
    assert "no image can be read of 1 classes: 'b' (1 images), such as b/2.jpg" in text


def test_readers_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    write_split(tmp_path / "train", None)
    source = open_source(folder_config(tmp_path), "train", False)
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.pixels(np.arange(3), 8) == source.pixels(np.arange(3), 8)).all()


def test_shapes_are_asked_for_in_their_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tt_ray.data.sources import shapes

    asked: list[tuple[object, ...]] = []
    write_split(tmp_path / "train", rows_of([0, 1, 1], caption=["x", "y", "z"]))
    stand_in = open_source(folder_config(tmp_path), "train", need_captions=True)
    monkeypatch.setattr(shapes, "shapes_source", lambda *args: asked.append(args) or stand_in)
    config = DataConfig(image_size=48)
    assert open_source(config, "val", need_captions=True) is stand_in
    assert asked == [(config.shapes, "val", 48)]


@pytest.mark.parametrize("name", ["train", "./train", "train/"])
def test_no_model_is_validated_on_its_training_images(tmp_path: Path, name: str) -> None:
    write_split(tmp_path / "train", rows_of(["dog"] * len(COLOURS)))
    with pytest.raises(UserError, match=r"both 'train': .* hold images out with --data\.val_share 0\.1$") as error:
        open_splits(folder_config(tmp_path, val_split=name), need_captions=False)
    assert "\n" not in str(error.value)
    train, val = open_splits(folder_config(tmp_path, val_split=name, val_share=0.4), need_captions=False)
    assert not {*train.ids.to_pylist()} & {*val.ids.to_pylist()}
