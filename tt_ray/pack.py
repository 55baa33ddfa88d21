"""Any data source -> WebDataset shards, over Ray Data: `python -m tt_ray.pack --data.root ROOT --out OUT`."""

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import tyro

from tt_ray.cluster.actor_pool import Pool, PoolOptions, do_missing
from tt_ray.config import DataConfig
from tt_ray.config.checks import check_ranges
from tt_ray.data.shard_writer import ImageOptions, write_shard
from tt_ray.data.sources.base import Source
from tt_ray.data.sources.decoding import VERSION as DECODING
from tt_ray.data.sources.registry import open_source, open_splits
from tt_ray.data.sources.tar_index import INDEX, index_table, write_index
from tt_ray.data.sources.webdataset import find_shards, make_index
from tt_ray.io.one_writer import beside, one_writer
from tt_ray.io.resumable import Shards, digest_of, disk_problems, open_shards
from tt_ray.terminal.command import program, read_arguments, run_command
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.progress import Display


@dataclass(frozen=True)
class Images:
    """Where the images are; the fields are those of the same names in a training's configuration."""

    source: str = "imagefolder"
    """imagefolder (split folders), datasets (Parquet, Arrow, hub), torchvision, webdataset, or MODULE:NAME."""
    root: str = ""
    """Folder, file or hub id of the images; with --index-only the folder of the shards."""
    name: str = ""
    """torchvision: the data set's class name, such as CIFAR10; datasets: the configuration, if it has several."""
    train_split: str = "train"
    """Name of the training split, and of its shards."""
    val_split: str = "test"
    """Name of the validation split, and of its shards; empty packs the training split alone."""
    image_column: str = "image"
    """datasets: column of the image."""
    label_column: str = "label"
    """Column, key or .json field of the label."""
    caption_column: str = "caption"
    """Column, key or .json field of the caption; captions are packed where there are any. Those of a table of their own
    stay there, for --text.captions of the training."""
    id_column: str = ""
    """datasets: column of the image id; empty takes the row number."""


@dataclass(frozen=True)
class Arguments:
    """Any data source -> WebDataset shards with an index. Killed, the same command continues where it stopped."""

    out: Path | None = None
    """New folder of shards; <out>.unfinished next to it keeps what is done until all is."""
    data: Images = field(default_factory=Images)
    images: Annotated[ImageOptions, tyro.conf.arg(name="")] = field(default_factory=ImageOptions)
    shard_size: int = 1000
    """Images of a shard."""
    index_only: bool = False
    """Write nothing but the index of shards that exist, next to them."""
    pool: Annotated[PoolOptions, tyro.conf.arg(name="")] = field(default_factory=lambda: PoolOptions(device="cpu"))


@dataclass(frozen=True)
class Part:
    """Images of one shard."""

    split: int
    """0 for training, 1 for validation."""
    number: int
    """Of the shard in its split."""
    start: int
    stop: int


class Packer:
    """Writes shards; opens the source once in each actor. Returns the rows of the index as JSON."""

    def __init__(self, config: DataConfig, out: Path, options: ImageOptions, pool: Pool) -> None:
        self._splits, self._names, self._out, self._options = open_all(config), names(config), out, options
        self.about: dict[str, Any] = asdict(options)

    def __call__(self, items: list[list[int]]) -> bytes:
        """`items` is one `Part`, as a list."""
        part = Part(*items[0])
        path = self._out / f"{self._names[part.split]}-{part.number:05d}.tar"
        with disk_problems(path):
            found = write_shard(path, self._splits[part.split], range(part.start, part.stop), self._options)
        return json.dumps(found).encode()


def names(config: DataConfig) -> list[str]:
    """The splits that are packed."""
    return [config.train_split, *([config.val_split] if config.val_split else [])]


def open_all(config: DataConfig) -> list[Source]:
    """The splits that are packed, with common classes and with their captions where there are any."""
    return list(open_splits(config, False)) if config.val_split else [open_source(config, "train", False)]


def pack(given: Arguments, display: Display) -> str:
    """Writes shards and index and returns a sentence for the user.

    Raises:
        UserError: An argument cannot be used, or the source cannot be read.
    """
    assert given.out is not None
    out, config = given.out.expanduser().absolute(), DataConfig(**asdict(given.data))
    splits = open_all(config)
    for source in splits:
        display.notes(source.left_out)
    parts = [
        Part(split, number, start, min(start + given.shard_size, len(source)))
        for split, source in enumerate(splits)
        for number, start in enumerate(range(0, len(source), given.shard_size))
    ]
    work = {"images": [digest_of(source.ids) for source in splits], "splits": names(config), "decoding": DECODING}
    work |= {"images per shard": given.shard_size}
    if (out / INDEX).exists():
        raise UserError(f"{out} holds packed images already: delete it or choose another --out")
    with open_shards(out.with_name(f"{out.name}.unfinished"), work, len(parts)) as shards:
        if shards.done:
            shards.check(asdict(given.images))
            display.say(f"continuing {shards.folder}: {shards.done} of {shards.count} shards are done")
        make = partial(Packer, config, out, given.images)
        items = [[[part.split, part.number, part.start, part.stop]] for part in parts]
        do_missing(shards, items, make, given.pool, display, "shards packed")
        sentence = _finish(shards, out, splits[0].classes)
        shards.remove()
    return sentence + _about_captions(splits[0].captions)


def _about_captions(captions: pa.Array | pa.ChunkedArray | None) -> str:
    """What to do where no caption is in the shards."""
    if captions is not None and captions.null_count < len(captions):
        return ""
    return "; without captions: where a table has them, pass it to the training, --text.captions TABLE"


def _finish(shards: Shards, out: Path, classes: tuple[str, ...]) -> str:
    rows = [row for shard in range(shards.count) for row in json.loads(shards.read(shard))]
    for name, end in {row["shard"]: row["offset"] + row["length"] for row in rows}.items():
        if not (out / name).is_file() or (out / name).stat().st_size < end:
            raise UserError(
                f"{out / name} was written and is gone or cut: delete {shards.folder} and {out}, and pack again"
            )
    with disk_problems(out / INDEX):
        write_index(index_table(rows, classes), out)
    bad = [row for row in rows if row["bad"]]
    first = f"the first: {bad[0]['image_id']} ({bad[0]['bad']})" if bad else ""
    noted = f"; {len(bad)} cannot be read and are marked in the index, {first}" if bad else ""
    gib = sum(row["length"] for row in rows) / 2**30
    return f"{len(rows) - len(bad)} images, {gib:.2f} GiB, in {shards.count} shards in {out}{noted}"


def index(given: Arguments) -> str:
    """Writes the index of shards that exist, and returns a sentence for the user."""
    config = DataConfig(**asdict(given.data))
    folder, shards = find_shards(config)
    table = make_index(folder, shards, config)
    bad = table.num_rows - table["bad"].null_count
    found = f"{table.num_rows} images in {len(shards)} shards, {bad} cannot be read"
    return f"{folder / INDEX}: {found}{_about_captions(table['caption'])}"


def main(arguments: list[str]) -> None:
    """Runs the command; raises UserError when its arguments, or what they name, cannot be used."""
    if about_text := [argument for argument in arguments if argument.startswith("--text.")]:
        raise UserError(f"no option {about_text[0]}: a table of captions is not packed, pass it to the training")
    given = read_arguments(Arguments, arguments, program("tt_ray.pack"))
    check_ranges({"": given.images})
    if given.shard_size < 1:
        raise UserError(f"--shard_size is {given.shard_size}, but must be at least 1")
    if given.index_only:
        if given.out is not None:
            raise UserError("--index-only writes the index next to the shards: leave out --out")
        print(index(given))
        return
    if given.out is None:
        raise UserError("pass --out, the folder to write shards to, or --index-only")
    with Display() as display, one_writer(beside(given.out), f"shards {given.out}", say=display.say):
        print(pack(given, display))


if __name__ == "__main__":
    run_command(main)
