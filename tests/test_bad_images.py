"""Images and folders that are not as expected, in every command: read, refused by name, or said to be left out."""

import base64
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from eval import evaluate
from eval.__main__ import main as eval_main
from eval.jobs import evaluation
from eval.tasks.origins import Place, Torchvision
from eval.tasks.registry import folder_task
from tests.command_here import SMALL, TRAINING, Command, command, draw, last_line, without_ray
from tt_ray import caption_images, convert_captions
from tt_ray.config import DataConfig
from tt_ray.data.sources.registry import drop_unreadable, open_source, open_unlabelled
from tt_ray.terminal.command import run_command
from tt_ray.terminal.errors import UserError

__all__ = ["command"]  # a fixture
ONE_EPOCH = ["--train.epochs", "1"]


def folder(root: Path, **changes: object) -> DataConfig:
    return DataConfig(**{"source": "imagefolder", "root": str(root), **changes})  # type: ignore[arg-type]


# What is left out is said


def aside(command: Command) -> None:
    """Files and folders that are no images, next to images of either split."""
    for split in ("train", "test"):
        (command.root / split / "cat" / "notes.txt").write_text("x")
        (command.root / split / ".DS_Store").write_text("x")
        draw(command.root / split / "cat" / "@eaDir" / "0.png")
    draw(command.root / "train" / "__MACOSX" / "0.png")


def expected(split: str) -> list[str]:
    folders = ["1 folders @eaDir", *["1 folders __MACOSX"] * (split == "train")]
    sentences = ["1 files of no known image format (1 .txt)", *folders, "1 hidden files and folders"]
    return [f"{sentence} left out of {split}" for sentence in sentences]


def test_training_says_what_is_left_out_at_the_start_and_in_the_end(command: Command) -> None:
    without_ray(command)
    aside(command)
    code, out, err = command.run([*command.baseline, *ONE_EPOCH])
    assert code == 0
    notes = [*expected("train"), *expected("test")]
    assert err.splitlines()[: len(notes)] == [f"note: {note}" for note in notes]
    assert err.splitlines()[len(notes)].startswith("starting run")
    assert all(f"note: {note}\n" in out for note in notes)
    result = json.loads((command.storage / "shapes_baseline" / "result.json").read_text())
    assert result["notes"] == notes


def test_a_held_out_validation_split_repeats_nothing(command: Command) -> None:
    without_ray(command)
    aside(command)
    code, out, _ = command.run([*command.baseline, *ONE_EPOCH, "--data.val_share", "0.3"])
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("note")] == [f"note: {n}" for n in expected("train")]


def test_a_mistake_is_one_line_whatever_is_left_out(command: Command) -> None:
    aside(command)
    draw(command.root / "test" / "emu" / "0.png")
    assert "'emu' (1 images)" in command.mistake(command.baseline)


def test_captioning_says_what_is_left_out(command: Command, tmp_path: Path) -> None:
    aside(command)
    made = ["--template", "a {label}", "--out", str(tmp_path / "captions.parquet")]
    code, _, err = run(command, caption_images.main, ["--data.root", str(command.root), *made])
    assert code == 0 and err.splitlines() == [f"note: {note}" for note in expected("train")]
    assert list(open_unlabelled(folder(command.root), "train").left_out) == expected("train")


def test_evaluation_says_what_is_left_out(command: Command) -> None:
    aside(command)
    task = folder_task("mine", command.root)
    assert list(task.left_out) == [f"mine: {note}" for split in ("train", "test") for note in expected(split)]
    where = ["--tasks", "mine", "--task-root", f"mine={command.root}", "--out", str(command.storage / "out")]
    said: list[str] = []

    def stop(resources: object, display: object) -> str:
        raise UserError("that is all")

    command.monkeypatch.setattr(evaluation, "start_ray", stop)
    command.monkeypatch.setattr(evaluate.Display, "say", lambda _, text: said.append(text))
    run(command, eval_main, ["--models", "toy=random:test_resnet", "--protocols", "knn", *where])
    assert said == [f"note: {note}" for note in task.left_out]


def run(command: Command, main: Callable[[list[str]], None], arguments: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    command.monkeypatch.setattr(sys, "argv", ["prog", *arguments])
    code = 0
    try:
        run_command(main)
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = command.capsys.readouterr()
    return code, out, err


# Class folders


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_of_which_nothing_is_read(split: str, command: Command) -> None:
    for number in range(3):
        (command.root / split / "eel").mkdir(exist_ok=True)
        (command.root / split / "eel" / f"{number}.xyz").write_bytes(b"x")
    for root in (command.root, command.root):
        text = command.mistake(command.baseline)
        assert f"{root}/{split}/eel" in text and "3 .xyz" in text
    with pytest.raises(UserError, match="eel"):
        folder_task("mine", command.root)


def test_a_split_of_which_nothing_is_read_says_what_is_there(command: Command) -> None:
    for path in (command.root / "test").rglob("*.png"):
        path.rename(path.with_suffix(".xyz"))
    text = command.mistake(command.baseline)
    assert "has no images, but 4 files of no known image format (4 .xyz)" in text


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".avif", ".jp2", ".JPG", ".tga", ".webp", ".mpo", ".apng"])
def test_whatever_pillow_opens_is_read(suffix: str, tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        path = tmp_path / "train" / name / f"0{suffix}"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (16, 12), (200 * number, 90, 40)).save(path)
    source = open_source(folder(tmp_path), "train", need_captions=False)
    assert source.ids.to_pylist() == [f"cat/0{suffix}", f"dog/0{suffix}"] and source.classes == ("cat", "dog")
    pixels = source.pixels(np.array([0, 1]), 4)[:, 2, 2].astype(int)
    assert np.abs(pixels - [[0, 90, 40], [200, 90, 40]]).max() < 12
    rows = [{"file_name": f"{name}/0{suffix}", "label": name} for name in ("cat", "dog")]
    (tmp_path / "train" / "metadata.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(UserError, match="1 images have no row"):
        open_source(folder(tmp_path), "train", need_captions=False)


def test_torchvision_sets_of_files_are_decoded_here(tmp_path: Path) -> None:
    """A JPEG that is to be turned, and a PNG (called .jpg, as there are in some sets) with a transparent pixel."""
    meta, images = tmp_path / "food-101" / "meta", tmp_path / "food-101" / "images" / "pie"
    meta.mkdir(parents=True)
    images.mkdir(parents=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (30, 20)).save(images / "0.jpg", exif=exif)
    Image.new("RGBA", (30, 20)).save(images / "1.jpg", "PNG")
    for split in ("train", "test"):
        (meta / f"{split}.json").write_text(json.dumps({"pie": ["pie/0", "pie/1"]}))
    config = DataConfig(source="torchvision", name="Food101", root=str(tmp_path))
    ours = open_source(config, "train", need_captions=False)
    theirs = Torchvision("Food101", {"train": "train"}).open("train", Place(tmp_path, True)).source
    for source in (ours, theirs):
        assert source.read(0).size == (20, 30)
        assert source.read(1).getpixel((0, 0)) == (255, 255, 255)


# Names and links


def strange(command: Command) -> bytes:
    path = os.fsencode(command.root / "train" / "cat") + b"/k\xe4fer.png"
    with open(path, "wb") as file, open(command.root / "train" / TRAINING[0], "rb") as whole:
        file.write(whole.read())
    return path


def test_a_name_that_is_not_utf8_in_every_command(command: Command, tmp_path: Path) -> None:
    strange(command)
    out = tmp_path / "captions.parquet"
    captioning = ["--data.root", str(command.root), "--out", str(out)]
    converting = [str(tmp_path / "none.csv"), "--out", str(out), "--ids", str(command.root / "train")]
    (tmp_path / "none.csv").write_text("image_id,caption\ncat/0.png,a cat\n")
    evaluating = ["--models", "toy=timm:resnet10t", "--tasks", "mine", "--task-root", f"mine={command.root}"]
    texts = [command.mistake(command.baseline)]
    for main, arguments in (
        (caption_images.main, [*captioning, "--template", "a {label}"]),
        (convert_captions.main, converting),
        (eval_main, [*evaluating, "--protocols", "knn", "--out", str(tmp_path / "out")]),
    ):
        code, printed, err = run(command, main, arguments)
        assert (code, printed) == (2, ""), err
        texts.append(err)
    for text in texts:
        assert "train/cat/k\\xe4fer.png is not UTF-8" in text and "Traceback" not in text
    assert not out.exists() and not (tmp_path / "out").exists()


def test_a_root_that_is_not_utf8(command: Command) -> None:
    text = command.mistake([*command.baseline, "--data.root", os.fsdecode(b"/data/k\xe4fer")])
    assert "/data/k\\xe4fer is not UTF-8" in text


def test_a_link_to_its_parent(command: Command) -> None:
    without_ray(command)
    (command.root / "train" / "cat" / "again").symlink_to("..")
    code, out, err = command.run([*command.baseline, *ONE_EPOCH])
    assert code == 0 and err.startswith("note: 1 links to folders that are listed already left out of train\n")
    assert "on 4 validation images" in out


@pytest.mark.parametrize("skip", [False, True])
def test_a_link_to_nothing(skip: bool, command: Command) -> None:
    (command.root / "train" / "cat" / "9.png").symlink_to("none.png")
    if not skip:
        text = command.mistake(command.baseline)
        assert "train/cat/9.png" in text and "No such file" in text
        return
    without_ray(command)
    code, out, err = command.run([*command.baseline, *ONE_EPOCH, "--data.on_bad_image", "skip"])
    assert code == 0
    note = "note: 1 unreadable images left out of train: cat/9.png"
    assert note in out and err.splitlines()[0] == note


# What cannot be decoded


def huge(path: Path) -> None:
    Image.new("1", (9000, 9000)).save(path)


def wide(path: Path) -> None:
    Image.new("I", (8, 8)).save(path.with_suffix(".tif"))
    path.unlink()


def floats(path: Path) -> None:
    Image.fromarray(np.full((8, 8), 300, np.float32)).save(path.with_suffix(".tif"))
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"), [(huge, "9000 x 9000 pixels"), (wide, "signed integers"), (floats, "floats go from 300")]
)
def test_what_is_refused_can_be_skipped(spoil: Callable[[Path], None], reason: str, command: Command) -> None:
    path = command.root / "train" / TRAINING[2]
    spoil(path)
    text = command.mistake(command.baseline)
    assert reason in text and str(path.with_suffix("")) in text and "--data.on_bad_image skip" in text
    source = drop_unreadable(open_source(folder(command.root), "train", need_captions=False))
    assert [os.path.splitext(name)[0] for name in source.skipped] == [os.path.splitext(TRAINING[2])[0]]


def test_odd_images_train_like_others(command: Command) -> None:
    """16-bit PGM, an orientation tag, 3 MB of text, a line of pixels: none stops a run."""
    without_ray(command)
    root = command.root / "train" / "cat"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a" * 3_000_000, zip=True)
    Image.new("RGB", (30, 20)).save(root / "turned.jpg", exif=exif)
    Image.new("RGB", (30, 20)).save(root / "text.png", pnginfo=text)
    Image.new("RGB", (20000, 1)).save(root / "line.png")
    (root / "grey.pgm").write_bytes(b"P5 4 4 65535\n" + bytes(32))
    for augment in ("crop_flip", "three_augment"):
        named = ["--run.name", augment, "--data.augment", augment, "--data.num_loaders", "0"]
        code, _, err = command.run([*command.baseline, *ONE_EPOCH, *named])
        assert code == 0, err


# Tables


def encoded(colour: tuple[int, int, int] = (255, 0, 0)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


STRUCT = pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())])
TYPES = {
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary_view(),
    "fixed_size_binary": pa.binary(len(encoded())),
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "struct of views": STRUCT,
}


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("kind", TYPES)
def test_images_of_all_arrow_types(kind: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(encoded())
    value: object = encoded()
    if "string" in kind:
        value = str(tmp_path / "0.png")
    elif "struct" in kind:
        value = {"bytes": encoded(), "path": None}
    table = pa.table({"image": pa.array([value] * 2, TYPES[kind]), "label": [0, 1]})
    path = tmp_path / f"images.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    source = open_source(DataConfig(source="datasets", root=str(path)), "train", need_captions=False)
    assert source.read(1).getpixel((0, 0)) == (255, 0, 0)
    assert source.pixels(np.arange(2), 4)[1, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", ["base64", "data URL", "long path", "no image"])
def test_texts_in_an_image_column_are_not_printed_whole(name: str, command: Command, tmp_path: Path) -> None:
    text = {
        "base64": base64.b64encode(bytes(100_000)).decode(),
        "data URL": f"data:image/png;base64,{base64.b64encode(encoded() * 50).decode()}",
        "long path": "/".join(["folder"] * 500),
        "no image": str(tmp_path / "page.png"),
    }[name]
    (tmp_path / "page.png").write_text("not found")
    root = tmp_path / "tables"
    root.mkdir()
    for split in ("train", "test"):
        pq.write_table(pa.table({"image": [text] * 8, "label": [0, 1] * 4}), root / f"{split}.parquet")
    where = ["--data.source", "datasets", "--data.root", str(root), "--run.storage", str(command.storage)]
    line = command.mistake(["shapes_baseline", *where, *SMALL])
    assert "cannot read image" in line and "row 0" in line and text[:20] in line and len(line) < 700


def test_long_ids_are_not_printed_whole(tmp_path: Path) -> None:
    ids = [f"{number}" * 5000 for number in range(3)]
    pq.write_table(pa.table({"image": [b"x"] * 3, "label": [0] * 3, "name": ids}), tmp_path / "train.parquet")
    config = DataConfig(source="datasets", root=str(tmp_path), id_column="name")
    source = open_source(config, "train", need_captions=False)
    for call in (lambda: source.read(0), lambda: drop_unreadable(source)):
        with pytest.raises(UserError) as caught:
            call()
        assert len(str(caught.value)) < 1500


def test_an_unreadable_image_of_a_large_split_is_named_when_it_comes(command: Command) -> None:
    without_ray(command)
    floats(command.root / "train" / TRAINING[7])
    code, out, err = command.run([*command.baseline, *ONE_EPOCH, "--data.cache_gb", "0", "--data.num_loaders", "0"])
    assert (code, out) == (2, "")
    assert "images/train/dog/1.tif (its floats go" in last_line(err, command.storage / "shapes_baseline")
