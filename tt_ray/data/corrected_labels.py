"""`data.labels`: a table that corrects labels of training images, and leaves images out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from tt_ray.config import DataConfig
from tt_ray.data.sources.base import Source
from tt_ray.data.sources.id_tables import ID_NAMES, IdTable, id_text
from tt_ray.data.sources.labels import text_labels
from tt_ray.terminal.errors import UserError, nearest, shown, some

# pyarrow makes these functions when it is imported: type checkers do not know them.
pc: Any = pyarrow.compute
_LABEL_NAMES = ("label_name", "label")


class LabelTable(NamedTuple):
    """Rows of a table of labels, each of another image."""

    ids: pa.StringArray
    labels: pa.StringArray
    """Class names, null for images that are to be left out."""
    lines: npt.NDArray[np.int64]
    """Line of the file that each comes from."""


def read_label_table(path: Path) -> LabelTable:
    """Reads a table of image_id (or file_name) and label (or label_name); a repeated equal row is no problem.

    Raises:
        UserError: The file cannot be read, lacks a column, or has a malformed row or two labels for one image.
    """
    table = IdTable(path)
    wanted = {*ID_NAMES, *_LABEL_NAMES}
    ids, labels, lines = list[str](), list[str | None](), list[int]()
    if table.has_header:  # before its rows, which would be said to lack an id
        _check_columns(table)
    for line, row in table.good_rows(wanted.__contains__):
        # The first column that is there, empty or not: an emptied label_name leaves an image out, whatever its label.
        name = id_text(next((row[name] for name in ID_NAMES if name in row), None))
        value = next((row[name] for name in _LABEL_NAMES if name in row), None)
        if not name:
            raise UserError(f"{path}:{line}: no image_id, or none that is a text or an integer; correct the row")
        if value is not None and id_text(value) is None:
            raise UserError(f"{path}:{line}: label is {value!r:.40}, not the name of a class; correct the row")
        ids.append(name)
        labels.append(id_text(value))
        lines.append(line)
    _check_columns(table)
    return _distinct(
        path, LabelTable(pa.array(ids, pa.string()), text_labels(pa.array(labels, pa.string())), _array(lines))
    )


def _check_columns(table: IdTable) -> None:
    for names in (ID_NAMES, _LABEL_NAMES):
        if not set(names) & table.columns.keys():
            there = ", ".join(table.columns) or "none"
            raise UserError(f"{table.path} needs columns image_id and label, but has {there}")


def _distinct(path: Path, table: LabelTable) -> LabelTable:
    """The first row of each image; raises UserError where another one has another label."""
    first = _rows(table.ids, table.ids)
    again = np.flatnonzero(first != np.arange(len(first)))
    before, now = (pc.fill_null(table.labels.take(pa.array(rows)), "") for rows in (first[again], again))
    if len(differ := again[np.asarray(pc.not_equal(before, now), bool)]):
        row = differ[0]
        raise UserError(
            f"{path}:{table.lines[row]}: a second, different label for {shown(table.ids[row])} (the first is in line "
            f"{table.lines[first[row]]}); keep one of them"
        )
    kept = np.setdiff1d(np.arange(len(first)), again)
    return LabelTable(table.ids.take(pa.array(kept)), table.labels.take(pa.array(kept)), table.lines[kept])


def correct_labels(config: DataConfig, train: Source, val: Source, every: pa.StringArray) -> tuple[Source, list[str]]:
    """Applies `config.labels`.

    Args:
        config: Names the table.
        train: Training images.
        val: Validation images, whose labels stay.
        every: Ids of all images of the training split, those that data.subset has left out included.

    Returns:
        The training images that are left, with their new labels; sentences for the summary.

    Raises:
        UserError: The table cannot be used, names images or classes that the data lack, or leaves a class of validation
            without training images.
    """
    path = Path(config.labels).expanduser()
    table = read_label_table(path)
    rows = _rows(table.ids, train.ids)
    held_out = (_rows(table.ids, val.ids) >= 0) if config.val_share else np.zeros(len(rows), bool)
    known = (rows >= 0) | held_out | (_rows(table.ids, every) >= 0) | np.isin(table.ids.to_pylist(), train.skipped)
    if not known.all():
        odd = table.ids.filter(pa.array(~known)).to_pylist()
        raise UserError(
            f"data.labels {path}:{table.lines[np.argmin(known)]}: {len(odd)} of {len(known)} image ids are of no "
            f"training image: {some(odd)}; training images are called as {shown(every[0])}: correct or remove the rows"
        )
    numbers = _numbers(path, table, train.classes)
    here = rows >= 0
    labels, kept = train.labels.copy(), np.ones(len(train), bool)
    kept[rows[here & (numbers < 0)]] = False
    given = here & (numbers >= 0)
    labels[rows[given]] = numbers[given]
    changed = int((labels != train.labels)[kept].sum())
    notes = [f"{changed} training labels were corrected, and {int((~kept).sum())} images left out (data.labels)"]
    if held_out.any():
        notes.append(f"{int(held_out.sum())} rows of data.labels are of validation images, whose labels stay")
    _check_classes(path, train, val, labels[kept])
    return replace(train, labels=labels).select(np.flatnonzero(kept)), notes


def _numbers(path: Path, table: LabelTable, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Class numbers, -1 for images to leave out; raises UserError for a label that is no class of the data."""
    numbers = _rows(table.labels, text_labels(pa.array(classes, pa.string())))
    strange = (numbers < 0) & np.asarray(table.labels.is_valid())
    if strange.any():
        row = int(np.argmax(strange))
        name = table.labels[row].as_py()
        raise UserError(
            f"data.labels {path}:{table.lines[row]}: label {shown(name)!r} is no class of the data; "
            f"{nearest(name, classes)}"
        )
    if twice := [
        name for name, count in Counter(classes).items() if count > 1 and (numbers == classes.index(name)).any()
    ]:
        raise UserError(f"data.labels {path}: several classes are called {twice[0]!r}: give each a name of its own")
    return numbers


def _check_classes(path: Path, train: Source, val: Source, labels: npt.NDArray[np.int64]) -> None:
    """Raises UserError where validation has a class that had training images and has none left."""
    before, left, asked = (
        np.bincount(each, minlength=len(train.classes)) for each in (train.labels, labels, val.labels)
    )
    if not len(labels):
        raise UserError(f"data.labels {path} leaves no training image: correct the table")
    if len(lost := np.flatnonzero((before > 0) & (left == 0) & (asked > 0))):
        names = some([train.classes[number] for number in lost])
        raise UserError(
            f"data.labels {path} leaves {len(lost)} classes that validation has without a training image: {names}; "
            "keep some of their images"
        )


def _rows(names: pa.StringArray, among: pa.StringArray) -> npt.NDArray[np.int64]:
    """The first row of `among` that equals each of `names`, -1 for none."""
    return pc.index_in(names, value_set=among, skip_nulls=True).fill_null(-1).to_numpy().astype(np.int64)


def _array(values: list[int]) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)
