"""WebDataset shards as a data source: tars in a folder, read by offset through their index, in any order."""

import dataclasses
import io
import json
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
from PIL import Image

from tt_ray.config import DataConfig
from tt_ray.data.sources.base import DataSource, Source, Split, Unlabelled, split_name
from tt_ray.data.sources.decoding import ImageReader
from tt_ray.data.sources.labels import LabelPlace, match_numbers, number_classes, text_labels
from tt_ray.data.sources.tar_index import CLASSES, INDEX, index_table, read_index, scan, write_index
from tt_ray.terminal.errors import UserError, absent, reason, some

pc: Any = pyarrow.compute


@dataclasses.dataclass(frozen=True)
class TarImages(ImageReader):
    """Images in tars, by offset. Nothing is kept open: opening a file costs a hundredth of decoding an image."""

    folder: Path
    shards: tuple[str, ...]
    shard: npt.NDArray[np.int32]
    """Number of each image's shard, (N,)."""
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    ids: pa.StringArray

    def open(self, row: int) -> Image.Image:
        return Image.open(io.BytesIO(self.encoded(row)))

    def encoded(self, row: int) -> bytes:
        with open(self.folder / self.shards[self.shard[row]], "rb", buffering=0) as file:
            file.seek(int(self.offset[row]))
            content = file.read(int(self.length[row]))
        if len(content) < self.length[row]:
            raise OSError("the shard ends before the image does: it is not the one that was indexed")
        return content

    def name(self, row: int) -> str:
        return f"{self.ids[row].as_py()} in {self.folder / self.shards[self.shard[row]]}"


def find_shards(config: DataConfig) -> tuple[Path, list[str]]:
    """The folder of the shards, and their paths in it, sorted.

    Raises:
        UserError: data.root names no folder or pattern of tars.
    """
    if not config.root:
        raise UserError("data.root is empty: name the folder of the shards with --data.root")
    root = Path(config.root).expanduser()
    folder, pattern = (root, "**/*.tar") if root.is_dir() else (root.parent, root.name)
    if any(mark in str(folder) for mark in "*?["):
        raise UserError(f"data.root {root}: a pattern may stand in the last part alone, such as shards/train-*.tar")
    found = sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern) if path.is_file())
    if not found:
        raise UserError(f"data.root {root} is no folder of .tar files, nor a pattern that finds any: check --data.root")
    return folder, found


def make_index(folder: Path, shards: Sequence[str], config: DataConfig) -> pa.Table:
    """Scans all shards, on all CPUs, and writes the folder's index.

    Args:
        folder: Folder of the shards.
        shards: Their paths in it.
        config: Names the fields of `.json` that hold label and caption.

    Raises:
        UserError: A shard cannot be read, or the folder cannot be written.
    """
    calls = [(folder / shard, shard, config.label_column, config.caption_column) for shard in shards]
    if len(calls) == 1:
        found = [scan(*call) for call in calls]
    else:
        with ProcessPoolExecutor(mp_context=get_context("forkserver")) as pool:
            found = list(pool.map(_scan, calls))
    table = index_table([row for rows in found for row in rows])
    try:
        write_index(table, folder)
    except OSError as error:
        raise UserError(f"cannot write {folder / INDEX}: {reason(error)}; make {folder} writable") from None
    return table


def _scan(call: tuple[Path, str, str, str]) -> list[dict[str, Any]]:
    return scan(*call)


def in_split(shard: str, split: str) -> bool:
    """Whether a shard's path names the split: `train/0001.tar`, `train-0001.tar`, `imagenet1k-train-0001.tar`.

    A dot stands for all shards.
    """
    return split == "." or bool(
        re.search(rf"(^|[/_.\-]){re.escape(split)}([/_.\-]|$)", shard.removesuffix(".tar"), re.I)
    )


def split_table(config: DataConfig, split: Split) -> tuple[Path, pa.Table]:
    """The folder of the shards, and the rows of their index that belong to a split; the index is made if it is missing.

    Raises:
        UserError: There is no such split, a shard is missing or not in the index, or a shard cannot be read.
    """
    folder, shards = find_shards(config)
    if not (folder / INDEX).exists():
        make_index(folder, shards, config)
    table, name = read_index(folder), split_name(config, split)
    known = set(table["shard"].unique().to_pylist()) - {""}
    mine = [shard for shard in shards if in_split(shard, name)]
    if not mine:
        words = {word for shard in shards for word in re.split(r"[/_.\-]", shard.removesuffix(".tar"))}
        named = [word for word in words if not word.isdecimal()]
        raise absent("shards of split", name, named, str(folder), "--data.train_split or --data.val_split")
    again = f"run `python -m tt_ray.pack --data.root {folder} --index-only` to write it again"
    if new := sorted(set(mine) - known):
        raise UserError(f"{folder / INDEX} does not have {len(new)} shards that are there: {some(new)}; {again}")
    whole = Path(config.root).expanduser().is_dir()
    if whole and (lost := sorted(shard for shard in known - set(shards) if in_split(shard, name))):
        raise UserError(
            f"{folder / INDEX} names {len(lost)} shards that are not there: {some(lost)}; fetch them, or {again}"
        )
    return folder, table.filter(pc.is_in(table["shard"], value_set=pa.array(mine)))


def _readable(table: pa.Table, folder: Path, config: DataConfig, split: str) -> tuple[pa.Table, tuple[str, ...]]:
    """The rows of images that can be read, as far as the index knows, and a sentence on the others.

    Raises:
        UserError: There are others, and data.on_bad_image is fail.
    """
    bad = table.filter(pc.is_valid(table["bad"]))
    if not bad.num_rows:
        return table, ()
    example = f"{bad['image_id'][0]} in {folder / bad['shard'][0].as_py()} ({bad['bad'][0]})"
    if config.on_bad_image == "fail":
        raise UserError(
            f"cannot read image {example}: repair or remove it; training leaves such images out, {bad.num_rows} in "
            "all, with --data.on_bad_image skip"
        )
    return table.filter(pc.is_null(table["bad"])), (f"{bad.num_rows} images left out of {split}, such as {example}",)


def tar_images(table: pa.Table, folder: Path) -> TarImages:
    """Reads the images of a table's rows."""
    shards = table["shard"].combine_chunks().dictionary_encode()
    return TarImages(
        folder,
        tuple(shards.dictionary.to_pylist()),
        shards.indices.to_numpy().astype(np.int32),
        table["offset"].to_numpy(),
        table["length"].to_numpy(),
        table["image_id"].combine_chunks(),
    )


def tar_source(config: DataConfig, split: Split, need_captions: bool) -> Source:
    """One split of WebDataset shards.

    Raises:
        UserError: As `split_table` does, and where images have no label, or (if needed) none has a caption.
    """
    folder, table = split_table(config, split)
    name = split_name(config, split)
    table, left_out = _readable(table, folder, config, name)
    if need_captions and table["caption"].null_count == table.num_rows:
        raise UserError(
            f"no image in {folder} has a caption (.txt, or {config.caption_column!r} in .json): set "
            "--data.caption_column, or pass a caption table with --text.captions"
        )
    images = tar_images(table, folder)
    label = f"label (.cls, or {config.label_column!r} in .json)"
    place = LabelPlace(str(folder), label, images.name)
    if declared := json.loads((table.schema.metadata or {}).get(CLASSES, b"[]")):
        found = pc.index_in(text_labels(table["label"]), value_set=pa.array(declared))
        labels, classes = match_numbers(found, [declared], np.zeros(len(found), np.int64), place)
    else:
        labels, classes = number_classes(table["label"], place)
    return Source(
        ids=images.ids,
        labels=labels,
        classes=classes,
        captions=table["caption"].combine_chunks(),
        read=images.read,
        pixels=images.pixels,
        encoded=images.encoded,
        left_out=left_out,
    )


def _open_unlabelled(config: DataConfig, split: Split) -> Unlabelled:
    folder, table = split_table(config, split)
    images = tar_images(table, folder)
    return Unlabelled(images.ids, images.read)


SOURCE = DataSource(tar_source, _open_unlabelled, declares_classes=True)
