"""WebDataset shards as a data source: tars in a folder or behind a URI, read by offset through their index.

Behind a URI the index and the names of the shards are all that opening a split reads. The shards themselves are pulled
to data.local_cache when the first image is read, or before by `Source.copy`.
"""

import dataclasses
import io
import os
import re
import tarfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
from PIL import Image

from tt_ray.config import DataConfig
from tt_ray.data.sources.base import NOBODY, DataSource, Source, Split, Unlabelled, split_name
from tt_ray.data.sources.decoding import ImageReader
from tt_ray.data.sources.labels import LabelPlace, Labels, match_numbers, number_classes, text_labels
from tt_ray.data.sources.shard_files import ShardFiles, find_shards
from tt_ray.data.sources.tar_index import (
    ShardFile,
    classes_of,
    index_table,
    labels_are_numbers,
    read_index,
    shards_of,
)
from tt_ray.data.sources.tar_scan import scan
from tt_ray.io.files import sha256
from tt_ray.io.local_copy import LocalCopy, Show
from tt_ray.terminal.errors import UserError, absent, some

pc: Any = pyarrow.compute
_SMALL = 64 * 2**20
"""Bytes of shards that are read in less time than other processes take to start."""
_HASHED = 256 * 2**20
"""Bytes of shards that are hashed at each start: a fraction of a second."""
_HEADER, _SIZE = tarfile.BLOCKSIZE, slice(124, 136)
"""Bytes before each file of a tar, and those of them that hold its size, in octal digits."""


@dataclasses.dataclass(frozen=True)
class TarImages(ImageReader):
    """Images in tars, by offset. Nothing is kept open: opening a file costs a hundredth of decoding an image."""

    place: str
    """Where the shards lie, for errors."""
    names: tuple[str, ...]
    """The shards' paths there."""
    files: tuple[Path, ...]
    """The shards on this machine."""
    copy: LocalCopy | None
    """What pulls them, where they lie behind a URI."""
    shard: npt.NDArray[np.int32]
    """Number of each image's shard, (N,)."""
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    ids: pa.StringArray
    notes: tuple[str, ...] = ()
    """What may be wrong with the shards."""

    def open(self, row: int) -> Image.Image:
        return Image.open(io.BytesIO(self.encoded(row)))

    def encoded(self, row: int) -> bytes:
        if self.copy is not None:
            self.copy.pull()
        length, offset = int(self.length[row]), int(self.offset[row])
        file = os.open(self.files[self.shard[row]], os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Together with its header: to copy what is read costs less than to read twice.
            whole = os.pread(file, _HEADER + length, offset - _HEADER)
        finally:
            os.close(file)
        header, content = whole[:_HEADER], whole[_HEADER:]
        if len(content) < length:
            raise OSError("the shard ends before the image does: it is not the one that was indexed")
        # An image that lies in the midst of another shard's would be decoded as far as it goes.
        if length and header[_SIZE].strip(b" \0").lstrip(b"0") != b"%o" % length:
            raise OSError("the shard has no such image there: it is not the one that was indexed")
        return content

    def name(self, row: int) -> str:
        return f"{self.ids[row].as_py()} in {self.place}/{self.names[self.shard[row]]}"


def make_index(
    shards: ShardFiles, config: DataConfig, show: Show | None = None, classes: Sequence[str] = ()
) -> pa.Table:
    """Reads all shards once, on all CPUs, and returns their index.

    Args:
        shards: The shards.
        config: Names the fields of `.json` that hold label, caption and (`group` where it names none) group.
        show: Called with the megabytes read, and all of them.
        classes: Names of the classes in their order, for the index to declare, if the shards have no others.

    Raises:
        UserError: A shard cannot be read.
    """
    fields = config.label_column, config.caption_column, config.group_column or "group"
    calls = [(shards, name, fields) for name in shards.sizes]
    tables: list[pa.Table] = []
    about: dict[str, ShardFile] = {}
    done, of = 0, sum(shards.sizes.values())
    with ExitStack() as stack:
        scanned = map(_scan, calls)
        if len(calls) > 1 and of > _SMALL:
            pool = stack.enter_context(ProcessPoolExecutor(mp_context=get_context("forkserver")))
            scanned = pool.map(_scan, calls)
        for name, (table, file) in zip(shards.sizes, scanned, strict=True):
            tables.append(table)
            about[name] = file
            done += file.bytes
            if show is not None:
                show("MB of shards read", done // 10**6, max(of // 10**6, 1))
    rows = pa.concat_tables(tables)
    labels = rows["label"].filter(pc.not_equal(rows["label"], ""))
    known = pc.all(pc.is_in(labels, value_set=pa.array(classes, pa.string())), min_count=0).as_py()
    return index_table(rows, about, classes if known else None)


def _scan(call: tuple[ShardFiles, str, tuple[str, str, str]]) -> tuple[pa.Table, ShardFile]:
    shards, name, fields = call
    with shards.errors(), shards.stream(name) as stream:
        return scan(stream, f"{shards.place}/{name}", name, *fields)


def in_split(shard: str, split: str) -> bool:
    """Whether a shard's path names the split: `train/0001.tar`, `train-0001.tar`, `imagenet1k-train-0001.tar`.

    A dot stands for all shards.
    """
    return split == "." or bool(
        re.search(rf"(^|[/_.\-]){re.escape(split)}([/_.\-]|$)", shard.removesuffix(".tar"), re.I)
    )


def of_split(shard: str, split: str, other: str) -> bool:
    """Whether a shard belongs to a split and not to the `other`: `train-val-0.tar` is of train-val, not of train.

    Raises:
        UserError: Its path names both, and neither name is a part of the other.
    """
    if not in_split(shard, split):
        return False
    if other in ("", ".", split) or split == "." or not in_split(shard, other):
        return True
    longer, shorter = in_split(split, other), in_split(other, split)
    if longer == shorter:
        raise UserError(
            f"shard {shard} has the names of two splits in its path, {split} and {other}: rename it, or name the "
            "splits by more of their paths with --data.train_split and --data.val_split"
        )
    return longer


def find_index(shards: ShardFiles, config: DataConfig) -> Path:
    """The index of shards, on this machine; it is made where there is none, unless the shards lie behind a URI.

    Raises:
        UserError: There is none and it is not to be made here, or it cannot be written.
    """
    if (found := shards.fetch_index()) is not None:
        return found
    how = f"`python -m tt_ray.pack --data.source webdataset --data.root '{config.root}' --index-only"
    if shards.remote is not None or config.index:
        raise UserError(
            f"there is no index {shards.index}: write it once for all runs with {how}{shards.out}`, which reads every "
            "shard once (elsewhere with --out DIR; then pass --data.index DIR)"
        )
    shards.write_index(make_index(shards, config))
    return Path(shards.index)


def _names_of(config: DataConfig, split: Split, shards: ShardFiles, path: Path) -> list[str]:
    """Shards of a split. Raises UserError where there are none, or the index is not that of these shards."""
    name, known = split_name(config, split), shards_of(path)
    opposite = "" if config.val_share else split_name(config, "val" if split == "train" else "train")
    mine = [shard for shard in shards.sizes if of_split(shard, name, opposite)]
    if not mine:
        words = {word for shard in shards.sizes for word in re.split(r"[/_.\-]", shard.removesuffix(".tar"))}
        named = [word for word in words if not word.isdecimal()]
        raise absent("shards of split", name, named, shards.place, "--data.train_split or --data.val_split")
    again = f"run `python -m tt_ray.pack --data.root '{config.root}' --index-only{shards.out}` to write it again"
    if new := [shard for shard in mine if shard not in known]:
        raise UserError(f"{shards.index} does not have {len(new)} shards that are there: {some(new)}; {again}")
    if other := [shard for shard in mine if known[shard].bytes != shards.sizes[shard]]:
        raise UserError(
            f"{shards.place}/{other[0]} has {shards.sizes[other[0]]:,} bytes, but {known[other[0]].bytes:,} when it "
            f"was indexed ({len(other)} such shards): fetch it again, or {again}"
        )
    if shards.whole and (
        lost := [shard for shard in known if shard not in shards.sizes and of_split(shard, name, opposite)]
    ):
        raise UserError(
            f"{shards.index} names {len(lost)} shards that are not there: {some(lost)}; fetch them, or {again}"
        )
    return mine


def _check_newer(config: DataConfig, shards: ShardFiles, mine: Sequence[str], path: Path) -> tuple[str, ...]:
    """A sentence on shards of a folder that were written after their index; few of them are compared with it.

    They may be copies of what was indexed, or have other labels and captions in as many bytes. What lies behind a URI
    is compared when it is pulled.

    Raises:
        UserError: A shard is not the one that was indexed.
    """
    if shards.remote is not None:
        return ()
    known, written = shards_of(path), path.stat().st_mtime_ns
    newer = [shard for shard in mine if shards.path(shard).stat().st_mtime_ns > written]
    again = f"run `python -m tt_ray.pack --data.root '{config.root}' --index-only{shards.out}` to write it again"
    if sum(shards.sizes[shard] for shard in newer) > _HASHED:
        return (f"{len(newer)} shards are newer than {shards.index}: if they are no mere copies, {again}",)
    with shards.errors():
        changed = [shard for shard in newer if sha256(shards.path(shard)) != known[shard].sha256]
    if changed:
        raise UserError(
            f"{len(changed)} shards have changed since {shards.index} was written: {some(changed)}; {again}"
        )
    return ()


def split_images(config: DataConfig, split: Split, bad: bool) -> tuple[pa.Table, pa.Table, TarImages]:
    """The rows of the index that belong to a split, those of unreadable images, and what reads the first ones.

    Args:
        config: Where the shards are, and the splits' names.
        split: Training or validation.
        bad: Takes images that cannot be read too.

    Raises:
        UserError: There is no such split, a shard is missing, changed or not in the index, or it cannot be read.
    """
    shards = find_shards(config)
    path = find_index(shards, config)
    mine = _names_of(config, split, shards, path)
    rows, unreadable = read_index(path, mine, bad, groups=bool(config.group_column))
    column = _one(rows["shard"])
    names = tuple(column.dictionary.to_pylist())
    known = shards_of(path)
    copy = shards.local_copy({name: known[name] for name in mine})
    images = TarImages(
        shards.place,
        names,
        tuple(shards.file(name, known[name]) for name in names),
        copy,
        column.indices.to_numpy().astype(np.int32, copy=False),
        _one(rows["offset"]).to_numpy(),
        _one(rows["length"]).to_numpy(),
        _one(rows["image_id"]),
        _check_newer(config, shards, mine, path),
    )
    return rows, unreadable, images


def _one(column: pa.ChunkedArray) -> Any:
    """The only part of a column, which is not copied."""
    return column.chunk(0)


def tar_source(config: DataConfig, split: Split, need_captions: bool) -> Source:
    """One split of WebDataset shards.

    Raises:
        UserError: As `split_images` does, on unreadable images unless data.on_bad_image is skip, and where images have
            no label, or (if needed) none has a caption.
    """
    rows, unreadable, images = split_images(config, split, bad=False)
    left_out = images.notes
    if count := unreadable.num_rows:
        example = f"{unreadable['image_id'][0]} in {images.place}/{unreadable['shard'][0]} ({unreadable['bad'][0]})"
        if config.on_bad_image == "fail":
            raise UserError(
                f"cannot read image {example}: repair or remove it; training leaves such images out, {count} in all, "
                "with --data.on_bad_image skip"
            )
        left_out += (f"{count} images left out of {split_name(config, split)}, such as {example}",)
    if need_captions and rows["caption"].null_count == rows.num_rows:
        raise UserError(
            f"no image in {images.place} has a caption (.txt, or {config.caption_column!r} in .json): set "
            "--data.caption_column, or pass a caption table with --text.captions"
        )
    if config.group_column not in ("", "group"):
        raise UserError(
            f"data.group_column is {config.group_column!r}, but packed images have their groups under 'group': pass "
            "--data.group_column group"
        )
    groups = _one(rows["group"]) if "group" in rows.column_names else None
    if config.group_column and (groups is None or groups.null_count == len(groups)):
        raise UserError(f"{images.place} has no groups: pack its images again, with --data.group_column")
    place = LabelPlace(images.place, f"label (.cls, or {config.label_column!r} in .json)", images.name)
    labels, classes = _classes(rows, place)
    return Source(
        ids=images.ids,
        labels=labels,
        classes=classes,
        captions=_one(rows["caption"]),
        read=images.read,
        pixels=images.pixels,
        encoded=images.encoded,
        skipped=tuple(unreadable["image_id"].to_pylist()) if count else (),
        left_out=left_out,
        copy=images.copy,
        groups=groups,
    )


def _classes(rows: pa.Table, place: LabelPlace) -> tuple[Labels, tuple[str, ...]]:
    """Class numbers (N,) and names of an index's rows, found for each different label once.

    Raises:
        UserError: An image has no label, or one that its index does not declare.
    """
    column = _one(rows["label"])
    codes = column.indices.fill_null(NOBODY).to_numpy()
    used = np.flatnonzero(np.bincount(codes + 1)) - 1  # in the dictionary, NOBODY for none
    texts = text_labels(column.dictionary.take(pa.array(used, mask=used == NOBODY)))
    if texts.null_count:
        place.refuse_missing(np.isin(codes, used[np.asarray(texts.is_null())]))
    by_label = dataclasses.replace(place, row=lambda number: place.row(int(np.argmax(codes == used[number]))))
    if declared := classes_of(rows.schema):
        found = pc.index_in(texts, value_set=pa.array(declared))
        numbers, classes = match_numbers(found, [declared], np.zeros(len(found), np.int64), by_label)
    else:
        numbers, classes = number_classes(texts.cast(pa.int64()) if labels_are_numbers(rows) else texts, by_label)
    to_class = np.full(len(column.dictionary), NOBODY, np.int64)
    to_class[used] = numbers
    return to_class[codes], classes


def _open_unlabelled(config: DataConfig, split: Split) -> Unlabelled:
    rows, _, images = split_images(config, split, bad=True)
    return Unlabelled(images.ids, images.read, images.notes, encoded=images.encoded, captions=_one(rows["caption"]))


SOURCE = DataSource(tar_source, _open_unlabelled, declares_classes=True, takes_uris=True, knows_unreadable=True)
