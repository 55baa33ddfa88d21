"""Hugging Face `datasets`: local Parquet and Arrow, `save_to_disk` folders, and data sets of the hub."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
from PIL import Image

from tt_ray.config import DataConfig
from tt_ray.data.sources.base import DataSource, Source, Split, Unlabelled, split_name
from tt_ray.data.sources.decoding import ImageReader
from tt_ray.data.sources.image_folder import caption_array, group_array
from tt_ray.data.sources.labels import LabelPlace, Labels, match_numbers, number_classes
from tt_ray.data.sources.table_files import Table, TableFile, load_table
from tt_ray.io.storage import fetch_data, is_uri
from tt_ray.terminal.errors import UserError, absent, shown

# pyarrow makes these functions when it is imported: type checkers do not know them.
pc: Any = pyarrow.compute
_IMAGE_KINDS = set(
    "bytes path binary large_binary binary_view fixed_size_binary string large_string string_view".split()
)
"""Types of an image column, and keys of a structured one."""


@dataclasses.dataclass(frozen=True)
class TableImages(ImageReader):
    """Encoded images in a table's column: bytes, {"bytes", "path"}, or the path of a file."""

    table: datasets.Dataset
    column: str
    where: str
    ids: pa.StringArray

    def _value(self, row: int) -> Any:
        value = self.table[row][self.column]
        return value.get("bytes") or value.get("path") if isinstance(value, dict) else value

    def encoded(self, row: int) -> bytes:
        value = self._value(row)
        return value if isinstance(value, bytes) else Path(value).read_bytes()

    def open(self, row: int) -> Image.Image:
        value = self._value(row)
        if value is None:
            raise ValueError("it is null")
        if isinstance(value, bytes):
            return Image.open(io.BytesIO(value))
        try:
            return Image.open(value)
        except OSError as error:  # whose text quotes all of the value, which can be an image in base64
            reason = error.strerror or "its format is not known"
            raise ValueError(f"cannot open {shown(value, 80)}: {reason}; a text must be a file's path") from None

    def name(self, row: int) -> str:
        return f"{self.where}, row {row}, id {shown(self.ids[row].as_py(), 80)}"


def table_source(config: DataConfig, split: str, need_captions: bool) -> Source:
    """One split of a `datasets` data set; nothing is decoded before it is asked for.

    Raises UserError when the data set, its split or a column is missing, and on rows without label or with a
    repeated id.
    """
    optional = tuple(field for field in ("id_column", "group_column") if getattr(config, field))
    opened, where = _open(config, split, ("image_column", "label_column", *optional))
    table = opened.rows
    if need_captions and config.caption_column not in table.column_names:
        options = "--data.caption_column, or pass a caption table with --text.captions"
        raise absent("column", config.caption_column, table.column_names, where, options)
    ids = _ids(opened, config.id_column, where)
    labels, classes = _labels(opened, config.label_column, ids, where)
    images = TableImages(_image_table(table, config.image_column, where), config.image_column, where, ids)
    return Source(
        ids=ids,
        labels=labels,
        classes=classes,
        captions=_captions(table, config.caption_column, where),
        read=images.read,
        pixels=images.pixels,
        encoded=images.encoded,
        groups=group_array(_column(table, config.group_column).to_pylist()) if config.group_column else None,
    )


def table_images(config: DataConfig, split: str) -> TableImages:
    """The images of one split by id, labelled or not; raises UserError when the data set or a column is missing."""
    table, where = _open(config, split, ("image_column", *(("id_column",) if config.id_column else ())))
    images = _image_table(table.rows, config.image_column, where)
    return TableImages(images, config.image_column, where, _ids(table, config.id_column, where))


def _open(config: DataConfig, split: str, fields: Sequence[str]) -> tuple[Table, str]:
    """The split, which has the columns that these fields of the configuration name, and what errors call it."""
    if not config.root:
        raise UserError("data.root is empty: name a folder, a .parquet or .arrow file, or a hub id with --data.root")
    here = str(fetch_data(config.root)) if is_uri(config.root) else config.root
    table = load_table(here, config.name, split, config.root)
    where = f"{config.root} ({split})"
    for field in fields:
        column = getattr(config, field)
        if column not in table.rows.column_names:
            raise absent("column", column, table.rows.column_names, where, f"--data.{field}")
    return table, where


def _column(table: datasets.Dataset, name: str) -> pa.ChunkedArray:
    """A column in the data set's order, as Arrow, without touching the others."""
    return table.select_columns([name]).with_format("arrow")[:][name]


def _ids(table: Table, column: str, where: str) -> pa.StringArray:
    if not column:
        return pc.cast(pa.array(np.arange(len(table.rows))), pa.string())
    values = _column(table.rows, column)
    if pa.types.is_floating(values.type):
        raise UserError(f"{where}: column {column!r} holds decimals, which are no ids; set --data.id_column")
    try:
        ids = pc.cast(values, pa.string()).combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(f"{where}: column {column!r} cannot be read as ids; set --data.id_column") from None
    if ids.null_count or len(ids.unique()) < len(ids):
        raise UserError(f"{where}: column {column!r} has empty or repeated ids; set --data.id_column or leave it empty")
    return ids


def _labels(table: Table, column: str, ids: pa.StringArray, where: str) -> tuple[Labels, tuple[str, ...]]:
    """Class numbers (N,) and names: those that the rows' own files declare, or else `datasets`."""
    place = LabelPlace(where, column, lambda row: f"{table.row_name(row)}, id {ids[row].as_py()}")
    values = _column(table.rows, column)
    feature = table.rows.features[column]
    lists, which = _names_by_file(table, column)
    if lists:
        return match_numbers(values, lists, which, place)
    if isinstance(feature, datasets.ClassLabel):
        return match_numbers(values, [feature.names], np.zeros(0, np.int64), place)
    named = f"{column}_name"
    return number_classes(values, place, _column(table.rows, named) if named in table.rows.column_names else None)


def _names_by_file(table: Table, column: str) -> tuple[list[tuple[str, ...]], npt.NDArray[np.int64]]:
    """The different lists of class names that a split's files declare, and which of them each row has, (N,).

    No list where no file declares one. Raises UserError when files differ in what kind of labels they hold.
    """
    feature = table.rows.features[column]
    common = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
    _check_kinds([*([table.first] if table.first else []), *table.files], column, bool(common))
    own = [file.class_names(column) for file in table.files]
    if not any(own):
        return [], np.zeros(0, np.int64)
    lists: list[tuple[str, ...]] = [common] if common else []
    lists += [names for names in dict.fromkeys(own) if names and names != common]
    number = np.array([lists.index(names) if names else 0 for names in own])
    return lists, number[table.file_of_row()]


def _check_kinds(files: Sequence[TableFile], column: str, named: bool) -> None:
    """Raises UserError where one file has labels of another kind than the first: `datasets` would read them alike.

    Numbers without names next to numbers with names could mean other classes. Texts next to names are fine, as
    `datasets` looks them up itself.
    """
    first, first_kind = "", ""
    for file in files:
        if column not in file.schema.names:
            continue
        kind = _kind(file.schema.field(column).type) + " with names" * (file.class_names(column) is not None)
        if kind == "nothing" or (kind == "texts" and named):
            continue
        if first and kind != first_kind:
            raise UserError(
                f"{file.path}: {column} is {kind}, but {first_kind} in {first}, so classes cannot be matched by name; "
                "write both the same way, best as texts"
            )
        first, first_kind = first or file.path, kind


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind):
        return "nothing"
    if pa.types.is_integer(kind):
        return "numbers"
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return "texts" if text else str(kind)


def _captions(table: datasets.Dataset, column: str, where: str) -> pa.StringArray | None:
    if column not in table.column_names:
        return None
    values = _column(table, column).to_pylist()
    if not all(isinstance(value, str | None) for value in values):
        raise UserError(f"{where}: column {column!r} does not hold one text for each image; set --data.caption_column")
    return caption_array(values)


def _image_table(table: datasets.Dataset, column: str, where: str) -> datasets.Dataset:
    """The image column alone, as it is stored: decoding is ours, so that it is the same for every source."""
    images: Any = table.select_columns([column])
    feature = table.features[column]
    if isinstance(feature, datasets.Image):
        return images.cast_column(column, datasets.Image(decode=False))
    kinds = set(feature) if isinstance(feature, dict) else {getattr(feature, "dtype", "").partition("[")[0]}
    if not kinds & _IMAGE_KINDS:
        raise UserError(f"{where}: column {column!r} does not hold encoded images; set --data.image_column")
    return images


def _open_unlabelled(config: DataConfig, split: Split) -> Unlabelled:
    images = table_images(config, split_name(config, split))
    table, where = _open(config, split_name(config, split), ())
    captions = _captions(table.rows, config.caption_column, where)
    return Unlabelled(images.ids, images.read, encoded=images.encoded, captions=captions)


SOURCE = DataSource(
    lambda config, split, need_captions: table_source(config, split_name(config, split), need_captions),
    _open_unlabelled,
    takes_uris=True,
)
