"""Embeddings from elsewhere -> embedding store: TextTeacher's all_encodings.zip, and Hugging Face data sets."""

import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from tt_ray.embeddings.build import Dtype, Show, write_store
from tt_ray.embeddings.store import MANIFEST, EmbeddingStore, open_store
from tt_ray.embeddings.zip_archive import Archive, open_archive
from tt_ray.io.resumable import Shards, digest_of, disk_problems, open_shards, remove_halves
from tt_ray.terminal.errors import UserError, one_line
from tt_ray.text.image_ids import class_of, match_ids

# pyarrow makes these functions when it is imported: type checkers do not know them.
pc: Any = pyarrow.compute
# Members of the archive that are read between two points from which a killed import continues: 32 MiB at D = 1024.
_SHARD = 16384
_BLOCK = 8192
_MADE_OF = "members_sha256"
ABOUT = "embedding_store.json"
"""File next to the Parquet files of an exported store: its manifest's entry about the encoder."""


@dataclass(frozen=True)
class Target:
    """The store to make."""

    out: Path
    """Its folder, absolute."""
    dtype: Dtype = "float16"
    encoder: str = ""
    """Name of the text encoder, for the manifest; empty takes what an exported store says of itself."""


@dataclass(frozen=True)
class Imported:
    """A store made of embeddings from elsewhere."""

    store: EmbeddingStore
    notes: tuple[str, ...]
    """Sentences on what was left over, or stands in for something."""


@dataclass(frozen=True)
class _Choice:
    """Which members are read, and the images that get them."""

    members: list[zipfile.ZipInfo]
    """Each once, in the archive's order: its embeddings are then read and written once."""
    names: pa.StringArray
    """Image file names of these members."""
    index: npt.NDArray[np.int64]
    """The place in `members` of each image's own, rising, (n,)."""
    ids: pa.StringArray
    """The images' ids, in the order of `index`."""
    notes: list[str]


def import_zip(archive: Path, target: Target, ids: pa.StringArray | None, stats: Path | None, show: Show) -> Imported:
    """Streams an `all_encodings.zip` of `<image file name>.emb.npy` members into a new store.

    Killed, the same call continues from <out>.unfinished; where the store is complete already, it does nothing.

    Args:
        archive: The zip file.
        target: The new store.
        ids: Image ids to assign embeddings to. Each image gets the member of its file name, else its class's: the
            member named like the part of the file name before the first underscore. None takes the members' names
            as ids.
        stats: File of mean and standard deviation, (2, D), to keep. None takes the stats.npy next to the archive, and
            where there is none, they are computed.
        show: Called as embeddings are read and written.

    Raises:
        UserError: Anything is not as described.
    """
    with open_archive(archive) as source:
        choice = _choose(source, ids)
        dim = len(source.read(choice.members[0]))
        given = _read_stats(stats or archive.with_name("stats.npy"), dim, needed=stats is not None)
        sums = pa.array([f"{member.CRC:08x}" for member in choice.members])
        work = {"archive": digest_of(choice.names, sums), "dim": dim, "dtype": target.dtype}
        about = _about(archive, target.encoder)
        # Everything that the store's content follows from: a finished store of another making is refused.
        settings = pa.array([json.dumps([work, None if given is None else given.tolist()])])
        about[_MADE_OF] = digest_of(choice.ids, choice.names.take(pa.array(choice.index)), settings)
        unfinished = target.out.with_name(f"{target.out.name}.unfinished")
        if _is_taken(target.out):
            store = _must_be_this(target.out, about)
            shutil.rmtree(unfinished, ignore_errors=True)  # killed between the last two steps
            return Imported(store, ("it was complete already: nothing was done",))
        with open_shards(unfinished, work, -(-len(choice.members) // _SHARD)) as shards:
            _read_missing(source, choice.members, shards, show)
            total = np.zeros(dim)
            with disk_problems(target.out):
                remove_halves(target.out)
                blocks = _blocks(shards, choice.index, total, show)
                store = write_store(target.out, choice.ids, blocks, dim, target.dtype, about, given)
            shards.remove()  # last: until the store is there, they are all that has been done
    if given is None:
        return Imported(store, tuple(choice.notes))
    off = np.abs(total / len(store) - given[0]) / np.maximum(given[1], 1e-6)  # another archive's would be far off
    note = f"mean and std are those of the given file; its mean is up to {off.max():.2g} std off the rows'"
    return Imported(store, (*choice.notes, note))


def _read_missing(source: Archive, members: list[zipfile.ZipInfo], shards: Shards, show: Show) -> None:
    """Reads the members of all shards that are still to do, each shard a table (n, dim) as .npy."""
    dim, dtype = shards.work["dim"], np.dtype(shards.work["dtype"])
    parts = {shard: members[shard * _SHARD : (shard + 1) * _SHARD] for shard in shards.missing()}
    left, done = sum(map(len, parts.values())), 0
    for shard, part in parts.items():
        content = io.BytesIO()
        np.save(content, source.read_all(part, dim, dtype))
        shards.add(shard, {"by": "import_zip"}, content.getvalue())
        done += len(part)
        show("embeddings read", done, left)


def import_dataset(
    source: str, split: str, id_column: str, embedding_column: str, target: Target, show: Show
) -> Imported:
    """Streams a split of a Hugging Face data set into a new store.

    Args:
        source: Folder of Parquet or Arrow files, folder of save_to_disk, or an id on the hub.
        split: Its split.
        id_column: Column of image ids.
        embedding_column: Column of embeddings: lists of equally many floats.
        target: The new store.
        show: Called as embeddings are imported.

    Raises:
        UserError: The data set, its split or a column is missing, embeddings differ in length or are null, or what
            `write_store` refuses.
    """
    if _is_taken(target.out):
        raise UserError(f"{target.out} exists already: delete it or choose another --out")
    where = f"{source} ({split})"
    parts = [batch[id_column] for batch in _stream(source, split, [id_column])]
    if not parts:
        raise UserError(f"{where} has no rows")
    ids = pa.chunked_array([chunk for part in parts for chunk in part.chunks]).cast(pa.string()).combine_chunks()
    batches = (batch[embedding_column] for batch in _stream(source, split, [embedding_column]))
    vectors = (_vectors(batch.combine_chunks(), embedding_column, where) for batch in batches)
    first = next(vectors)

    def blocks() -> Iterator[np.ndarray]:
        done, block = 0, first
        while block is not None:
            if block.shape[1] != first.shape[1]:
                raise UserError(f"{where}: {embedding_column} has both {first.shape[1]} and {block.shape[1]} numbers")
            yield block
            done += len(block)
            show("embeddings imported", done, len(ids))
            block = next(vectors, None)

    about = _about(Path(source).expanduser(), target.encoder)
    with disk_problems(target.out):
        return Imported(write_store(target.out, ids, blocks(), first.shape[1], target.dtype, about), ())


def _is_taken(out: Path) -> bool:
    return out.is_file() or (out.is_dir() and any(out.iterdir()))


def _must_be_this(out: Path, about: dict[str, Any]) -> EmbeddingStore:
    """The store at `out`; raises UserError unless it was imported like this."""
    store = open_store(out, verify=True) if (out / MANIFEST).is_file() else None
    if store is None or store.manifest["encoder"] != about:
        raise UserError(f"{out} exists already, made of something else: delete it or choose another --out")
    return store


def _about(source: Path, encoder: str) -> dict[str, Any]:
    """The manifest's entry about the encoder: that of an exported store, or the encoder's name alone."""
    if not encoder and (source / ABOUT).is_file():
        return json.loads((source / ABOUT).read_text(encoding="utf-8"))
    return {"id": encoder, "revision": "", "pooling": "", "max_tokens": 0, "imported_from": source.name}


def _choose(archive: Archive, ids: pa.StringArray | None) -> _Choice:
    """Chooses the member of each image that has one; notes say what is left of the others."""
    if ids is None:
        rows, kept, notes = np.arange(len(archive.names)), archive.names, _class_notes(archive.names)
    else:
        rows, notes = _match(archive.names, ids)
        found = np.flatnonzero(rows >= 0)
        rows, kept = rows[found], ids.take(pa.array(found))
    used, inverse = np.unique(rows, return_inverse=True)
    order = inverse.argsort(kind="stable")
    members = [archive.members[row] for row in used]
    return _Choice(members, archive.names.take(pa.array(used)), inverse[order], kept.take(pa.array(order)), notes)


def _match(names: pa.StringArray, ids: pa.StringArray) -> tuple[npt.NDArray[np.int64], list[str]]:
    """The row of `names` for each image, -1 for none, (len(ids),), and notes on images and names without another."""
    rows = match_ids(ids, names)
    free = np.flatnonzero(rows < 0)
    of_class = pc.index_in(class_of(ids.take(pa.array(free))), names).fill_null(-1).to_numpy()
    rows[free] = of_class
    found = rows[rows >= 0]
    if not len(found):
        raise UserError(
            f"none of {len(ids)} images, such as {ids[0]}, has an embedding among {len(names)}, such as {names[0]}"
        )
    counts = {
        "images have their class's embedding": int((of_class >= 0).sum()),
        "images have no embedding and are left out": len(ids) - len(found),
        "embeddings belong to no image and are left out": len(names) - len(np.unique(found)),
    }
    return rows, [f"{number} {what}" for what, number in counts.items() if number]


def _class_notes(names: pa.StringArray) -> list[str]:
    """A note where names are taken for image ids, and some are those of other images' classes."""
    classes = class_of(names)
    found = names.filter(pc.is_in(names, classes.filter(pc.not_equal(classes, names))))
    if not len(found):
        return []
    return [
        f"{len(found)} embeddings, such as {found[0]}, are named like other images' classes, and their names are image "
        "ids now: with --ids they stand in for images without one"
    ]


def _blocks(
    shards: Shards, index: npt.NDArray[np.int64], total: npt.NDArray[np.float64], show: Show
) -> Iterator[np.ndarray]:
    """Rows `index`, which rise, of the shards' concatenated tables, whose sum is added to `total`, (D,)."""
    for shard in range(shards.count):
        table = np.load(io.BytesIO(shards.read(shard)), allow_pickle=False)
        start, stop = np.searchsorted(index, [shard * _SHARD, (shard + 1) * _SHARD])
        for first in range(start, stop, _BLOCK):
            block = table[index[first : min(first + _BLOCK, stop)] - shard * _SHARD]
            total += block.sum(0, dtype=np.float64)
            yield block
        show("embeddings written", int(stop), len(index))


def _read_stats(path: Path, dim: int, needed: bool) -> np.ndarray | None:
    if not path.exists() and not needed:
        return None
    try:
        stats = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path}: {one_line(error)}") from None
    if stats.shape != (2, dim) or stats.dtype.kind != "f" or not np.isfinite(stats).all() or (stats[1] < 0).any():
        raise UserError(f"{path} is not the mean and standard deviation of {dim} numbers, shape (2, {dim})")
    return stats


def _stream(source: str, split: str, columns: list[str]) -> Iterator[pa.Table]:
    """A data set's columns in batches of _BLOCK rows, without copying it into a cache."""
    import datasets
    from datasets.exceptions import DatasetsError

    from tt_ray.data.sources.table_files import dataset_builder

    datasets.disable_progress_bars()
    folder = Path(source).expanduser()
    try:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(str(folder))
            if isinstance(saved, datasets.DatasetDict) and split not in saved:
                raise UserError(
                    f"{source} has no split {split}, but {', '.join(map(str, saved))}: choose another --split"
                )
            data: Any = saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            data = dataset_builder(folder.absolute(), source).as_streaming_dataset(split)
        there = data.column_names or list(next(iter(data.take(1)), {}))
        for column in columns:
            if column not in there:
                raise UserError(f"{source} ({split}) has no column {column}, but {', '.join(there)}")
        yield from data.select_columns(columns).with_format("arrow").iter(batch_size=_BLOCK)
    except UserError:
        raise
    except (OSError, ValueError, DatasetsError, pa.ArrowException) as error:
        cause = one_line(error.__cause__ or error)
        raise UserError(f"cannot read {source} ({split}): {cause}") from None


def _vectors(column: Any, name: str, where: str) -> npt.NDArray[Any]:
    """A column of lists as (n, D)."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_kind(column.type) for is_kind in kinds):
        raise UserError(f"{where}: column {name} holds {column.type}, not lists of numbers")
    lengths = pc.list_value_length(column)
    if column.null_count or len(lengths.unique()) != 1 or not pa.types.is_floating(column.type.value_type):
        raise UserError(f"{where}: column {name} has empty embeddings, or some that differ in length, or no floats")
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
