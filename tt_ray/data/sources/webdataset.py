"""WebDataset shards as a data source: tars in a folder, read by offset through their index, in any order."""

import dataclasses
import io
import re
from collections.abc import Callable, Sequence
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
from tt_ray.data.sources.labels import LabelPlace, number_classes
from tt_ray.data.sources.tar_index import INDEX, index_table, read_index, scan, write_index
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
        with open(self.folder / self.shards[self.shard[row]], "rb", buffering=0) as file:
            file.seek(int(self.offset[row]))
            content = file.read(int(self.length[row]))
        if len(content) < self.length[row]:
            raise OSError("the shard ends before the image does: it is not the one that was indexed")
        return Image.open(io.BytesIO(content))

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


def make_index(folder: Path, shards: Sequence[str], config: DataConfig, processes: int = 0) -> pa.Table:
    """Scans all shards, in parallel, and writes the folder's index.

    Args:
        folder: Folder of the shards.
        shards: Their paths in it.
        config: Names the fields of `.json` that hold label and caption.
        processes: How many scan at once; 0 takes one for each CPU.

    Raises:
        UserError: A shard cannot be read, or the folder cannot be written.
    """
    calls = [(folder / shard, shard, config.label_column, config.caption_column) for shard in shards]
    if len(calls) == 1 or processes == 1:
        found = [scan(*call) for call in calls]
    else:
        with ProcessPoolExecutor(processes or None, mp_context=get_context("forkserver")) as pool:
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
    """Whether a shard's path names the split: `train/0001.tar`, `train-0001.tar`, `imagenet1k-train-0001.tar`."""
    words = re.split(r"[/_.\-]", shard.lower().removesuffix(".tar"))
    return split.lower() in words or shard.lower().startswith(f"{split.lower()}-")


def _open(config: DataConfig, split: Split) -> tuple[Path, pa.Table, tuple[str, ...]]:
    """The folder, the split's rows of the index that can be read, and sentences on the others."""
    folder, shards = find_shards(config)
    if not (folder / INDEX).exists():
        make_index(folder, shards, config)
    table, name = read_index(folder), split_name(config, split)
    known = table["shard"].unique().to_pylist()
    if lost := sorted({shard for shard in known if shard} - set(shards) if Path(config.root).is_dir() else set()):
        raise UserError(f"{folder / INDEX} names shards that are not there: {some(lost)}; restore them, or delete it")
    mine = [shard for shard in known if shard in set(shards) and in_split(shard, name)]
    if not mine:
        splits = {word for shard in shards for word in re.split(r"[/_.\-]", shard.removesuffix(".tar")) if not word.isdecimal()}
        raise absent("shards of split", name, splits, str(folder), "--data.train_split or --data.val_split")
    table = table.filter(pc.is_in(table["shard"], value_set=pa.array(mine)))
    bad = table.filter(pc.is_valid(table["bad"]))
    left_out = ()
    if bad.num_rows:
        left_out = (f"{bad.num_rows} images of {name} that cannot be read, such as {bad['image_id'][0]} ({bad['bad'][0]})",)
        if config.on_bad_image == "fail":
            raise UserError(
                f"cannot read image {bad['image_id'][0]} in {folder / bad['shard'][0].as_py()} ({bad['bad'][0]}): repair or "
                f"remove it; training leaves such images out ({bad.num_rows}) with --data.on_bad_image skip"
            )
    return folder, table.filter(pc.is_null(table["bad"])), left_out
