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
    ]
)
"""Columns of an index. `shard` is a path in the folder of the shards; `offset` and `length` are bytes in it, `width`
and `height` pixels, 0 where unknown; `label` is null where an image has none, `bad` says why it cannot be read."""
CLASSES = b"classes"
"""Metadata of an index: names of the classes in their order, as JSON; an empty list where they follow from labels."""
_SHARDS = b"shards"
_NUMBERS = b"labels are numbers"
_ROWS = 2**16
"""Rows that are read together: what memory is needed for besides the result."""
_FEW = ["label", "shard", "bad"]
"""Columns of few different values."""


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
    numbers = bool(len(labels)) and not classes and pc.all(pc.match_substring_regex(labels, "^[0-9]+$")).as_py()
    about = {_NUMBERS: str(numbers), CLASSES: json.dumps(list(classes or ()))}
    return rows.replace_schema_metadata(about | {_SHARDS: json.dumps(shards)})


def _distinct(*columns: pa.ChunkedArray) -> int:
    names = [str(number) for number in range(len(columns))]
    return pa.table(list(columns), names=names).group_by(names).aggregate([]).num_rows


def write_index(table: pa.Table, path: Path) -> None:
    """Writes an index, whole or not at all. Raises OSError when the disk is full."""
    with new_file(path) as partial:
        few: Any = _FEW  # pyarrow's types know only True and False
        pq.write_table(table, partial, compression="zstd", row_group_size=_ROWS, use_dictionary=few)


def shards_of(path: Path) -> dict[str, ShardFile]:
    """The shards that an index knows, and what each was. Raises UserError when it cannot be read."""
    with _opened(path) as file:
        about = json.loads((file.schema_arrow.metadata or {}).get(_SHARDS, b"{}"))
    return {name: ShardFile(*each) for name, each in about.items()}


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Opens an index; what goes wrong with it is a UserError that says what to do."""
    try:
        # Buffered: a row group would be read whole otherwise. Dictionaries: no text is held for each row.
        with pq.ParquetFile(path, read_dictionary=_FEW, buffer_size=2**16, pre_buffer=False) as file:
            if lacking := set(FIELDS.names) - set(file.schema_arrow.names):
                raise UserError(f"{path} is no index of shards: it has no column {', '.join(sorted(lacking))}")
            yield file
    except UserError:
        raise
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}): write it again with tt_ray.pack --index-only"
        ) from None


def read_index(path: Path, shards: Collection[str] | None = None, bad: bool = True) -> tuple[pa.Table, pa.Table]:
    """Rows of an index in their order, each column one array; `label` is int64 where labels are class numbers.

    Reads a part at a time: at no time is much more in memory than the result.

    Args:
        path: The index.
        shards: Takes the rows of these alone.
        bad: Takes images that cannot be read too.

    Returns:
        The rows, and those of images that cannot be read.

    Raises:
        UserError: It cannot be read, or is none.
    """
    wanted = None if shards is None else pa.array(sorted(shards), pa.string())
    left: list[pa.RecordBatch] = []

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in file.iter_batches(_ROWS, columns=FIELDS.names):
            if wanted is not None:
                batch = batch.filter(pc.is_in(batch["shard"].cast(pa.string()), wanted))
            if batch["bad"].null_count < len(batch):
                left.append(batch.filter(pc.is_valid(batch["bad"])))
                batch = batch if bad else batch.filter(pc.is_null(batch["bad"]))
            yield batch

    with _opened(path) as file:
        schema, metadata = (
            pa.schema([file.schema_arrow.field(name) for name in FIELDS.names]),
            file.schema_arrow.metadata,
        )
        parts: dict[str, list[pa.Array]] = {name: [] for name in FIELDS.names}
        texts = {name: Texts() for name in ("image_id", "caption")}
        for batch in batches():
            for name in FIELDS.names:
                texts[name].add(batch[name]) if name in texts else parts[name].append(batch[name])
    columns = [
        texts[name].array() if name in texts else _one(parts[name], schema.field(name).type) for name in FIELDS.names
    ]
    table = pa.table(columns, names=FIELDS.names).replace_schema_metadata(metadata)
    if (metadata or {}).get(_NUMBERS) == b"True":
        place = table.column_names.index("label")
        table = table.set_column(place, "label", table["label"].cast(pa.string()).cast(pa.int64()))
    pa.default_memory_pool().release_unused()
    return table, pa.Table.from_batches(left, None if left else schema)


def _one(parts: list[pa.Array], kind: pa.DataType) -> pa.Array:
    return pa.chunked_array(parts, kind).unify_dictionaries().combine_chunks()


class Texts:
    """Grows a column of texts in place: joining parts at the end would hold all of them twice."""

    def __init__(self) -> None:
        self._data, self._ends, self._valid, self._nulls = bytearray(), [np.zeros(1, np.int64)], [np.zeros(0, bool)], 0

    def add(self, part: pa.Array) -> None:
        """Appends texts, null where there is none."""
        part = part.cast(pa.large_string())
        ends = np.frombuffer(part.buffers()[1], np.int64, len(part) + 1, 8 * part.offset)
        start, stop = int(ends[0]), int(ends[-1])
        self._ends.append(ends[1:] - start + len(self._data))
        if stop > start:
            self._data += memoryview(part.buffers()[2])[start:stop]
        self._valid.append(np.asarray(part.is_valid()))
        self._nulls += part.null_count

    def array(self) -> pa.StringArray:
        """The column. Raises UserError where it is longer than Arrow's texts can be."""
        ends = np.concatenate(self._ends)
        if ends[-1] >= 2**31:
            raise UserError(
                f"ids or captions of {ends[-1]:,} bytes are more than an index can hold (2 GiB): leave captions out of "
                "it, and pass a caption table with --text.captions"
            )
        valid = np.packbits(np.concatenate(self._valid), bitorder="little") if self._nulls else None
        buffers = [
            valid if valid is None else pa.py_buffer(valid),
            pa.py_buffer(ends.astype(np.int32)),
            pa.py_buffer(self._data),
        ]
        return pa.StringArray.from_buffers(len(ends) - 1, buffers[1], buffers[2], buffers[0], self._nulls)
