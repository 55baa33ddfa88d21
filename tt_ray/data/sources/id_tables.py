"""Tables with a row for each image, by image_id or file_name: the one reader of Parquet, CSV, TSV and JSONL.

What is wrong with a row is reported with its line; whether it is left out or stops everything is the caller's choice.
"""

import csv
import json
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tt_ray.data.sources.base import NOBODY
from tt_ray.data.sources.labels import declared_names
from tt_ray.io.csv_rows import csv_rows
from tt_ray.terminal.errors import UserError, one_line

ID_NAMES = ("image_id", "file_name")
"""Columns of image ids, the first that a table has."""
SUFFIXES = (".parquet", ".pq", ".csv", ".tsv", ".jsonl", ".ndjson")

Row = dict[str, Any]
"""Values by column: texts, numbers and None. Cells of CSV and TSV are texts, and None where they are empty."""
Wanted = Callable[[str], bool]
Rows = Iterator[tuple[int, Row | str]]
"""Line number, counted from 1 (of Parquet: the row's), with the row, or with a sentence on what is wrong with it."""


class IdTable:
    """A table of images in a file."""

    def __init__(self, path: Path) -> None:
        """Raises UserError when the file cannot be read, or its suffix is not in `SUFFIXES`."""
        self.path = path
        self._suffix = path.suffix.lower()
        if self._suffix not in SUFFIXES:
            raise UserError(f"{path} is no table of images: known are .parquet, .csv, .tsv and .jsonl")
        self._header: list[str] = []
        try:
            if self._suffix in (".parquet", ".pq"):
                self._header = list(pq.read_schema(path).names)
            elif self.has_header:
                with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
                    first = text.readline()
                self._check_first(first)
                self._header = [name.strip() for name in next(csv.reader([first], delimiter=self._delimiter), [])]
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"cannot read {path}: {one_line(error)}") from None
        self.columns: dict[str, None] = dict.fromkeys(self._header)
        """Names of its columns; JSONL has no header, so that they are the keys of the rows that have been read."""

    @property
    def has_header(self) -> bool:
        """Whether `columns` are known before the rows."""
        return self._suffix not in (".jsonl", ".ndjson")

    def rows(self, wanted: Wanted = lambda name: True) -> Rows:
        """The rows in order; of Parquet, with the `wanted` columns alone.

        Numbers of classes are replaced by names where a Parquet file of `datasets` declares them, -1 by None.

        Raises:
            UserError: The file cannot be read, two columns have one name, or a class number has no name.
        """
        # Only now: the first line of a file without a header may have a word twice. Spreadsheets add blank columns.
        if twice := [name for name in self.columns if name and wanted(name) and self._header.count(name) > 1]:
            raise UserError(f"{self.path} has several columns {twice[0]}: rename or remove all but one")
        try:
            if self._suffix in (".parquet", ".pq"):
                yield from self._parquet_rows(wanted)
                return
            with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
                rows = self._cell_rows(text) if self.has_header else self._json_rows(text)
                for number, row in rows:
                    yield number, row if isinstance(row, str) else _checked(row)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"cannot read {self.path}: {one_line(error)}") from None

    def good_rows(self, wanted: Wanted = lambda name: True) -> Iterator[tuple[int, Row]]:
        """As `rows`, but raises UserError naming file and line at the first row with which something is wrong."""
        for number, row in self.rows(wanted):
            if isinstance(row, str):
                raise UserError(f"{self.path}:{number}: {row}; correct or remove the row")
            yield number, row

    def _check_first(self, line: str) -> None:
        """Raises UserError where spreadsheets have saved the table as something else than its suffix says."""
        if "\0" in line:
            raise UserError(f"{self.path} is UTF-16, or no text at all: save it as UTF-8")
        if self._delimiter in line:
            return
        for other, name in ((";", "semicolons"), ("\t", "tabs"), (",", "commas")):
            if other in line and set(ID_NAMES) & {cell.strip(' "\r\n') for cell in line.split(other)}:
                wanted = "tabs" if self._delimiter == "\t" else "commas"
                raise UserError(f"{self.path}: its columns are separated by {name}, but must be by {wanted}")

    @property
    def _delimiter(self) -> str:
        return "\t" if self._suffix == ".tsv" else ","

    def _cell_rows(self, text: Any) -> Rows:
        names = self._header
        image = next((place for place, name in enumerate(names) if name.endswith(ID_NAMES)), 0)
        for number, row in csv_rows(text, self._delimiter, image):
            yield number, row if isinstance(row, str) else {n: cell or None for n, cell in zip(names, row, strict=True)}

    def _json_rows(self, text: Any) -> Rows:
        for number, line in enumerate(text, 1):
            if line.strip():
                row = _json_row(line)
                if isinstance(row, dict):
                    self.columns |= dict.fromkeys(row)
                yield number, row

    def _parquet_rows(self, wanted: Wanted) -> Rows:
        file = pq.ParquetFile(self.path)
        chosen = [name for name in self.columns if wanted(name)]
        classes = {name: declared_names(self.path, file.schema_arrow, name) for name in chosen}
        named = [(name, names) for name, names in classes.items() if names is not None]
        number = 0
        for batch in file.iter_batches(columns=chosen):
            # Whole columns at once: value by value it would take minutes at ImageNet's size.
            columns, odd = _columns(batch)
            order = batch.schema.names
            for values in zip(*columns, strict=True) if columns else repeat((), batch.num_rows):
                number += 1
                row: Row = dict(zip(order, values, strict=True))
                for name, names in named:
                    if row[name] is not None:
                        row[name] = self._class_name(number, name, row[name], names)
                yield number, _checked(row) if odd else row

    def _class_name(self, number: int, column: str, value: int, names: tuple[str, ...]) -> str | None:
        if not NOBODY <= value < len(names):
            raise UserError(
                f"{self.path}:{number}: {column} is {value}, but it names {len(names)} classes, 0 to "
                f"{len(names) - 1}: correct the labels or the names"
            )
        return None if value == NOBODY else names[value]


def id_text(value: object) -> str | None:
    """A text, or an integer as text; None for anything else: decimals are no ids, 1.0 and 1 would be two."""
    return value if isinstance(value, str) else str(value) if type(value) is int else None


def is_utf8(text: str) -> bool:
    """Whether a text that was read with surrogateescape is UTF-8."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _checked(row: Row) -> Row | str:
    """The row, or what is wrong with its texts."""
    return row if all(is_utf8(value) for value in row.values() if isinstance(value, str)) else "not UTF-8"


def _json_row(line: str) -> Row | str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} (column {error.colno})"
    except (RecursionError, ValueError) as error:  # nested too deeply; numbers of thousands of digits
        return f"not JSON that can be read: {error}"
    return record if isinstance(record, dict) else "not a JSON object"


def _columns(batch: pa.RecordBatch) -> tuple[list[list[Any]], bool]:
    """The values of all columns, and whether bytes came from somewhere that need not be UTF-8.

    Bytes that are not become surrogates, so that they cost one row only.
    """
    columns, odd = list[list[Any]](), False
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        try:
            values = column.to_pylist()
        except UnicodeDecodeError:
            values = pc.cast(column, pa.large_binary()).to_pylist()
        if any(isinstance(value, bytes) for value in values):
            odd = True
            values = [v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else v for v in values]
        columns.append(values)
    return columns, odd
