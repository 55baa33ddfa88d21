"""Image ids and labels from folders and tables, and how official file names match image ids."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from tt_ray.config import DataConfig
from tt_ray.data.sources.file_listing import list_images
from tt_ray.data.sources.id_tables import ID_NAMES, SUFFIXES, IdTable, id_text
from tt_ray.data.sources.image_folder import folder_images
from tt_ray.data.sources.labels import text_labels
from tt_ray.data.sources.metadata import read_metadata
from tt_ray.terminal.errors import UserError

# pyarrow makes these functions when it is imported: type checkers do not know them.
pc: Any = pyarrow.compute
_LABEL_NAMES = ("label_name", "label")


def read_ids(path: str | Path) -> pa.StringArray:
    """Reads image ids: those of the images below a split's folder, or a table's column image_id (or file_name).

    Raises UserError when there is no such folder or table, or no id in it.
    """
    path = Path(path).expanduser().absolute()
    if path.is_dir():
        ids = folder_images(DataConfig(root=str(path.parent)), path.name).ids
    else:
        ids = _columns(path, ID_NAMES)[0]
    if not len(ids):
        raise UserError(f"{path} has no images: name a split's folder, or a table with image_id")
    return ids


def read_labels(path: str | Path, ids: pa.StringArray) -> pa.StringArray:
    """A label for each of `ids`, null where there is none.

    `path` is a table (Parquet, CSV, TSV, JSONL) with image_id (or file_name) and label (or label_name), a folder with
    metadata (.jsonl, .csv or .parquet), or a folder of class folders: the label is then the first folder of the image
    id. Labels are stripped of surrounding whitespace, and blank ones do not count. Raises UserError when it is neither,
    an id of the table repeats, or no id has a label.
    """
    path = Path(path).expanduser()
    table = _metadata_labels(path) if path.is_dir() else tuple(_columns(path, ID_NAMES, _LABEL_NAMES))
    if table is None:
        parts = pc.split_pattern(ids, "/", max_splits=1)
        inside = pc.equal(pc.list_value_length(parts), 2)
        labels = pc.if_else(inside, pc.list_element(parts, 0), pa.scalar(None, pa.string()))
    else:
        known, values = table
        if repeated := len(known) - len(known.unique()):
            raise UserError(f"{path}: {repeated} rows repeat an image id; remove them")
        labels = values.take(pc.index_in(ids, known))
    labels = text_labels(labels)
    if labels.null_count == len(labels):
        raise UserError(f"{path} has no label for image ids such as {', '.join(ids[:3].to_pylist())}")
    return labels


def match_ids(ids: pa.StringArray, names: pa.StringArray) -> npt.NDArray[np.int64]:
    """The row of `names` that belongs to each of `ids`, -1 for none, shape (len(ids),).

    Equal ones belong together; the others do when the parts after their last slash are equal, as official file names
    are without their folder. Raises UserError when that is ambiguous.
    """
    rows = pc.index_in(ids, names).fill_null(-1).to_numpy().astype(np.int64)
    free = np.flatnonzero(rows < 0)
    left = np.setdiff1d(np.arange(len(names)), rows)
    file_names, other = (_file_names(part) for part in (ids.take(pa.array(free)), names.take(pa.array(left))))
    found = pc.index_in(file_names, other)
    _check_ambiguity(file_names.filter(found.is_valid()), other.filter(pc.is_in(other, file_names)))
    met = np.flatnonzero(found.is_valid())
    rows[free[met]] = left[found.drop_null().to_numpy()]
    return rows


def class_of(ids: pa.StringArray) -> pa.StringArray:
    """The part of the file name before its first underscore: the WordNet id in ImageNet's training images."""
    return pc.replace_substring_regex(_file_names(ids), "_.*", "")


def _file_names(ids: pa.StringArray) -> pa.StringArray:
    return pc.replace_substring_regex(ids, ".*/", "")


def _check_ambiguity(ids: pa.StringArray, names: pa.StringArray) -> None:
    for what, there in (("image ids", ids), ("names", names)):
        counts = pc.value_counts(there)
        several = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        if len(several):
            raise UserError(
                f"{len(several)} file names are those of several {what}, such as {', '.join(several[:3].to_pylist())}: "
                "which image each belongs to is not known; write whole image ids instead"
            )


def _metadata_labels(folder: Path) -> tuple[pa.StringArray, pa.StringArray] | None:
    """Image ids and labels of the metadata in a split's folder; None where there are none, or they have no labels."""
    config = DataConfig()
    listing = list_images(folder)
    metadata = read_metadata(folder, [*listing.images, *listing.others], config)
    if metadata is None or not {config.label_column, f"{config.label_column}_name"} & metadata.keys:
        return None
    labels = pa.array([name if isinstance(name, str) else None for name in metadata.names], pa.string())
    if not labels.is_valid().true_count:
        labels = pc.cast(metadata.label_values(config.label_column), pa.string())
    return pa.array(metadata.files, pa.string()), labels


def _columns(path: Path, *wanted: tuple[str, ...]) -> list[pa.StringArray]:
    """Columns as text, each the first that the table has of several names; rows without any of them are left out."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is neither a folder nor a table: known are .parquet, .csv, .tsv and .jsonl")
    table = IdTable(path)
    known = {name for names in wanted for name in names if name in table.columns or not table.has_header}
    lines, values = list[int](), {name: list[Any]() for name in known}
    for line, row in table.good_rows(known.__contains__):
        lines.append(line)
        for name, column in values.items():
            column.append(row.get(name))
    chosen = [next((name for name in names if name in table.columns), "") for names in wanted]
    if not all(chosen):
        needed = " and ".join(names[0] if names is ID_NAMES else names[-1] for names in wanted)
        raise UserError(f"{path} needs columns {needed}, but has {', '.join(table.columns) or 'none'}")
    texts = [[None if value is None else id_text(value) for value in values[name]] for name in chosen]
    for name, column in zip(chosen, texts, strict=True):
        if column.count(None) > values[name].count(None):
            line, value = next(
                (line, value)
                for line, text, value in zip(lines, column, values[name], strict=True)
                if text is None and value is not None
            )
            raise UserError(f"{path}:{line}: column {name} holds {value!r:.40}, not a text or an integer")
    kept = pa.table({str(place): pa.array(column, pa.string()) for place, column in enumerate(texts)}).drop_null()
    return [column.combine_chunks() for column in kept.columns]
