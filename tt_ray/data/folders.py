"""Image folders: Hugging Face's imagefolder layout (metadata.jsonl), or one sub-folder for each class."""

import dataclasses
import json
import os
import posixpath
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from tt_ray.config import DataConfig
from tt_ray.data.classes import absent, number_classes, some
from tt_ray.data.decoding import ImageReader
from tt_ray.data.file_listing import Listing, list_images
from tt_ray.data.source import Source
from tt_ray.errors import UserError, shown

_SPLIT_OPTIONS = "--data.root, --data.train_split or --data.val_split"


@dataclasses.dataclass(frozen=True)
class FolderImages(ImageReader):
    """Images as files below a folder; a file's id is its path relative to it."""

    root: Path
    ids: pa.StringArray
    left_out: tuple[str, ...] = ()
    """Sentences on files that are not read."""

    def open(self, row: int) -> Image.Image:
        return Image.open(self.name(row))

    def name(self, row: int) -> str:
        return f"{self.root}/{self.ids[row].as_py()}"


@dataclasses.dataclass
class _Metadata:
    """metadata.jsonl by column, one entry for each line; None where a line lacks the key."""

    files: list[str] = dataclasses.field(default_factory=list)
    labels: list[Any] = dataclasses.field(default_factory=list)
    names: list[Any] = dataclasses.field(default_factory=list)
    captions: list[Any] = dataclasses.field(default_factory=list)
    groups: list[Any] = dataclasses.field(default_factory=list)
    keys: set[str] = dataclasses.field(default_factory=set)


def folder_source(config: DataConfig, split: str, need_captions: bool) -> Source:
    """The images below `<data.root>/<split>`.

    Raises UserError on a missing folder, on a metadata.jsonl that does not fit the files, and on missing labels or
    (if needed) captions.
    """
    root = split_folder(config, split)
    listing = list_images(root)
    if (root / "metadata.jsonl").is_file():
        return _from_metadata(config, root, listing, need_captions)
    if need_captions:
        raise UserError(
            f"{root} has no metadata.jsonl, so its images have no captions: write one with the key of "
            "--data.caption_column, or give a caption table with --text.captions"
        )
    listing.check_folders(root)
    ids = listing.images
    labels, classes = number_classes(_folder_labels(root, ids), {}, str(root)) if ids else (np.zeros(0, np.int64), ())
    return dataclasses.replace(_source(root, ids, labels, classes, None), left_out=listing.left_out())


def folder_images(config: DataConfig, split: str) -> FolderImages:
    """The images below `<data.root>/<split>` by id, labelled or not; raises UserError on a missing folder."""
    root = split_folder(config, split)
    listing = list_images(root)
    return FolderImages(root, pa.array(listing.images, pa.string()), listing.left_out())


def split_folder(config: DataConfig, split: str) -> Path:
    """The folder of a split; raises UserError listing the folders there are."""
    if not config.root:
        raise UserError(f"data.root is empty: give the folder that holds {split}/ with --data.root")
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root {root} is not a folder: check --data.root")
    if not (root / split).is_dir():
        folders = [entry.name for entry in os.scandir(root) if entry.is_dir()]
        raise absent("folder", split, map(shown, folders), str(root), _SPLIT_OPTIONS)
    return root / split


def _from_metadata(config: DataConfig, root: Path, listing: Listing, need_captions: bool) -> Source:
    path = root / "metadata.jsonl"
    metadata = _read_metadata(path, config)
    _check_files(path, metadata.files, listing)
    if need_captions and config.caption_column not in metadata.keys:
        options = "--data.caption_column, or give a caption table with --text.captions"
        raise absent("key", config.caption_column, metadata.keys, str(path), options)
    if not metadata.files:
        return _source(root, [], np.zeros(0, np.int64), (), None)
    values, names = metadata.labels, _class_names(path, metadata)
    if config.label_column not in metadata.keys:
        # A label column that was asked for by name is a typing mistake; otherwise sub-folders are the classes.
        asked = config.label_column != DataConfig().label_column
        if asked or not all("/" in name for name in metadata.files):
            raise absent("key", config.label_column, metadata.keys, str(path), "--data.label_column")
        values, names = _folder_labels(root, metadata.files), {}
    unlabelled = [name for name, value in zip(metadata.files, values, strict=True) if value is None]
    if unlabelled:
        raise UserError(f"{path}: {len(unlabelled)} images have no {config.label_column}: {some(unlabelled)}; add it")
    labels, classes = number_classes(values, names, str(path))
    captions = metadata.captions if config.caption_column in metadata.keys else None
    source = _source(root, metadata.files, labels, classes, captions)
    source = dataclasses.replace(source, left_out=listing.left_out(metadata.files))
    if config.group_column and config.group_column not in metadata.keys:
        raise absent("key", config.group_column, metadata.keys, str(path), "--data.group_column")
    return dataclasses.replace(source, groups=group_array(metadata.groups)) if config.group_column else source


def _read_metadata(path: Path, config: DataConfig) -> _Metadata:
    metadata = _Metadata()
    try:
        lines = path.open(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    with lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                line.encode()
                row = json.loads(line)
                name, caption = row["file_name"], row.get(config.caption_column)
                if not isinstance(name, str) or not isinstance(caption, str | None):
                    raise TypeError
            except UnicodeEncodeError:
                raise UserError(f"{path}:{number} is not UTF-8: save the file as UTF-8") from None
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(
                    f"{path}:{number} is not a JSON object with texts file_name and (if any) {config.caption_column}: "
                    "mend or remove the line"
                ) from None
            metadata.files.append(posixpath.normpath(name))
            metadata.labels.append(row.get(config.label_column))
            metadata.names.append(row.get(f"{config.label_column}_name"))
            metadata.captions.append(caption)
            metadata.groups.append(row.get(config.group_column))
            metadata.keys.update(row)
    return metadata


def _check_files(path: Path, listed: list[str], listing: Listing) -> None:
    """Raises UserError unless metadata.jsonl lists exactly the folder's images, each once."""
    rows = set(listed)
    there = {*listing.images, *listing.others}
    missing = [name for name in listed if name not in there]
    if missing:
        raise UserError(f"{path}: the files of {len(missing)} rows do not exist: {some(missing)}; restore or remove")
    if len(rows) < len(listed):
        seen: set[str] = set()
        twice = [name for name in listed if name in seen or seen.add(name)]
        raise UserError(f"{path}: {len(twice)} rows repeat a file_name: {some(twice)}; remove them")
    extra = [name for name in listing.images if name not in rows]
    if extra:
        raise UserError(f"{path}: {len(extra)} images have no row, so no label: {some(extra)}; add rows or move them")


def _class_names(path: Path, metadata: _Metadata) -> dict[int, str]:
    names: dict[int, str] = {}
    for value, name in zip(metadata.labels, metadata.names, strict=True):
        if isinstance(value, int) and isinstance(name, str) and names.setdefault(value, name) != name:
            raise UserError(f"{path}: label {value} is called both {names[value]!r} and {name!r}; give it one name")
    return names


def _folder_labels(root: Path, ids: list[str]) -> list[str]:
    loose = [name for name in ids if "/" not in name]
    if loose:
        raise UserError(
            f"{root}: {len(loose)} images have no label: {some(loose)}; put them into class sub-folders, "
            "or list them in metadata.jsonl"
        )
    return [name.split("/", 1)[0] for name in ids]


def _source(
    root: Path, ids: list[str], labels: np.ndarray, classes: tuple[str, ...], captions: list[str | None] | None
) -> Source:
    images = FolderImages(root, pa.array(ids, pa.string()))
    return Source(
        ids=images.ids,
        labels=labels,
        classes=classes,
        captions=None if captions is None else caption_array(captions),
        read=images.read,
        pixels=images.pixels,
    )


def group_array(values: list[Any]) -> pa.StringArray:
    """Groups as text; an image without one stands alone."""
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def caption_array(captions: list[str | None]) -> pa.StringArray:
    """Captions with null for those that are empty or blank."""
    return pa.array([(caption or "").strip() or None for caption in captions], pa.string())
