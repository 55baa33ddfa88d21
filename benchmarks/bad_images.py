"""Bad inputs that are images and labels: in folders, and in tables."""

import base64
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from benchmarks.bad_input import Case, prepare
from benchmarks.bad_settings import ALONE, REFUSED, TINY, writes

Make = Callable[[Path], object]
CLASSES = ("cat", "dog")
FOLDERS = f"shapes_baseline --data.source imagefolder --data.root images {TINY}"
TABLE = f"shapes_baseline --data.source datasets --data.root table {TINY}"
LEARNS = "--train.epochs 30 --optim.lr 2e-3 --data.augment none"
"""Two classes of which one is dark and one is bright are told apart then, if they are read as they are."""
RIGHT = {0: ("top-1 100.00 % on 4 validation images",)}
"""Of all of them: a class that is not read leaves fewer."""


def folders(what: str, make: Make, *parts: str, more: str = "") -> Case:
    """A training on folders of images that is refused; `make` spoils them."""
    command = f"tt_ray.train {more}".strip()
    return Case(what, command, {REFUSED: parts}, lambda folder: (images(folder), make(folder)), base=FOLDERS)


def accepted(what: str, make: Make, right: dict[int, tuple[str, ...]], base: str, more: str) -> Case:
    """A training without Ray on what must be read as it is, or refused in the right words."""
    return Case(what, f"tt_ray.train {more}".strip(), right, make, ALONE, base=base)


def table(what: str, make: Make, *parts: str, more: str = "") -> Case:
    """A training on Parquet files that is refused."""
    return Case(what, f"tt_ray.train {more}".strip(), {REFUSED: parts}, make, base=TABLE)


# --- images -----------------------------------------------------------------------------------------------------------


def image(path: Path, number: int = 0, shade: int | None = None) -> None:
    """An image of noise, or of one shade with a little noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    low, high = (0, 256) if shade is None else (shade, shade + 16)
    pixels = np.random.default_rng(number).integers(low, high, (40, 48, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def shade_of(name: str) -> int:
    """Dark or bright, by class."""
    return 48 if name == CLASSES[0] else 192


def images(folder: Path) -> None:
    """Splits train and test of two classes that can be told apart."""
    for split, count in (("train", 6), ("test", 2)):
        for name in CLASSES:
            for number in range(count):
                image(folder / "images" / split / name / f"{number}.png", number, shade_of(name))


def in_mode(suffix: str, encode: Callable[[np.ndarray], Image.Image]) -> Make:
    """The two classes as 16-bit greys of 44,000 and 60,000, in a file format."""

    def make(folder: Path) -> None:
        for split, count in (("train", 6), ("test", 2)):
            for name, grey in zip(CLASSES, (44_000, 60_000), strict=True):
                for number in range(count):
                    path = folder / "images" / split / name / f"{number}{suffix}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    pixels = np.random.default_rng(number).integers(grey, grey + 500, (36, 40), np.uint16)
                    encode(pixels).save(path)

    return make


def whole(pixels: np.ndarray) -> Image.Image:
    """32-bit greys."""
    return Image.fromarray(pixels.astype(np.int32))


def floats(pixels: np.ndarray) -> Image.Image:
    """Greys from 0 to 1."""
    return Image.fromarray((pixels / 65535).astype(np.float32))


def renamed(suffix: str, only: str = "") -> Make:
    """Images (of one class) under another suffix."""

    def make(folder: Path) -> None:
        images(folder)
        for path in sorted((folder / "images").rglob("*.png")):
            if only in path.parts or not only:
                if suffix == ".heic":
                    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
                else:
                    Image.open(path).save(path, "JPEG")
                path.rename(path.with_suffix(suffix))

    return make


def one_file(content: bytes) -> Make:
    """Replaces a training image."""
    return lambda folder: (folder / "images" / "train" / "dog" / "1.png").write_bytes(content)


def cut_off(folder: Path) -> None:
    """Takes the end off a validation image."""
    path = folder / "images" / "test" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:-500])


def thin(folder: Path) -> None:
    """An image of 20,000 x 1 px, among others that are as they should be."""
    images(folder)
    Image.new("RGB", (20_000, 1)).save(folder / "images" / "train" / "cat" / "thin.png")


def wordy(folder: Path) -> None:
    """PNG files with 3 MB of compressed text."""
    images(folder)
    about = PngImagePlugin.PngInfo()
    about.add_text("Comment", "x" * 3_000_000, zip=True)
    for path in sorted((folder / "images").rglob("*.png")):
        Image.open(path).save(path, pnginfo=about)


def looped(folder: Path) -> None:
    """A symbolic link to its own parent."""
    images(folder)
    os.symlink("..", folder / "images" / "train" / "cat" / "again")


def latin(folder: Path) -> None:
    """A name in Latin-1, which is no UTF-8."""
    image(folder / "images" / "train" / "cat" / os.fsdecode(b"k\xe4fer.png"))


def zebras(folder: Path) -> None:
    """Another name for a class, in both splits."""
    for split in ("train", "test"):
        (folder / "images" / split / "cat").rename(folder / "images" / split / "zebra")


def brackets(folder: Path) -> None:
    """A root that looks like a pattern."""
    images(folder)
    (folder / "images").rename(folder / "im [v2]")


def moved(what: str, to: str) -> Make:
    """Moves a folder of images."""
    return lambda folder: (folder / "images" / what).rename(folder / "images" / to)


def changed(change: Make) -> Make:
    """Images that are not what an unfinished run has begun with."""

    def make(folder: Path) -> None:
        images(folder)
        prepare(f"tt_ray.train {FOLDERS}", folder, ALONE)
        (folder / "runs" / "shapes_baseline" / "result.json").unlink()
        change(folder)

    return make


IMAGES = [
    accepted("16-bit grey PGM", in_mode(".pgm", Image.fromarray), RIGHT, FOLDERS, LEARNS),
    accepted("16-bit grey PNG", in_mode(".png", Image.fromarray), RIGHT, FOLDERS, LEARNS),
    accepted("32-bit grey TIFF", in_mode(".tif", whole), {**RIGHT, 2: (".tif",)}, FOLDERS, LEARNS),
    accepted("float TIFF", in_mode(".tif", floats), {**RIGHT, 2: (".tif",)}, FOLDERS, LEARNS),
    accepted("class of .jfif files", renamed(".jfif", "dog"), RIGHT, FOLDERS, LEARNS),
    accepted("class of .jpe files", renamed(".jpe", "dog"), RIGHT, FOLDERS, LEARNS),
    accepted("root with brackets", brackets, RIGHT, FOLDERS, f"--data.root 'im [v2]' {LEARNS}"),
    accepted("link to its own parent", looped, RIGHT, FOLDERS, LEARNS),
    accepted("PNG with 3 MB of text", wordy, RIGHT, FOLDERS, LEARNS),
    accepted("image of 20000 x 1 px", thin, {0: ("top-1",), 2: ("thin.png",)}, FOLDERS, "--data.image_size 224"),
    Case("class of .heic files", "tt_ray.train", {REFUSED: ("dog", "heic")}, renamed(".heic", "dog"), base=FOLDERS),
    folders("web page for an image", one_file(b"<html>"), "images/train/dog/1.png", "--data.on_bad_image skip"),
    folders("empty image", one_file(b""), "images/train/dog/1.png", "--data.on_bad_image skip"),
    folders("image that is cut off", cut_off, "images/test/dog/1.png", "--data.on_bad_image skip"),
    folders("name that is no text", latin, "fer.png"),
    folders("no root", lambda f: (f / "images").rename(f / "elsewhere"), "images is not a folder"),
    folders("no validation split", moved("test", "val"), "has no folder 'test'", "--data.val_split"),
    folders("validation class that training lacks", moved("test/dog", "test/emu"), "'emu'"),
    folders("image beside the class folders", lambda f: image(f / "images" / "train" / "loose.png"), "loose.png"),
    folders("class without an image", writes("images/train/emu/notes.txt", "x"), "emu"),
    Case(
        "image added to an unfinished run",
        "tt_ray.train",
        {REFUSED: ("images",)},
        changed(lambda f: image(f / "images/train/cat/new.png")),
        base=FOLDERS,
    ),
    Case("class renamed under an unfinished run", "tt_ray.train", {REFUSED: ("class",)}, changed(zebras), base=FOLDERS),
]

# --- labels -----------------------------------------------------------------------------------------------------------


def png(name: str, number: int = 0) -> bytes:
    """An image of a class, encoded."""
    shade, content = shade_of(name), io.BytesIO()
    pixels = np.random.default_rng(number).integers(shade, shade + 16, (40, 48, 3), np.uint8)
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def parquet(path: Path, labels: Sequence[Any], names: Sequence[str] = (), encoded: Sequence[Any] | None = None) -> None:
    """A table of images and labels: class numbers where there are names, also such as datasets would not write."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    known = [str(names[label]) if names and 0 <= label < len(names) else str(label) for label in labels]
    values = encoded or [png(name, number) for number, name in enumerate(known)]
    label_type = datasets.ClassLabel(names=list(names)) if names else datasets.Value("string")
    features = datasets.Features(
        {"image": datasets.Value("binary" if encoded is None else "string"), "label": label_type}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": values, "label": list(labels)}, schema=features.arrow_schema), path)


def tables(train: Sequence[Any], test: Sequence[Any], names: Sequence[str] = (), other: Sequence[str] = ()) -> Make:
    """Splits train and test; `other` are the class names of test, if they are not those of train."""

    def make(folder: Path) -> None:
        parquet(folder / "table" / "train.parquet", train, names)
        parquet(folder / "table" / "test.parquet", test, other or names)

    return make


def in_shards(folder: Path) -> None:
    """The training split in two files, each with the class names in an order of its own."""
    parquet(folder / "table" / "train-00000-of-00002.parquet", [0, 1] * 3, CLASSES)
    parquet(folder / "table" / "train-00001-of-00002.parquet", [0, 1] * 3, CLASSES[::-1])
    parquet(folder / "table" / "test.parquet", [0, 1] * 2, CLASSES)


def bracket_file(folder: Path) -> None:
    """One file whose name looks like a pattern, and a table beside it."""
    parquet(folder / "table" / "train" / "a[1].parquet", [0, 1] * 6, CLASSES)
    parquet(folder / "table" / "test" / "a[1].parquet", [0, 1] * 2, CLASSES)


def base64_images(folder: Path) -> None:
    """Images as text."""
    for split in ("train", "test"):
        labels = list(CLASSES) * 4
        texts = [base64.b64encode(png(name)).decode() for name in labels]
        parquet(folder / "table" / f"{split}.parquet", labels, (), texts)


def metadata(split: str, text: str, name: str = "metadata.jsonl") -> Make:
    """A file beside the class folders."""
    return writes(f"images/{split}/{name}", text)


spaced = tables([*CLASSES * 3, *("cat", " dog") * 3], CLASSES * 2)
in_order = tables([0, 1] * 6, [0, 1] * 2, CLASSES, CLASSES[::-1])
NAMED = list(CLASSES) * 6
LABELS = [
    accepted("class names in another order in test", in_order, {**RIGHT, 2: ("label",)}, TABLE, LEARNS),
    accepted("class names in another order in a shard", in_shards, {**RIGHT, 2: ("label",)}, TABLE, LEARNS),
    accepted("file with brackets in its name", bracket_file, RIGHT, TABLE, LEARNS),
    table("label 5 of 2 classes", tables([0, 1, 5] * 4, [0, 1], CLASSES), "5", "label"),
    table("label 5 of 2 classes in test", tables([0, 1] * 6, [0, 5], CLASSES), "5", "label"),
    table("label -1", tables([0, 1, -1] * 4, [0, 1], CLASSES), "label"),
    table("label that is null", tables([*NAMED, None], CLASSES), "label"),
    table("blank label", tables([*NAMED, ""], CLASSES), "label"),
    accepted("label with a space before it", spaced, {**RIGHT, 2: (" dog",)}, TABLE, LEARNS),
    table("validation label that training lacks", tables(NAMED, [*CLASSES, "emu"]), "emu"),
    table("no rows", tables([], []), "row"),
    table("no validation file", lambda f: parquet(f / "table" / "train.parquet", NAMED), "test"),
    table("no such column", tables(NAMED, CLASSES), "no column 'picture'", more="--data.image_column picture"),
    table("images as base64 text", base64_images, "train"),
    table("a file that is no Parquet", writes("table/train.parquet", "hello"), "Parquet"),
    folders("metadata.jsonl that is no JSON", metadata("train", "{"), "metadata.jsonl"),
    folders("metadata.jsonl of 100,000 brackets", metadata("train", "[" * 100_000), "metadata.jsonl"),
    folders("metadata.jsonl of other files", metadata("train", '{"file_name": "emu.png"}\n'), "emu.png"),
    folders("metadata.csv without file_name", metadata("train", "label\ncat\n", "metadata.csv"), "metadata.csv"),
]

CASES = [*IMAGES, *LABELS]
