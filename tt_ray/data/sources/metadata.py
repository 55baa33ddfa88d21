"""metadata.csv, .jsonl and .parquet of image folders, as Hugging Face's imagefolder reads them.

Each of these files, in the split's folder or below, lists images relative to its own folder. All of a split have one
format. The rows of all are the split: labels that are not in them are not taken from folders unless no file has any.
"""

import dataclasses
import posixpath
import re
from bisect import bisect_right
from pathlib import Path
from typing import Any

import pyarrow as pa

from tt_ray.config import DataConfig
from tt_ray.data.sources.id_tables import IdTable
from tt_ray.data.sources.labels import LabelPlace, label_array
from tt_ray.terminal.errors import UserError

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Names of Hugging Face's imagefolder for tables of images, next to these."""
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|nan|inf", re.IGNORECASE)


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
        raise UserError(f"{root} has {' and '.join(formats)}: it is not known which of them counts; keep one format")
    metadata = Metadata([root / file for file in found])
    for file, path in zip(found, metadata.paths, strict=True):
        metadata.starts.append(len(metadata.files))
        _add(metadata, path, posixpath.dirname(file), config)
    return metadata


def _add(metadata: Metadata, path: Path, folder: str, config: DataConfig) -> None:
    """Adds the rows of one file."""
    image: str | None = None
    further, label = list[str](), config.label_column
    used = {label, f"{label}_name", config.caption_column, config.group_column}
    table = IdTable(path)
    for line, row in table.good_rows(lambda name: name in used or name.endswith("file_name")):
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
        metadata.labels.append(row.get(label))
        metadata.names.append(row.get(f"{label}_name"))
        metadata.captions.append(caption)
        metadata.groups.append(row.get(config.group_column))
        metadata.lines.append(line)
    metadata.keys.update(table.columns)


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
        raise UserError(f"{path}:{line}: file {name!r} is not in the folder of the metadata: write a relative path")
    return f"{folder}/{relative}" if folder else relative
