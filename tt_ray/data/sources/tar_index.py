"""The index of WebDataset shards: one row for each image, which says where in which tar its bytes lie.

INDEX lies in the folder of the shards, is written last, and makes them random access: an image is read by its offset,
whatever order the training wants.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from tt_ray.io.files import new_file
from tt_ray.terminal.errors import UserError, one_line

pc: Any = pyarrow.compute
INDEX = "index.parquet"
FIELDS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("bad", pa.string()),
        pa.field("group", pa.string()),
    ]
)
"""Columns of an index; `group` (`data.group_column`) may be lacking. `shard` is a path in the folder of the shards;
`offset` and `length` are bytes in it, `width` and `height` pixels, 0 where unknown; `label` is null where an image has
none, `bad` says why it cannot be read."""
_CLASSES = b"classes"
"""Metadata of an index: names of the classes in their order, as JSON; an empty list where they follow from labels."""
_SHARDS = b"shards"
_NUMBERS = b"labels are numbers"
_ROW_GROUP, _ROWS = 2**16, 2**13
"""Rows that are written together, and those that are read together: memory that is needed besides the result."""
_FEW = ["label", "shard", "bad"]
"""Columns of few different texts."""
_TEXTS = ("image_id", "caption", "group")
"""Columns of many."""


class ShardFile(NamedTuple):
    """A shard as it was when it was indexed."""

    bytes: int
    sha256: str


def index_table(rows: pa.Table, shards: Mapping[str, ShardFile], classes: Sequence[str] | None = None) -> pa.Table:
    """Rows of FIELDS as an index, marked where labels are class numbers.

    Ids that occur in several shards get the shard's name before them, all of them alike.

    Args:
        rows: Of all shards.
        shards: Size and checksum of each, by its path.
        classes: Names of the classes in their order; without them it follows from the labels.

    Raises:
        UserError: An id occurs twice in one shard.
    """
    stem = pc.replace_substring_regex(rows["shard"], r"\.tar$", "")
    # Names of shards differ in their numbers alone within a split; another split may have the same keys.
    if _distinct(pc.replace_substring_regex(stem, r"\d+$", ""), rows["image_id"]) < rows.num_rows:
        named = pc.binary_join_element_wise(stem, rows["image_id"], "/")
        rows = rows.set_column(0, FIELDS.field("image_id"), named)
        if (count := rows.num_rows - _distinct(named)) > 0:
            counts = pc.value_counts(named.combine_chunks())
            first = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")[0]
            raise UserError(f"{count} images have the key of another one in their shard, such as {first}: rename them")
    labels = rows["label"].filter(pc.not_equal(rows["label"], ""))
    numbers = bool(len(labels)) and not classes and pc.all(pc.match_substring_regex(labels, "^-?[0-9]{1,18}$")).as_py()
    about = {_NUMBERS: str(numbers), _CLASSES: json.dumps(list(classes or ()))}
    return rows.replace_schema_metadata(about | {_SHARDS: json.dumps(shards)})


def _distinct(*columns: pa.ChunkedArray) -> int:
    names = [str(number) for number in range(len(columns))]
    return pa.table(list(columns), names=names).group_by(names).aggregate([]).num_rows


def write_index(table: pa.Table, path: Path) -> None:
    """Writes an index, whole or not at all. Raises OSError when the disk is full."""
    with new_file(path) as partial:
        few: Any = _FEW  # pyarrow's types know only True and False
        pq.write_table(table, partial, compression="zstd", row_group_size=_ROW_GROUP, use_dictionary=few)


def shards_of(path: Path) -> dict[str, ShardFile]:
    """The shards that an index knows, and what each was. Raises UserError when it cannot be read."""
    with _opened(path) as file:
        about = json.loads((file.schema_arrow.metadata or {}).get(_SHARDS, b"{}"))
    return {name: ShardFile(*each) for name, each in about.items()}


def classes_in(path: Path) -> list[str]:
    """`classes_of` an index file. Raises UserError when it cannot be read."""
    with _opened(path) as file:
        return classes_of(file.schema_arrow)


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Opens an index; what goes wrong with it is a UserError that says what to do."""
    try:
        # Buffered: a row group would be read whole otherwise. Dictionaries: no text is held for each row.
        with pq.ParquetFile(path, read_dictionary=_FEW, buffer_size=2**16, pre_buffer=False) as file:
            if lacking := set(FIELDS.names) - {"group"} - set(file.schema_arrow.names):
                raise UserError(f"{path} is no index of shards: it has no column {', '.join(sorted(lacking))}")
            yield file
    except UserError:
        raise
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}): write it again with tt_ray.pack --index-only"
        ) from None


def read_index(
    path: Path, shards: Collection[str] | None = None, bad: bool = True, groups: bool = False
) -> tuple[pa.Table, pa.Table]:
    """Rows of an index in their order, each column one array, those of few different texts a dictionary.

    Reads a part at a time: at no time is much more in memory than the result.

    Args:
        path: The index.
        shards: Takes the rows of these alone.
        bad: Takes images that cannot be read too.
        groups: Takes the column `group` too, where there is one.

    Returns:
        The rows, and those of images that cannot be read.

    Raises:
        UserError: It cannot be read, or is none.
    """
    with _opened(path) as file:
        # A column of texts at a time, by small parts: together they would need twice the memory.
        wanted_too = {"group"} if groups else set[str]()
        names = [name for name in file.schema_arrow.names if name in set(FIELDS.names) - {"group"} | wanted_too]
        few = file.read(columns=[name for name in names if name not in _TEXTS])
        keep = np.ones(len(few), bool)
        if shards is not None:
            wanted = pa.array(sorted(shards), pa.string())
            few = few.unify_dictionaries()
            keep = _marked(few["shard"], pc.is_in(_one(few["shard"]).dictionary, wanted))
        readable = np.asarray(few["bad"].is_null())
        whole = keep if bad else keep & readable
        columns = {name: _one(few[name].filter(pa.array(whole))) for name in few.column_names}
        broken = few.filter(pa.array(keep & ~readable))
        del few
        columns |= {name: _texts(file, name, whole) for name in names if name in _TEXTS}
        if len(broken):
            broken = broken.append_column("image_id", _texts(file, "image_id", keep & ~readable))
        metadata = file.schema_arrow.metadata
    table = pa.table({name: columns[name] for name in FIELDS.names if name in columns}).replace_schema_metadata(
        metadata
    )
    pa.default_memory_pool().release_unused()
    return table, broken


def _marked(column: pa.ChunkedArray, of_value: pa.Array) -> npt.NDArray[np.bool_]:
    """Which rows of a dictionary column have a value that is marked."""
    return np.asarray(of_value)[_one(column).indices.to_numpy()]


def _texts(file: pq.ParquetFile, name: str, keep: npt.NDArray[np.bool_]) -> pa.StringArray:
    """The kept rows of a column of texts, which grows in place: joining its parts at the end would hold it twice.

    Raises:
        UserError: It is longer than Arrow's texts can be.
    """
    count, data = int(keep.sum()), bytearray()
    ends, valid = np.zeros(count + 1, np.int64), np.ones(count, bool)
    done = first = 0
    for batch in file.iter_batches(_ROWS, columns=[name], use_threads=False):
        part = batch[0].filter(pa.array(keep[first : first + len(batch)])).cast(pa.large_string())
        first += len(batch)
        stop = done + len(part)
        bounds = np.frombuffer(part.buffers()[1], np.int64, len(part) + 1, 8 * part.offset)
        ends[done + 1 : stop + 1] = bounds[1:] - bounds[0] + len(data)
        if bounds[-1] > bounds[0]:
            data += memoryview(part.buffers()[2])[bounds[0] : bounds[-1]]
        valid[done:stop] = part.is_valid()
        done = stop
    if len(data) >= 2**31:
        raise UserError(
            f"{name} of {len(data):,} bytes is more than an index can hold (2 GiB): leave captions out of it, and pass "
            "a caption table with --text.captions"
        )
    bitmap = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.StringArray.from_buffers(count, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(data), bitmap)


def classes_of(schema: pa.Schema) -> list[str]:
    """The classes that an index declares, in their order; none where it follows from the labels."""
    return json.loads((schema.metadata or {}).get(_CLASSES, b"[]"))


def labels_are_numbers(index: pa.Table) -> bool:
    """Whether the labels of an index are class numbers, written as text."""
    return (index.schema.metadata or {}).get(_NUMBERS) == b"True"


def _one(column: pa.ChunkedArray) -> Any:
    """A column as one array."""
    return column.unify_dictionaries().combine_chunks()
