"""Reads a WebDataset shard once, from its beginning to its end: rows for its index, and its checksum.

A shard is an ordinary tar. Files whose names agree up to the first dot of their last part are one sample: an image,
its class in `.cls`, its caption in `.txt`, and fields of both in `.json`. Hidden files are passed over.
"""

import io
import json
import math
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
from PIL import Image

from tt_ray.data.sources.decoding import ImageReader
from tt_ray.data.sources.file_listing import image_suffixes
from tt_ray.data.sources.tar_index import FIELDS, ShardFile
from tt_ray.terminal.errors import UserError, one_line, some

_PLUGINS = ("heic", "avif", "jxl")
"""Ends of images that Pillow may need a package for: without it they are images that cannot be read."""
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

    def check_end(self) -> None:
        """Reads whatever follows the last file; raises ReadError where it is not the end of a tar."""
        while self.read(_READ):
            pass
        if self.end.strip(b"\0") or not self.bytes:
            raise tarfile.ReadError("unexpected end of data")
        if self.filled > self.members:
            raise tarfile.ReadError("more follows its end, as where tars were put together by cat")


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
        UserError: It is no tar, it ends too early, it is compressed or holds links or sparse files (so that nothing can
            be read by its offset), a sample has several images or lies in several places, labels contradict each
            other, or a `.json` or `.cls` in it is damaged.
        OSError: The stream cannot be read.
    """
    rows: list[dict[str, Any]] = []
    hashed = _Hashed(stream)
    whole, apart, labels = set[str](), set[str](), set[tuple[str, str]]()
    try:
        for sample in _samples(hashed, place):
            if (image := _image(sample, place)) is None:
                apart.add(sample.key)
                continue
            whole.add(sample.key)
            found = {end: member.content for end, member in sample.members.items()}
            fields = _fields(place, sample.key, found["json"]) if "json" in found else {}
            label, own = _label(fields.get(label_field)), _cls(place, sample.key, found.get("cls"))
            if label is not None and own is not None:
                labels.add((own, label))
            caption = found.get("txt", fields.get(caption_field))
            given = fields.get("image_id")
            row = {"image_id": _unicode(sample.key if given in (None, "") else str(given)), "shard": name}
            row |= {"label": own if label is None else label, "caption": _text(caption) or None}
            row["group"] = _text(fields.get(group_field)) or None
            rows.append(row | _about(image))
        hashed.check_end()
    except tarfile.TarError as error:
        raise UserError(
            f"cannot read shard {place}: {one_line(error)}; fetch or write it again (compressed tars must be unpacked)"
        ) from None
    if both := apart & whole:
        raise UserError(
            f"{place}: files of {len(both)} samples are not next to each other, such as those of {min(both)}: write "
            "the shard again, sorted by name"
        )
    _check_labels(labels, place, label_field)
    return pa.Table.from_pylist(rows, schema=FIELDS), ShardFile(hashed.bytes, hashed.hash.hexdigest())


def _check_labels(pairs: set[tuple[str, str]], place: str, label_field: str) -> None:
    """Raises UserError where the different labels of images, in .cls and .json, do not map one to the other.

    Names for numbers, and coarse classes for fine ones, do; labels of which one kind was corrected do not.
    """
    if all(len({pair[side] for pair in pairs}) < len(pairs) for side in (0, 1)):
        raise UserError(
            f"{place}: labels in .cls contradict {label_field!r} in .json: take those of .cls by --data.label_column "
            "cls, or correct one of the two"
        )


def _samples(stream: _Hashed, place: str) -> Iterator[Sample]:
    with tarfile.open(fileobj=stream, mode="r|", bufsize=_READ) as tar:
        sample: Sample | None = None
        for member in tar:
            stream.members = member.offset_data + (member.size if member.isfile() else 0)
            folder, slash, name = member.name.rpartition("/")
            stem, _, end = name.partition(".")
            key, end = f"{folder}{slash}{stem}", end.lower()
            # Archives of a Mac hold a hidden ._a.jpg next to each a.jpg.
            if not stem or not (_is_image(end) or end in _OTHERS):
                continue
            if member.islnk() or member.issym() or member.issparse():
                raise UserError(
                    f"{place}: {member.name} is a link or a sparse file, which has no bytes of its own: write the "
                    "shard again with `tar --dereference --hard-dereference`, without --sparse"
                )
            if not member.isfile():
                continue
            if sample is None or sample.key != key:
                if sample is not None:
                    yield sample
                sample = Sample(key)
            if end in sample.members:
                raise UserError(f"{place}: it has {member.name} twice: write the shard again")
            file = tar.extractfile(member)
            assert file is not None, "it is a file"
            sample.members[end] = Member(member.offset_data, file.read())
        if sample is not None:
            yield sample


def _image(sample: Sample, place: str) -> Member | None:
    """The image of a sample, None where it has none: `.jpg` before `.mask.png`."""
    ends = [end for end in sample.members if _is_image(end)]
    ends = [end for end in ends if "." not in end] or ends
    if len(ends) > 1:
        raise UserError(
            f"{place}: sample {sample.key} has {len(ends)} images, {some([f'.{end}' for end in ends])}: keep one (a "
            "key ends at the first dot of a name)"
        )
    return sample.members[ends[0]] if ends else None


@cache
def _image_ends() -> frozenset[str]:
    """Those that image folders are read by."""
    return frozenset(_PLUGINS) | {suffix.removeprefix(".") for suffix in image_suffixes()}


def _is_image(end: str) -> bool:
    return end.rpartition(".")[2] in _image_ends()


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
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: {key}.json is not JSON ({one_line(error)}): write the shard again") from None
    return fields if isinstance(fields, dict) else {}


def _cls(place: str, key: str, content: bytes | None) -> str | None:
    """The label in `.cls`, None where it says that there is none."""
    try:
        return _label(None if content is None else content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{place}: {key}.cls is not UTF-8: write the shard again") from None


def _label(value: object) -> str | None:
    """A label as text. Of several labels none is the image's class."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, float):  # as pandas writes integers, and NaN where there is none
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    label = None if isinstance(value, list | dict) else _text(value)
    return None if label == _NO_LABEL else label


def _text(value: object) -> str | None:
    """A label or a caption as text; of several captions the first."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, bytes):
        return value.decode("utf-8-sig", "replace").strip()
    return None if value is None else _unicode(str(value).strip())


def _unicode(text: str) -> str:
    """Text that Arrow takes: JSON may hold halves of pairs, and names of files bytes that are not UTF-8."""
    return text.encode(errors="backslashreplace").decode()
