"""The index of WebDataset shards: one row for each image, which says where in which tar its bytes lie.

A shard is an ordinary tar. Files whose names agree up to the first dot of their last part are one sample: an image,
its class in `.cls`, its caption in `.txt`, and fields of both in `.json`. INDEX lies in the folder of the shards, is
written last, and makes them random access: an image is read by its offset, whatever order the training wants.
"""

import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tt_ray.io.files import new_file
from tt_ray.terminal.errors import UserError, one_line

INDEX = "index.parquet"
IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "heic", "avif", "jxl", "jp2")
"""Ends of names of images, in small letters."""
FIELDS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("bad", pa.string()),
    ]
)
"""Columns of an index. `shard` is a path in the folder of the index, empty where the image has no bytes; `offset` and
`length` are bytes in it, `width` and `height` pixels, 0 where unknown; `bad` says why an image cannot be read."""
CLASSES = b"classes"
"""Metadata of an index: names of the classes in their order, as JSON; an empty list where they follow from labels."""
_NUMBERS = b"labels are numbers"


class Sample(NamedTuple):
    """The files of one sample in a tar, by the ends of their names."""

    key: str
    members: dict[str, tuple[int, int]]
    """Offset and length of each, in bytes."""


def samples(path: Path) -> Iterator[Sample]:
    """The samples of a shard, in their order.

    Raises:
        UserError: It is no tar, it ends too early, or it is compressed, so that nothing can be read by its offset.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            found: Sample | None = None
            for member in tar:
                if not member.isfile():
                    continue
                folder, slash, name = member.name.rpartition("/")
                stem, _, end = name.partition(".")
                key = f"{folder}{slash}{stem}"
                if found is None or found.key != key:
                    if found is not None:
                        yield found
                    found = Sample(key, {})
                found.members[end.lower()] = member.offset_data, member.size
                if member.offset_data + member.size > path.stat().st_size:
                    raise tarfile.ReadError("unexpected end of data")
            if found is not None:
                yield found
    except tarfile.TarError as error:
        raise UserError(
            f"cannot read shard {path}: {one_line(error)}; fetch or write it again (compressed tars must be unpacked)"
        ) from None


def scan(path: Path, name: str, label_field: str, caption_field: str) -> list[dict[str, Any]]:
    """Index rows of a shard's images, in one pass over the file.

    Args:
        path: The shard.
        name: Its path in the folder of the index.
        label_field: Field of `.json` with the label; where there is none, `.cls` has it.
        caption_field: Field of `.json` with the caption, where there is no `.txt`.

    Raises:
        UserError: The shard cannot be read, or a `.json` or `.cls` in it is damaged.
    """
    rows: list[dict[str, Any]] = []
    with path.open("rb") as file:

        def read(place: tuple[int, int]) -> bytes:
            file.seek(place[0])
            return file.read(place[1])

        for sample in samples(path):
            image = next((end for end in sample.members if end.rpartition(".")[2] in IMAGES), None)
            if image is None:
                continue
            fields = _json(path, sample.key, read(sample.members["json"])) if "json" in sample.members else {}
            label = fields.get(label_field)
            if label is None and "cls" in sample.members:
                label = read(sample.members["cls"])
            caption = read(sample.members["txt"]) if "txt" in sample.members else fields.get(caption_field)
            offset, length = sample.members[image]
            size, problem = _size(read((offset, length)))
            name_in_set = str(fields.get("image_id") or sample.key)
            row = {"image_id": name_in_set, "label": _text(label), "caption": _text(caption) or None, "shard": name}
            row |= {"offset": offset, "length": length, "width": size[0], "height": size[1], "bad": problem}
            rows.append(row)
    return rows


def _json(path: Path, key: str, content: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path}: {key}.json is not JSON ({one_line(error)}): write the shard again") from None
    return fields if isinstance(fields, dict) else {}


def _text(value: object) -> str | None:
    """A label or a caption as text; of several captions the first."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    return None if value is None else str(value).strip()


def _size(content: bytes) -> tuple[tuple[int, int], str | None]:
    """Width and height, and why they cannot be told."""
    from io import BytesIO

    try:
        with Image.open(BytesIO(content)) as image:
            return image.size, None
    except Exception as error:  # decoders raise almost anything on damaged data
        return (0, 0), one_line(error)


def index_table(rows: Sequence[Mapping[str, Any]], classes: Sequence[str] = ()) -> pa.Table:
    """Rows as a table of FIELDS, marked where labels are class numbers.

    Ids that occur in several shards get the shard's name before them, all of them alike.

    Args:
        rows: As `scan` returns them.
        classes: Names of the classes in their order; without them it follows from the labels.

    Raises:
        UserError: An id occurs twice in one shard.
    """
    table = pa.Table.from_pylist(list(rows), schema=FIELDS)
    # Names of shards differ in their numbers alone within a split; another split may have the same keys.
    splits = [re.sub(r"\d+$", "", row["shard"].removesuffix(".tar")) for row in rows]
    if len({*zip(splits, table["image_id"].to_pylist(), strict=True)}) < len(rows):
        named = [f"{row['shard'].removesuffix('.tar')}/{row['image_id']}" for row in rows]
        table = table.set_column(0, FIELDS.field("image_id"), pa.array(named, pa.string()))
        seen: set[str] = set()
        if twice := [name for name in named if name in seen or seen.add(name)]:
            raise UserError(
                f"{len(twice)} images have the key of another one in their shard, such as {twice[0]}: rename them"
            )
    labels = [row["label"] for row in rows if row["label"]]
    numbers = bool(labels) and not classes and all(label.isascii() and label.isdecimal() for label in labels)
    return table.replace_schema_metadata({_NUMBERS: str(numbers), CLASSES: json.dumps(list(classes))})


def write_index(table: pa.Table, folder: Path) -> None:
    """Writes INDEX of a folder, whole or not at all. Raises OSError when the disk is full."""
    with new_file(folder / INDEX) as partial:
        pq.write_table(table, partial, compression="zstd")


def read_index(folder: Path) -> pa.Table:
    """The index of a folder; `label` is int64 where labels are class numbers.

    Raises:
        UserError: It cannot be read, or is none.
    """
    path = folder / INDEX
    try:
        table = pq.read_table(path, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}): write it again with tt_ray.pack --index-only"
        ) from None
    if lacking := set(FIELDS.names) - set(table.column_names):
        raise UserError(f"{path} is no index of shards: it has no column {', '.join(sorted(lacking))}")
    if (table.schema.metadata or {}).get(_NUMBERS) == b"True":
        place = table.column_names.index("label")
        table = table.set_column(place, "label", table["label"].cast(pa.int64()))
    return table
