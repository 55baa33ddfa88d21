"""metadata.csv, .jsonl and .parquet of image folders, as Hugging Face's imagefolder reads them.

Each of these files, in the split's folder or below, lists images relative to its own folder. All of a split have one
format. The rows of all are the split: labels that are not in them are not taken from folders unless no file has any.
"""

import csv
import dataclasses
import json
import posixpath
import re
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from tt_ray.config import DataConfig
from tt_ray.data.sources.base import NOBODY
from tt_ray.data.sources.labels import LabelPlace, declared_names, label_array
from tt_ray.io.csv_rows import csv_rows
from tt_ray.terminal.errors import UserError, one_line
from tt_ray.text.caption_table import METADATA_NAMES

_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|nan|inf", re.IGNORECASE)

_Row = tuple[int, dict[str, Any]]
"""Line number, counted from 1, and values by column."""


@dataclasses.dataclass
class Metadata:
    """The rows of all metadata files of a split, in order."""

    paths: list[Path]
    keys: set[str] = dataclasses.field(default_factory=set)
    """Columns that some row has."""
    files: list[str] = dataclasses.field(default_factory=list)
    """The image of each row, relative to the split's folder."""
    further: set[str] = dataclasses.field(default_factory=set)
    """Files in further columns, such as mask_file_name: no images of the split."""
    labels: list[Any] = dataclasses.field(default_factory=list)
    names: list[Any] = dataclasses.field(default_factory=list)
    captions: list[str | None] = dataclasses.field(default_factory=list)
    groups: list[Any] = dataclasses.field(default_factory=list)
    lines: list[int] = dataclasses.field(default_factory=list)
    starts: list[int] = dataclasses.field(default_factory=list)
    """The first row of each path."""

    @property
    def where(self) -> str:
        """What errors call it."""
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return f"{self.paths[0]}{more}"

    def row(self, number: int) -> str:
        """File and line of a row, and its image."""
        path = self.paths[bisect_right(self.starts, number) - 1]
        return f"{path}:{self.lines[number]} ({self.files[number]})"

    def label_values(self, column: str) -> pa.Array:
        """Labels as integers or texts. Those of CSV are integers where all look like it."""
        values = self.labels
        if self.paths[0].suffix == ".csv":
            present = [value for value in values if value is not None]
            if all(_NUMBER.fullmatch(value) for value in present):
                values = [None if value is None else int(value) for value in values]
            elif all(_DECIMAL.fullmatch(value) for value in present):
                row = next(row for row, value in enumerate(values) if value and not _NUMBER.fullmatch(value))
                raise UserError(
                    f"{self.row(row)}: {column} {values[row]!r} is a number, but not written as a class number is: "
                    "write integers from 0, without leading zeros, or names"
                )
        return label_array(values, LabelPlace(self.where, column, self.row))


def find_metadata(files: list[str]) -> list[str]:
    """The metadata files among the files of a split, those of outer folders first."""
    found = (file for file in files if posixpath.basename(file) in METADATA_NAMES)
    return sorted(found, key=lambda file: (file.count("/"), file))


def unused_metadata(root: Path, files: list[str]) -> tuple[str, ...]:
    """Sentences about files that look like metadata of a split's folder `root`, but are not read."""
    above = [root.parent / name for name in METADATA_NAMES if (root.parent / name).is_file()]
    sentences = [f"{path} is ignored: metadata belong into {root}" for path in above]
    named = [file for file in files if posixpath.basename(file).lower().startswith("metadata.")]
    other = sorted(set(named) - set(find_metadata(files)))
    sentences += [f"{root / file} is ignored: only {', '.join(METADATA_NAMES)} are read" for file in other]
    return tuple(sentences)


def read_metadata(root: Path, files: list[str], config: DataConfig) -> Metadata | None:
    """The rows of all metadata files among a split's `files`; None where there is no such file.

    Raises UserError, naming file and line, on files of several formats, on rows that cannot be read, and on images
    outside the metadata file's own folder.
    """
    found = find_metadata(files)
    if not found:
        return None
    formats = sorted({posixpath.basename(file) for file in found})
    if len(formats) > 1:
        raise UserError(f"{root} has {' and '.join(formats)}: which of them holds cannot be told; keep one format")
    metadata = Metadata([root / file for file in found])
    for file, path in zip(found, metadata.paths, strict=True):
        metadata.starts.append(len(metadata.files))
        _add(metadata, path, posixpath.dirname(file), config)
    return metadata


def _add(metadata: Metadata, path: Path, folder: str, config: DataConfig) -> None:
    """Adds the rows of one file."""
    image: str | None = None
    further: list[str] = []
    for line, row in _rows(path, config, metadata.keys):
        if image is None:
            image, further = _file_columns(path, line, row, config)
        name, caption = row.get(image), row.get(config.caption_column)
        if not isinstance(name, str) or not isinstance(caption, str | None):
            raise UserError(
                f"{path}:{line} is not a row with texts {image} and (if any) {config.caption_column}: "
                "correct or remove the row"
            )
        metadata.files.append(_inside(path, line, folder, name))
        metadata.further.update(
            _inside(path, line, folder, row[key]) for key in further if isinstance(row.get(key), str)
        )
        metadata.labels.append(row.get(config.label_column))
        metadata.names.append(row.get(f"{config.label_column}_name"))
        metadata.captions.append(caption)
        metadata.groups.append(row.get(config.group_column))
        metadata.lines.append(line)
        metadata.keys.update(row)


def _file_columns(path: Path, line: int, row: dict[str, Any], config: DataConfig) -> tuple[str, list[str]]:
    """The column of the image's file: file_name, or *_file_name; and those of further files."""
    named = [key for key in row if key == "file_name" or key.endswith("_file_name")]
    for wanted in ("file_name", f"{config.image_column}_file_name"):
        if wanted in named:
            return wanted, [key for key in named if key != wanted]
    if len(named) == 1:
        return named[0], []
    found = f"several of another name ({', '.join(named)}): say which with --data.image_column" if named else "none"
    raise UserError(f"{path}:{line} needs a text file_name, but has {found}; add it, or correct the row")


def _inside(path: Path, line: int, folder: str, name: str) -> str:
    """The file of a row, relative to the split's folder; raises UserError unless it is in the metadata's own."""
    relative = posixpath.normpath(name.replace("\\", "/"))
    if "://" in name or relative == ".." or relative.startswith(("/", "../")):
        raise UserError(f"{path}:{line}: file {name!r} is not in the folder of the metadata: give a relative path")
    return f"{folder}/{relative}" if folder else relative


def _rows(path: Path, config: DataConfig, keys: set[str]) -> Iterator[_Row]:
    """The rows of a file; of Parquet, `keys` gets the names of the columns that are not read as well."""
    try:
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            keys.update(file.schema_arrow.names)
            yield from _parquet_rows(path, file, config)
            return
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            yield from _csv_rows(path, text) if path.suffix == ".csv" else _json_rows(path, text)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path}: {one_line(error)}") from None


def _json_rows(path: Path, text: TextIO) -> Iterator[_Row]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            line.encode()
            row = json.loads(line)
            if "\\ud" in line.lower():  # half a surrogate pair is JSON, but no text
                json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError(f"{path}:{number} is not UTF-8: save the file as UTF-8") from None
        except (ValueError, RecursionError) as error:  # the latter where it is nested too deeply
            raise UserError(f"{path}:{number} is not JSON: {one_line(error)}; correct or remove the line") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number} is not a JSON object: correct or remove the line")
        yield number, row


def _csv_rows(path: Path, text: TextIO) -> Iterator[_Row]:
    """Cells as texts, empty ones as None."""
    names = [name.strip() for name in next(csv.reader([text.readline()]), [])]
    text.seek(0)
    image = next((place for place, name in enumerate(names) if name.endswith("file_name")), 0)
    for number, row in csv_rows(text, ",", image):
        if isinstance(row, str):
            raise UserError(f"{path}:{number}: {row}; correct or remove the row")
        try:
            "".join(row).encode()
        except UnicodeEncodeError:
            raise UserError(f"{path}:{number} is not UTF-8: save the file as UTF-8") from None
        yield number, {name: cell or None for name, cell in zip(names, row, strict=True)}


def _parquet_rows(path: Path, file: pq.ParquetFile, config: DataConfig) -> Iterator[_Row]:
    """Rows with labels by name, where the file names its classes."""
    label = config.label_column
    used = {label, f"{label}_name", config.caption_column, config.group_column}
    columns = [name for name in file.schema_arrow.names if name in used or name.endswith("file_name")]
    names = declared_names(path, file.schema_arrow, label)
    number = 0
    for batch in file.iter_batches(columns=columns):
        for row in batch.to_pylist():
            number += 1
            if names is not None and row[label] is not None:
                if not NOBODY <= row[label] < len(names):
                    raise UserError(
                        f"{path}:{number}: {label} is {row[label]}, but it names {len(names)} classes, 0 to "
                        f"{len(names) - 1}: correct the labels or the names"
                    )
                row[label] = None if row[label] == NOBODY else names[row[label]]
            yield number, row
