"""Hugging Face `datasets`: local Parquet and Arrow, `save_to_disk` folders, and data sets of the hub."""

import dataclasses
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.compute as pc
from datasets.exceptions import DatasetsError
from PIL import Image

from tt_ray.config import DataConfig
from tt_ray.data.classes import Labels, absent, number_classes, some
from tt_ray.data.decoding import ImageReader
from tt_ray.data.folders import caption_array, group_array
from tt_ray.data.source import Source
from tt_ray.errors import UserError, shown
from tt_ray.storage import fetch_data, is_uri

_IMAGE_KINDS = set(
    "bytes path binary large_binary binary_view fixed_size_binary string large_string string_view".split()
)
"""Types of an image column, and keys of a structured one."""
_BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}


@dataclasses.dataclass(frozen=True)
class TableImages(ImageReader):
    """Encoded images in a table's column: bytes, {"bytes", "path"}, or the path of a file."""

    table: datasets.Dataset
    column: str
    where: str
    ids: pa.StringArray

    def open(self, row: int) -> Image.Image:
        value = self.table[row][self.column]
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
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
    table, where = _open(config, split, ("image_column", "label_column", *optional))
    if need_captions and config.caption_column not in table.column_names:
        options = "--data.caption_column, or give a caption table with --text.captions"
        raise absent("column", config.caption_column, table.column_names, where, options)
    ids = _ids(table, config.id_column, where)
    labels, classes = _labels(table, config.label_column, ids, where)
    images = TableImages(_image_table(table, config.image_column, where), config.image_column, where, ids)
    return Source(
        ids=ids,
        labels=labels,
        classes=classes,
        captions=_captions(table, config.caption_column, where),
        read=images.read,
        pixels=images.pixels,
        groups=group_array(_column(table, config.group_column).to_pylist()) if config.group_column else None,
    )


def table_images(config: DataConfig, split: str) -> TableImages:
    """The images of one split by id, labelled or not; raises UserError when the data set or a column is missing."""
    table, where = _open(config, split, ("image_column", *(("id_column",) if config.id_column else ())))
    images = _image_table(table, config.image_column, where)
    return TableImages(images, config.image_column, where, _ids(table, config.id_column, where))


def _open(config: DataConfig, split: str, fields: Sequence[str]) -> tuple[datasets.Dataset, str]:
    """The split, which has the columns that these fields of the configuration name, and what errors call it."""
    if not config.root:
        raise UserError("data.root is empty: give a folder, a .parquet or .arrow file, or a hub id with --data.root")
    with _quiet():
        here = str(fetch_data(config.root)) if is_uri(config.root) else config.root
        table = _load(dataclasses.replace(config, root=here), split)
    where = f"{config.root} ({split})"
    for field in fields:
        column = getattr(config, field)
        if column not in table.column_names:
            raise absent("column", column, table.column_names, where, f"--data.{field}")
    return table, where


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no warnings of `datasets` and the hub's client; what was set before comes back."""
    levels = [(log, log.get_verbosity()) for log in (datasets.logging, huggingface_hub.logging)]
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    for log, _ in levels:
        log.set_verbosity_error()
    try:
        yield
    finally:
        for log, level in levels:
            log.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def _load(config: DataConfig, split: str) -> datasets.Dataset:
    path = Path(config.root).expanduser().absolute()
    options = "--data.root, --data.name, --data.train_split or --data.val_split"
    if not path.exists() and (config.root.startswith((".", "/", "~")) or config.root.count("/") > 1):
        raise UserError(f"data.root {config.root} does not exist: check --data.root")
    if path.is_file() and path.suffix not in _BUILDERS:
        raise UserError(f"data.root {config.root} is neither a folder nor a .parquet or .arrow file: check --data.root")
    try:
        if _is_saved(path) or any(map(_is_saved, path.glob("*"))):
            return _load_saved(path, split, options)
        if path.is_file():
            table = datasets.load_dataset(_BUILDERS[path.suffix], data_files=str(path), split=split)
        else:
            place = str(path) if path.exists() else config.root
            table = datasets.load_dataset(place, config.name or None, split=split)
    except UserError:
        raise
    except (ValueError, OSError, DatasetsError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"cannot load {config.root} ({split}): {reason}; check {options}") from None
    assert isinstance(table, datasets.Dataset)
    return table


def _is_saved(path: Path) -> bool:
    return (path / "state.json").is_file()


def _load_saved(path: Path, split: str, options: str) -> datasets.Dataset:
    """A `save_to_disk` folder: one data set for each split, or a single one, which is called train if not named."""
    if _is_saved(path):
        single = datasets.load_from_disk(str(path))
        assert isinstance(single, datasets.Dataset)
        names = {str(single.split or "train"): path}
    else:
        names = {folder.name: folder for folder in path.glob("*") if _is_saved(folder)}
    if split not in names:
        raise absent("split", split, names, str(path), options)
    table = datasets.load_from_disk(str(names[split]))
    assert isinstance(table, datasets.Dataset)
    return table


def _column(table: datasets.Dataset, name: str) -> pa.ChunkedArray:
    """A column in the data set's order, as Arrow, without touching the others."""
    return table.select_columns([name]).with_format("arrow")[:][name]


def _ids(table: datasets.Dataset, column: str, where: str) -> pa.StringArray:
    if not column:
        return pa.array(map(str, range(len(table))), pa.string())
    try:
        ids = pc.cast(_column(table, column), pa.string()).combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(f"{where}: column {column!r} cannot be read as ids; set --data.id_column") from None
    if ids.null_count or len(ids.unique()) < len(ids):
        raise UserError(f"{where}: column {column!r} has empty or repeated ids; set --data.id_column or leave it empty")
    return ids


def _labels(table: datasets.Dataset, column: str, ids: pa.StringArray, where: str) -> tuple[Labels, tuple[str, ...]]:
    values = _column(table, column)
    if values.null_count:
        rows = ids.filter(values.is_null().combine_chunks()).to_pylist()
        raise UserError(f"{where}: {len(rows)} rows have no {column}: {some(rows)}; leave them out")
    listed = values.to_pylist()
    feature = table.features[column]
    names: dict[int, str] = {}
    if isinstance(feature, datasets.ClassLabel):
        names = dict(enumerate(feature.names))
    elif f"{column}_name" in table.column_names:
        called = _column(table, f"{column}_name").to_pylist()
        names = {value: name for value, name in zip(listed, called, strict=True) if isinstance(name, str)}
    if not listed:
        return values.to_numpy().astype("int64"), tuple(names.values())
    labels, classes = number_classes(listed, names, where)
    return labels, tuple(names.values()) if isinstance(feature, datasets.ClassLabel) else classes


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
