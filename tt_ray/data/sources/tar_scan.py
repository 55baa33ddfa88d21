"""Reads a WebDataset shard once, from its beginning to its end: rows for its index, and its checksum.

A shard is an ordinary tar. Files whose names agree up to the first dot of their last part are one sample: an image,
its class in `.cls`, its caption in `.txt`, and fields of both in `.json`.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
from PIL import Image

from tt_ray.data.sources.decoding import ImageReader
from tt_ray.data.sources.tar_index import FIELDS, ShardFile
from tt_ray.terminal.errors import UserError, one_line

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "heic", "avif", "jxl", "jp2")
"""Ends of names of images, in small letters."""
_OTHERS = ("cls", "txt", "json")
_NO_LABEL = "-1"
"""Hugging Face's label of an image that has none."""
_READ = 2**20


class Member(NamedTuple):
    """A file of a sample, and where it lies in the tar."""

    offset: int
    content: bytes


@dataclass
class Sample:
    """The image, the class, the caption and the fields of one sample, by the ends of their names."""

    key: str
    members: dict[str, Member] = field(default_factory=dict[str, Member])


class _Hashed(io.RawIOBase):
    """Counts and hashes what is read of a stream, and keeps its end."""

    def __init__(self, stream: BinaryIO | io.RawIOBase) -> None:
        self._stream, self.hash, self.bytes, self.end = stream, sha256(), 0, b""
        self.filled = 0
        """Bytes up to the last one that is not zero."""
        self.members = 0
        """Bytes up to the end of the last file that the tar lists."""

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(size) or b""
        self.hash.update(block)
        self.filled = self.bytes + len(rest) if (rest := block.rstrip(b"\0")) else self.filled
        self.bytes += len(block)
        self.end = (self.end + block)[-tarfile.BLOCKSIZE :]
        return block


@dataclass(frozen=True)
class _Encoded(ImageReader):
    content: bytes

    def open(self, row: int) -> Image.Image:
        return Image.open(io.BytesIO(self.content))

    def name(self, row: int) -> str:
        return ""


def scan(
    stream: BinaryIO | io.RawIOBase,
    place: str,
    name: str,
    label_field: str,
    caption_field: str,
    group_field: str = "group",
) -> tuple[pa.Table, ShardFile]:
    """Index rows of a shard's images, in one pass. Each image is decoded: a header alone does not show what is cut.

    Args:
        stream: The shard.
        place: What errors call it.
        name: Its path in the folder of the index.
        label_field: Field of `.json` with the label; where there is none, `.cls` has it.
        caption_field: Field of `.json` with the caption, where there is no `.txt`.
        group_field: Field of `.json` with the group.

    Returns:
        Rows of FIELDS, and the shard's size and checksum.

    Raises:
        UserError: It is no tar, it ends too early, it is compressed (so that nothing can be read by its offset), or a
            `.json` in it is damaged.
        OSError: The stream cannot be read.
    """
    rows: list[dict[str, Any]] = []
    hashed = _Hashed(stream)
    try:
        for sample in _samples(hashed):
            image = next((end for end in sample.members if _is_image(end)), None)
            if image is None:
                continue
            found = {end: member.content for end, member in sample.members.items()}
            fields = _fields(place, sample.key, found["json"]) if "json" in found else {}
            label = fields.get(label_field)
            caption = found.get("txt", fields.get(caption_field))
            row = {"image_id": str(fields.get("image_id") or sample.key), "shard": name}
            label = _text(found.get("cls") if label is None else label)
            row |= {"label": None if label == _NO_LABEL else label, "caption": _text(caption) or None}
            row["group"] = _text(fields.get(group_field)) or None
            rows.append(row | _about(sample.members[image]))
        while hashed.read(_READ):
            pass  # whatever follows the end mark
        if hashed.end.strip(b"\0") or not hashed.bytes:
            raise tarfile.ReadError("unexpected end of data")
        if hashed.filled > hashed.members:
            raise tarfile.ReadError("more follows its end, as where tars were put together by cat")
    except tarfile.TarError as error:
        raise UserError(
            f"cannot read shard {place}: {one_line(error)}; fetch or write it again (compressed tars must be unpacked)"
        ) from None
    return pa.Table.from_pylist(rows, schema=FIELDS), ShardFile(hashed.bytes, hashed.hash.hexdigest())


def _samples(stream: _Hashed) -> Iterator[Sample]:
    with tarfile.open(fileobj=stream, mode="r|", bufsize=_READ) as tar:
        sample: Sample | None = None
        for member in tar:
            stream.members = member.offset_data + (member.size if member.isfile() else 0)
            if not member.isfile():
                continue
            folder, slash, name = member.name.rpartition("/")
            stem, _, end = name.partition(".")
            key, end = f"{folder}{slash}{stem}", end.lower()
            if sample is None or sample.key != key:
                if sample is not None:
                    yield sample
                sample = Sample(key)
            if _is_image(end) or end in _OTHERS:
                file = tar.extractfile(member)
                assert file is not None, "it is a file"
                sample.members[end] = Member(member.offset_data, file.read())
        if sample is not None:
            yield sample


def _is_image(end: str) -> bool:
    return end.rpartition(".")[2] in IMAGES


def _about(image: Member) -> dict[str, Any]:
    """The index's columns on the image itself; `bad` says why it cannot be read."""
    found: dict[str, Any] = {"offset": image.offset, "length": len(image.content), "width": 0, "height": 0, "bad": None}
    try:
        with Image.open(io.BytesIO(image.content)) as header:
            found["width"], found["height"] = header.size
    except Exception:  # decoders raise almost anything on damaged data; the reason follows
        pass
    try:
        _Encoded(image.content).read(0)
    except UserError as error:
        found["bad"] = getattr(error, "cause", str(error))
    return found


def _fields(place: str, key: str, content: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(content)
    except ValueError as error:
        raise UserError(f"{place}: {key}.json is not JSON ({one_line(error)}): write the shard again") from None
    return fields if isinstance(fields, dict) else {}


def _text(value: object) -> str | None:
    """A label or a caption as text; of several captions the first."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    return None if value is None else str(value).strip()
