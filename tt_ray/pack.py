"""Any data source -> WebDataset shards, over Ray Data: `python -m tt_ray.pack --data.root ROOT --out OUT`."""

import json
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import pyarrow as pa
import tyro

from tt_ray.cluster.actor_pool import Pool, PoolOptions, do_missing
from tt_ray.config import DataConfig
from tt_ray.config.checks import check_ranges
from tt_ray.data.shard_folder import ShardFolder
from tt_ray.data.shard_writer import ImageOptions, write_shard
from tt_ray.data.sources.base import Source
from tt_ray.data.sources.decoding import VERSION as DECODING
from tt_ray.data.sources.registry import open_source, open_splits, without_labels
from tt_ray.data.sources.shard_files import ShardFiles, find_shards
from tt_ray.data.sources.tar_index import FIELDS, INDEX, ShardFile, classes_in, classes_of, index_table
from tt_ray.data.sources.webdataset import make_index
from tt_ray.io.files import sha256
from tt_ray.io.local_copy import Show
from tt_ray.io.one_writer import one_writer
from tt_ray.io.resumable import Shards, digest_of, open_shards
from tt_ray.terminal.command import program, read_arguments, run_command
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.progress import Display


@dataclass(frozen=True)
class Images:
    """Where the images are; the fields are those of the same names in a training's configuration."""

    source: str = "imagefolder"
    """imagefolder (split folders), datasets (Parquet, Arrow, hub), torchvision, webdataset, or MODULE:NAME."""
    root: str = ""
    """Folder, file, hub id or URI of the images; with --index-only folder, URI or pattern of the shards."""
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
    group_column: str = ""
    """Column or key of each image's group, which is packed as `group` for --data.group_column group."""
    id_column: str = ""
    """datasets: column of the image id; empty takes the row number."""
    index: str = ""
    """webdataset: file, folder or URI of the index; empty takes index.parquet next to the shards."""
    local_cache: str = ""
    """Folder of copies of what lies in object storage; empty takes tt-ray/data in the user's cache (~/.cache)."""


@dataclass(frozen=True)
class Arguments:
    """Any data source -> WebDataset shards with an index. Killed, the same command continues where it stopped."""

    out: str = ""
    """New folder of shards, or its URI (s3://, gs://). <out>.unfinished keeps what is done until all is; for a URI it
    lies in data.local_cache. With --index-only: folder or URI to write the index to, instead of next to the shards."""
    data: Images = field(default_factory=Images)
    images: Annotated[ImageOptions, tyro.conf.arg(name="")] = field(default_factory=ImageOptions)
    shard_size: int = 1000
    """Images of a shard."""
    unlabelled: bool = False
    """Pack the images without labels, whether they have any or not: for captioning and embedding."""
    index_only: bool = False
    """Write nothing but the index of shards that exist, in a folder or behind a URI."""
    pool: Annotated[PoolOptions, tyro.conf.arg(name="")] = field(default_factory=lambda: PoolOptions(device="cpu"))


@dataclass(frozen=True)
class Part:
    """Images of one shard: rows of a split."""

    source: Source
    shard: str
    rows: range


class Packer:
    """Writes shards; opens the source once in each actor. Returns the rows of the index as JSON."""

    def __init__(self, given: Arguments, pool: Pool) -> None:
        self._out, self._options = ShardFolder.open(given.out, given.data.local_cache), given.images
        # By the first image of each.
        self._parts = {items[0]: part for items, part in parts(open_all(given), given)}
        self.about: dict[str, Any] = asdict(given.images)

    def __call__(self, items: list[int]) -> bytes:
        """`items` are the images of a shard, counted over all splits."""
        part = self._parts[items[0]]
        with self._out.writing(part.shard) as path:
            rows = write_shard(path, part.shard, part.source, part.rows, self._options)
            about = ShardFile(path.stat().st_size, sha256(path))
        return json.dumps([part.shard, about, rows]).encode()


def names(given: Arguments) -> list[str]:
    """The splits that are packed."""
    return [given.data.train_split, *([given.data.val_split] if given.data.val_split else [])]


def open_all(given: Arguments) -> list[Source]:
    """The splits that are packed, with common classes and with their captions where there are any."""
    config = DataConfig(**asdict(given.data))
    if given.unlabelled:
        splits = [without_labels(config, split) for split in ("train", "val")[: len(names(given))]]
    else:
        splits = list(open_splits(config, False)) if config.val_split else [open_source(config, "train", False)]
    if config.group_column and any(source.groups is None for source in splits):
        why = (
            "--unlabelled packs no groups" if given.unlabelled else f"{config.source} {config.root} has no such groups"
        )
        raise UserError(f"data.group_column {config.group_column!r}: {why}; leave it out")
    return splits


def parts(splits: list[Source], given: Arguments) -> list[tuple[range, Part]]:
    """The images of each shard, counted over all splits, and what the shard is."""
    found: list[tuple[range, Part]] = []
    before = 0
    for source, name in zip(splits, names(given), strict=True):
        name = "images" if name == "." else name  # shards of a folder without splits
        for number, start in enumerate(range(0, len(source), given.shard_size)):
            rows = range(start, min(start + given.shard_size, len(source)))
            items = range(before + rows.start, before + rows.stop)
            found.append((items, Part(source, f"{name}-{number:05d}.tar", rows)))
        before += len(source)
    return found


def pack(given: Arguments, out: ShardFolder, display: Display) -> str:
    """Writes shards and index and returns a sentence for the user.

    Raises:
        UserError: An argument cannot be used, or the source cannot be read.
    """
    splits = open_all(given)
    for source in splits:
        display.notes(source.left_out)
    items = [items for items, _ in parts(splits, given)]
    work = {"images": [digest_of(source.ids) for source in splits], "splits": names(given), "decoding": DECODING}
    work |= {"images per shard": given.shard_size, "labels": not given.unlabelled, "groups": given.data.group_column}
    # The index has them of each shard as they were when it was written.
    work["labels, captions and groups"] = [_digest_of_texts(source) for source in splits]
    there = out.sizes()
    if INDEX in there:
        raise UserError(f"{out.place} holds packed images already: delete it or choose another --out")
    # Shards of this command alone may be written again.
    if not out.unfinished.exists() and (tars := sorted(name for name in there if name.endswith(".tar"))):
        raise UserError(f"{out.place} holds shards already, such as {tars[0]}: move them or choose another --out")
    with open_shards(out.unfinished, work, len(items)) as shards:
        if shards.done:
            shards.check(asdict(given.images))
            display.say(f"continuing {shards.folder}: {shards.done} of {shards.count} shards are done")
        do_missing(shards, items, partial(Packer, given), given.pool, display, "images packed")
        sentence = _finish(shards, out, () if given.unlabelled else splits[0].classes)
        shards.remove()
    return sentence + _about_captions(splits[0].captions)


def _digest_of_texts(source: Source) -> str:
    numbers = pa.array(source.labels).cast(pa.string())
    columns = [column.fill_null("") for column in (source.captions, source.groups) if column is not None]
    return digest_of(pa.array(source.classes, pa.string()), numbers, *columns)


def _about_captions(captions: pa.Array | pa.ChunkedArray | None) -> str:
    """What to do where no caption is in the shards."""
    if captions is not None and captions.null_count < len(captions):
        return ""
    return "; without captions: where a table has them, pass it to the training, --text.captions TABLE"


def _finish(shards: Shards, out: ShardFolder, classes: tuple[str, ...]) -> str:
    """Writes the index of finished shards; returns a sentence on it."""
    tables: list[pa.Table] = []
    about: dict[str, ShardFile] = {}
    for number in range(shards.count):
        name, file, rows = json.loads(shards.read(number))
        about[name] = ShardFile(*file)
        tables.append(pa.Table.from_pylist(rows, schema=FIELDS))
    there = out.sizes()
    for name, file in about.items():
        if there.get(name) != file.bytes:
            raise UserError(
                f"{out.place}/{name} was written and is gone or cut: delete {shards.folder} and {out.place}, and pack "
                "again"
            )
    table = index_table(pa.concat_tables(tables), about, classes)
    out.write_index(table)
    bad = table.filter(table["bad"].is_valid())
    first = f"the first: {bad['image_id'][0]} ({bad['bad'][0]})" if len(bad) else ""
    noted = f"; {len(bad)} cannot be read and are marked in the index, {first}" if len(bad) else ""
    gib = sum(file.bytes for file in about.values()) / 2**30
    return f"{len(table) - len(bad)} images, {gib:.2f} GiB, in {shards.count} shards in {out.place}{noted}"


def index(given: Arguments, show: Show) -> str:
    """Writes the index of shards that exist, and returns a sentence for the user."""
    data = replace(given.data, index=given.out or given.data.index)
    config = DataConfig(**asdict(data))
    shards = find_shards(config)
    # Of the index that this one replaces: a trained model's outputs are in that order.
    classes = _declared(shards)
    table = make_index(shards, config, show, classes)
    shards.write_index(table)
    bad = table.num_rows - table["bad"].null_count
    found = f"{table.num_rows} images in {len(shards.sizes)} shards, {bad} cannot be read"
    if classes and not classes_of(table.schema):
        found += f"; labels are not all of the {len(classes)} classes of the index before: classes are numbered anew"
    return f"{shards.index}: {found}{_about_captions(table['caption'])}"


def _declared(shards: ShardFiles) -> list[str]:
    """The classes of the index that is there; none where there is no index, or one that cannot be read."""
    try:
        path = shards.fetch_index()
        return [] if path is None else classes_in(path)
    except UserError:
        return []


def main(arguments: list[str]) -> None:
    """Runs the command; raises UserError when its arguments, or what they name, cannot be used."""
    if about_text := [argument for argument in arguments if argument.startswith("--text.")]:
        raise UserError(f"no option {about_text[0]}: a table of captions is not packed, pass it to the training")
    given = read_arguments(Arguments, arguments, program("tt_ray.pack"))
    check_ranges({"": given.images})
    if given.shard_size < 1:
        raise UserError(f"--shard_size is {given.shard_size}, but must be at least 1")
    if given.index_only:
        with Display() as display:
            sentence = index(given, display.show)
        print(sentence)
        return
    if not given.out:
        raise UserError("pass --out, the folder to write shards to, or --index-only")
    out = ShardFolder.open(given.out, given.data.local_cache)
    storage = given.out if out.remote is not None else ""
    with Display() as display, one_writer(out.claims, f"shards {out.place}", storage=storage, say=display.say):
        sentence = pack(given, out, display)
    print(sentence)


if __name__ == "__main__":
    run_command(main)
