"""Embeddings of others -> embedding store: TextTeacher's all_encodings.zip, and Hugging Face data sets."""

import io
import json
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from tt_ray.embeddings.store import EmbeddingStore, open_store, write_store
from tt_ray.io.resumable import Shards, digest_of, disk_problems, open_shards, remove_halves
from tt_ray.terminal.errors import UserError
from tt_ray.text.image_ids import class_of, match_ids

# pyarrow makes these functions when it is imported: type checkers do not know them.
pc: Any = pyarrow.compute
_SUFFIX = ".emb.npy"
# Members of the archive that are read between two points that a killed import goes on from: 32 MiB at D = 1024.
_SHARD = 16384
_BLOCK = 8192
# A member has one embedding: more bytes than this are none, and a compressed member could claim any number.
_MEMBER_BYTES = 1 << 20
_MADE_OF = "members_sha256"
ABOUT = "embedding_store.json"
"""Beside the Parquet files of an exported store: what its manifest tells of the encoder."""

Dtype = Literal["float16", "float32"]
Show = Callable[[str, int, int], None]
"""Called with what is going on, how much is done, and of how much."""


@dataclass(frozen=True)
class Imported:
    """A store made of somebody's embeddings."""

    store: EmbeddingStore
    notes: tuple[str, ...]
    """Sentences on what was left over, or stands in for something."""


def import_zip(
    archive: Path, out: Path, ids: pa.StringArray | None, stats: Path | None, dtype: Dtype, encoder: str, show: Show
) -> Imported:
    """Streams an `all_encodings.zip` of `<image file name>.emb.npy` members into a new store at `out`.

    With `ids`, each image gets the member of its file name, else its class's: the member named like the part of the
    file name before the first underscore. Without them, members' names are the ids. `stats` is the (2, D) file of mean
    and standard deviation that belongs to the archive; by default the stats.npy beside it, and without one they are
    computed. Killed, the same call goes on from <out>.unfinished; where it is done already, it does nothing. Raises
    UserError when anything is not as described.
    """
    with _open(archive) as file:
        members = _members(file, archive)
        names = pa.array([_name(member) for member in members], pa.string())
        rows, kept, notes = _choose(names, ids)
        used, inverse = np.unique(rows, return_inverse=True)
        order = inverse.argsort(kind="stable")  # the archive's order: its embeddings are then read and written once
        index, kept = inverse[order], kept.take(pa.array(order))
        chosen = [members[row] for row in used]
        dim = len(_read(file, chosen[0], archive))
        given = _read_stats(stats or archive.with_name("stats.npy"), dim, needed=stats is not None)
        sums = pa.array([f"{member.CRC:08x}" for member in chosen])
        work = {"archive": digest_of(names.take(pa.array(used)), sums), "dim": dim, "dtype": dtype}
        about = _about(archive, encoder)
        sources = [json.dumps([work, None if given is None else given.tolist()])]
        about[_MADE_OF] = digest_of(kept, names.take(pa.array(rows[order])), pa.array(sources))
        unfinished = out.with_name(f"{out.name}.unfinished")
        if _is_taken(out):
            store = _must_be_this(out, about)
            shutil.rmtree(unfinished, ignore_errors=True)  # killed between the last two steps
            return Imported(store, ("it was complete already: nothing was done",))
        count = -(-len(chosen) // _SHARD)
        with open_shards(unfinished, work, count) as shards:
            missing, done = shards.missing(), 0
            left = sum(len(chosen[shard * _SHARD : (shard + 1) * _SHARD]) for shard in missing)
            for shard in missing:
                part = chosen[shard * _SHARD : (shard + 1) * _SHARD]
                shards.add(shard, {"by": "import_zip"}, _gather(file, part, dim, np.dtype(dtype), archive))
                done += len(part)
                show("embeddings read", done, left)
            total = np.zeros(dim)
            with disk_problems(out):
                remove_halves(out)
                blocks = _blocks(shards, index, total, show)
                store = write_store(out, kept, blocks, len(kept), dim, dtype, about, given)
            shards.remove()
    if given is not None:  # another archive's would be far off
        off = np.abs(total / len(kept) - given[0]) / np.maximum(given[1], 1e-6)
        notes.append(f"mean and std are those of the given file; its mean is up to {off.max():.2g} std off the rows'")
    return Imported(store, tuple(notes))


def import_dataset(
    source: str, split: str, id_column: str, embedding_column: str, out: Path, dtype: Dtype, encoder: str, show: Show
) -> Imported:
    """Streams a split of a Hugging Face data set (a folder of Parquet or Arrow, or a hub id) into a new store at `out`.

    Raises UserError when the data set, its split or a column is missing, when embeddings differ in length or are null,
    and as `write_store` does.
    """
    if _is_taken(out):
        raise UserError(f"{out} exists already: delete it or give another --out")
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

    about = _about(Path(source).expanduser(), encoder)
    with disk_problems(out):
        return Imported(write_store(out, ids, blocks(), len(ids), first.shape[1], dtype, about), ())


def _is_taken(out: Path) -> bool:
    return out.is_file() or (out.is_dir() and any(out.iterdir()))


def _must_be_this(out: Path, about: dict[str, Any]) -> EmbeddingStore:
    """The store at `out`; raises UserError unless it was imported like this."""
    store = open_store(out, verify=True) if (out / "manifest.json").is_file() else None
    if store is None or store.manifest["encoder"] != about:
        raise UserError(f"{out} exists already, made of something else: delete it or give another --out")
    return store


def _about(source: Path, encoder: str) -> dict[str, Any]:
    """What the manifest tells of the encoder: what an exported store has beside it, or its name alone."""
    if not encoder and (source / ABOUT).is_file():
        return json.loads((source / ABOUT).read_text(encoding="utf-8"))
    return {"id": encoder, "revision": "", "pooling": "", "max_tokens": 0, "imported_from": source.name}


def _open(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except OSError as error:
        raise UserError(f"cannot read archive {archive}: {error.strerror}") from None
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive} is no intact zip file ({error}): fetch it again") from None


def _members(file: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    """The embeddings, in the order in which they lie in the archive."""
    members = [member for member in file.infolist() if member.filename.endswith(_SUFFIX)]
    for member in members:
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename:
            raise UserError(f"{archive}: {member.filename!r} points outside of the archive; it is not to be trusted")
        if member.file_size > _MEMBER_BYTES:
            raise UserError(f"{archive}: {member.filename} has {member.file_size} bytes, which is no embedding")
    if not members:
        raise UserError(f"{archive} has no <image file name>{_SUFFIX}")
    return sorted(members, key=lambda member: member.header_offset)


def _name(member: zipfile.ZipInfo) -> str:
    return member.filename.removesuffix(_SUFFIX)


def _choose(
    names: pa.StringArray, ids: pa.StringArray | None
) -> tuple[npt.NDArray[np.int64], pa.StringArray, list[str]]:
    """The member of each image that has one, (n,), those images' ids, and what there is to say about the others."""
    if ids is None:
        return np.arange(len(names)), names, _class_notes(names)
    rows = match_ids(ids, names)
    free = np.flatnonzero(rows < 0)
    of_class = pc.index_in(class_of(ids.take(pa.array(free))), names).fill_null(-1).to_numpy()
    rows[free] = of_class
    found = np.flatnonzero(rows >= 0)
    if not len(found):
        raise UserError(
            f"none of {len(ids)} images, such as {ids[0]}, has an embedding among {len(names)}, such as {names[0]}"
        )
    counts = {
        "images have their class's embedding": int((of_class >= 0).sum()),
        "images have no embedding and are left out": len(ids) - len(found),
        "embeddings belong to no image and are left out": len(names) - len(np.unique(rows[found])),
    }
    return rows[found], ids.take(pa.array(found)), [f"{number} {what}" for what, number in counts.items() if number]


def _class_notes(names: pa.StringArray) -> list[str]:
    """What there is to say where names are taken for image ids, and some are those of other images' classes."""
    classes = class_of(names)
    found = names.filter(pc.is_in(names, classes.filter(pc.not_equal(classes, names))))
    if not len(found):
        return []
    return [
        f"{len(found)} embeddings, such as {found[0]}, are named like other images' classes, and their names are image "
        "ids now: give --ids to have them stand in for images without one"
    ]


def _read(file: zipfile.ZipFile, member: zipfile.ZipInfo, archive: Path) -> npt.NDArray[Any]:
    """One embedding, (D,)."""
    try:
        array = np.lib.format.read_array(io.BytesIO(file.read(member)), allow_pickle=False)
    except (ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{archive}: {member.filename} cannot be read ({reason}); fetch the archive again") from None
    if array.dtype.kind != "f" or not array.size or array.size != max(array.shape, default=0):
        raise UserError(f"{archive}: {member.filename} is {array.dtype} of shape {array.shape}, which is no embedding")
    return array.reshape(-1)


def _gather(
    file: zipfile.ZipFile, members: list[zipfile.ZipInfo], dim: int, dtype: np.dtype[Any], archive: Path
) -> bytes:
    """The members' embeddings as .npy, (len(members), dim)."""
    table = np.empty((len(members), dim), dtype)
    for row, member in enumerate(members):
        vector = _read(file, member, archive)
        if len(vector) != dim:
            raise UserError(f"{archive}: {member.filename} has {len(vector)} numbers, but others have {dim}")
        with np.errstate(over="ignore"):  # what is infinite then is refused with its id when the store is written
            table[row] = vector
    content = io.BytesIO()
    np.save(content, table)
    return content.getvalue()


def _blocks(
    shards: Shards, index: npt.NDArray[np.int64], total: npt.NDArray[np.float64], show: Show
) -> Iterator[np.ndarray]:
    """Rows `index`, which rise, of the shards' concatenated tables; adds them up in `total`, (D,)."""
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
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from None
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
                    f"{source} has no split {split}, but {', '.join(map(str, saved))}: give another --split"
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
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"cannot read {source} ({split}): {reason}") from None


def _vectors(column: Any, name: str, where: str) -> npt.NDArray[Any]:
    """A column of lists as (n, D)."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_kind(column.type) for is_kind in kinds):
        raise UserError(f"{where}: column {name} holds {column.type}, not lists of numbers")
    lengths = pc.list_value_length(column)
    if column.null_count or len(lengths.unique()) != 1 or not pa.types.is_floating(column.type.value_type):
        raise UserError(f"{where}: column {name} has empty embeddings, or some that differ in length, or no floats")
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
