"""Writes images of a data source into a WebDataset shard, shrunk or as they are, with the rows of its index."""

import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from PIL import Image

from tt_ray.config.sections import Range
from tt_ray.data.sources.base import NOBODY, Source
from tt_ray.data.sources.decoding import UnreadableImage
from tt_ray.io.files import new_file
from tt_ray.terminal.errors import UserError

_ENDS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2", "FTEX": "ftc", "PIXAR": "pxr", "SUN": "ras"}
"""Ends of names of Pillow's formats, where they are not the format in small letters. MPO is a JPEG of some phones."""
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class ImageOptions:
    """What becomes of an image."""

    short_side: Annotated[int, Range(1)] = 256
    """Largest length of the shorter side, in pixels: larger images are shrunk to it, smaller ones stay."""
    quality: Annotated[int, Range(1, 100)] = 90
    """Quality of the JPEGs."""
    keep: bool = False
    """Keep the original bytes instead; images that have none, as those of torchvision's arrays, become PNG."""


def write_shard(
    path: Path, name: str, source: Source, rows: Iterable[int], options: ImageOptions
) -> list[dict[str, Any]]:
    """Writes a shard, whole or not at all: for each image its bytes, `.json`, and `.cls` and `.txt` where it has any.

    Args:
        path: The tar.
        name: What the index calls it.
        source: The images' split.
        rows: The images, by row of the split.
        options: Their size and encoding.

    Returns:
        The index's row of each image. One that cannot be read has no bytes, and says why.

    Raises:
        OSError: The disk is full, or the folder cannot be written to.
    """
    found: list[dict[str, Any]] = []
    with new_file(path) as partial, partial.open("wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        for row in rows:
            number = int(source.labels[row])
            label = source.classes[number] if number != NOBODY else None
            caption = None if source.captions is None else source.captions[row].as_py()
            about = {"image_id": source.ids[row].as_py(), "label": label, "caption": caption}
            group = None if source.groups is None else source.groups[row].as_py()
            entry = {**about, "shard": name, "offset": 0, "length": 0, "width": 0, "height": 0, "bad": None}
            entry["group"] = group
            found.append(entry)
            try:
                end, content, (entry["width"], entry["height"]) = encode(source, row, options)
            except UnreadableImage as error:
                entry["bad"] = error.cause
                continue
            key = f"{row:09d}"
            _add(tar, f"{key}.{end}", content)
            # Data end with the last block that was written.
            entry["offset"] = file.tell() - -(-len(content) // _BLOCK) * _BLOCK
            entry["length"] = len(content)
            if label is not None:
                _add(tar, f"{key}.cls", str(number).encode())
            if caption is not None:
                _add(tar, f"{key}.txt", caption.encode())
            _add(
                tar,
                f"{key}.json",
                json.dumps(about if group is None else {**about, "group": group}, ensure_ascii=False).encode(),
            )
    return found


def encode(source: Source, row: int, options: ImageOptions) -> tuple[str, bytes, tuple[int, int]]:
    """End of the file's name, bytes, and (width, height) of an image.

    Raises:
        UnreadableImage: It cannot be decoded.
    """
    try:
        image = source.read(row)
    except UnreadableImage:
        raise
    except UserError as error:
        raise UnreadableImage(str(error)) from None
    buffer, small = io.BytesIO(), min(image.size) <= options.short_side
    # Read again only where the bytes may stay.
    if (options.keep or small) and (content := source.encoded(row)) is not None:
        with Image.open(io.BytesIO(content)) as original:
            # JPEGs that need not be shrunk stay as they are: encoding them again would only lose.
            if options.keep or original.format == "JPEG":
                return end_of(original.format or "img"), content, original.size
    if options.keep:
        image.save(buffer, "PNG")
        return "png", buffer.getvalue(), image.size
    if not small:
        width, height = (max(1, round(side * options.short_side / min(image.size))) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return "jpg", _jpeg(image, options.quality), image.size


def end_of(kind: str) -> str:
    """End of the names of files of one of Pillow's formats, one by which folders and shards are read."""
    return _ENDS.get(kind, kind.lower())


def _jpeg(image: Image.Image, quality: int) -> bytes:
    """With Huffman tables of its own: 3 % smaller, and as much faster to decode."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, "JPEG", quality=quality, optimize=True)
    except OSError:  # Pillow sets a byte a pixel aside for it, of which noise needs more
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
