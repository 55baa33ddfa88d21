"""Image folders: Hugging Face's imagefolder layout (metadata.jsonl, .csv, .parquet), or a sub-folder for each class."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from tt_ray.config import DataConfig
from tt_ray.data.sources.base import DataSource, Source, Split, Unlabelled, split_name
from tt_ray.data.sources.decoding import ImageReader
from tt_ray.data.sources.file_listing import Listing, list_images
from tt_ray.data.sources.labels import LabelPlace, Labels, number_classes
from tt_ray.data.sources.metadata import Metadata, read_metadata, unused_metadata
from tt_ray.terminal.errors import UserError, absent, shown, some

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

    def encoded(self, row: int) -> bytes:
        return Path(self.name(row)).read_bytes()

    def name(self, row: int) -> str:
        return f"{self.root}/{self.ids[row].as_py()}"


def folder_source(config: DataConfig, split: str, need_captions: bool) -> Source:
    """The images below `<data.root>/<split>`.

    Raises UserError on a missing folder, on metadata that do not fit the files, and on missing labels or (if needed)
    captions.
    """
    root = split_folder(config, split)
    listing = list_images(root)
    files = [*listing.images, *listing.others]
    metadata = read_metadata(root, files, config)
    if metadata is not None:
        source = _from_metadata(config, root, listing, metadata, need_captions)
    elif need_captions:
        raise UserError(
            f"{root} has no metadata.jsonl, .csv or .parquet, so its images have no captions: write one with "
            "--data.caption_column, or pass a caption table with --text.captions"
        )
    else:
        listing.check_folders(root)
        source = _source(root, listing.images, *_folder_classes(root, listing.images), None)
    read = () if metadata is None else metadata.files
    left_out = (*_left_out(listing, split, read), *source.left_out, *unused_metadata(root, files))
    return dataclasses.replace(source, left_out=left_out)


def _left_out(listing: Listing, split: str, read: Iterable[str] = ()) -> tuple[str, ...]:
    return tuple(f"{what} left out of {split}" for what in listing.left_out(read))


def folder_images(config: DataConfig, split: str) -> FolderImages:
    """The images below `<data.root>/<split>` by id, labelled or not; raises UserError on a missing folder."""
    root = split_folder(config, split)
    listing = list_images(root)
    return FolderImages(root, pa.array(listing.images, pa.string()), _left_out(listing, split))


def split_folder(config: DataConfig, split: str) -> Path:
    """The folder of a split; raises UserError listing the folders there are."""
    if not config.root:
        raise UserError(f"data.root is empty: name the folder that holds {split}/ with --data.root")
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root {root} is not a folder: check --data.root")
    if not (root / split).is_dir():
        folders = [entry.name for entry in os.scandir(root) if entry.is_dir()]
        raise absent("folder", split, map(shown, folders), str(root), _SPLIT_OPTIONS)
    return root / split


def _from_metadata(config: DataConfig, root: Path, listing: Listing, metadata: Metadata, need_captions: bool) -> Source:
    _check_files(metadata, listing)
    if need_captions and config.caption_column not in metadata.keys:
        options = "--data.caption_column, or pass a caption table with --text.captions"
        raise absent("key", config.caption_column, metadata.keys, metadata.where, options)
    if not metadata.files:
        return _source(root, [], np.zeros(0, np.int64), (), None)
    column, notes = config.label_column, ()
    in_folders = all("/" in name for name in metadata.files)
    if column in metadata.keys:
        place = LabelPlace(metadata.where, column, metadata.row)
        called = [name if isinstance(name, str) else None for name in metadata.names]
        labels, classes = number_classes(metadata.label_values(column), place, pa.array(called, pa.string()))
        if in_folders and [classes[label] for label in labels] != [name.split("/", 1)[0] for name in metadata.files]:
            notes = (f"the labels of {root} are those of {metadata.where} ({column}); its folders' names are not used",)
    else:
        # A label column that was asked for by name is a typing mistake; otherwise sub-folders are the classes.
        if column != DataConfig().label_column or not in_folders:
            raise absent("key", column, metadata.keys, metadata.where, "--data.label_column")
        labels, classes = _folder_classes(root, metadata.files)
    captions = metadata.captions if config.caption_column in metadata.keys else None
    source = dataclasses.replace(_source(root, metadata.files, labels, classes, captions), left_out=notes)
    if config.group_column and config.group_column not in metadata.keys:
        raise absent("key", config.group_column, metadata.keys, metadata.where, "--data.group_column")
    return dataclasses.replace(source, groups=group_array(metadata.groups)) if config.group_column else source


def _check_files(metadata: Metadata, listing: Listing) -> None:
    """Raises UserError unless metadata list exactly the folder's images, each once."""
    there, rows = {*listing.images, *listing.others}, set(metadata.files)
    missing = [row for row, name in enumerate(metadata.files) if name not in there]
    if missing:
        named = some([metadata.row(row) for row in missing])
        raise UserError(f"{metadata.where}: the files of {len(missing)} rows do not exist: {named}; restore or remove")
    if len(rows) < len(metadata.files):
        seen: set[str] = set()
        twice = [metadata.row(row) for row, name in enumerate(metadata.files) if name in seen or seen.add(name)]
        raise UserError(f"{metadata.where}: {len(twice)} rows repeat a file_name: {some(twice)}; remove them")
    extra = [name for name in listing.images if name not in rows and name not in metadata.further]
    if extra:
        raise UserError(
            f"{metadata.where}: {len(extra)} images have no row, so no label: {some(extra)}; add rows or move them"
        )


def _folder_classes(root: Path, ids: list[str]) -> tuple[Labels, tuple[str, ...]]:
    """Class numbers (N,) and names by the first sub-folder of each image."""
    loose = [name for name in ids if "/" not in name]
    if loose:
        raise UserError(
            f"{root}: {len(loose)} images have no label: {some(loose)}; put them into class sub-folders, "
            f"or list them in {root}/metadata.jsonl"
        )
    place = LabelPlace(str(root), "class folder with a name", lambda row: ids[row])
    return number_classes(pa.array([name.split("/", 1)[0] for name in ids], pa.string()), place)


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
        encoded=images.encoded,
    )


def group_array(values: list[Any]) -> pa.StringArray:
    """Groups as text; an image without one (none, a blank one or NaN) stands alone."""
    known = (None if value is None or value != value else str(value).strip() for value in values)
    return pa.array([group or None for group in known], pa.string())


def caption_array(captions: list[str | None]) -> pa.StringArray:
    """Captions with null for those that are empty or blank."""
    return pa.array([(caption or "").strip() or None for caption in captions], pa.string())


def _open_unlabelled(config: DataConfig, split: Split) -> Unlabelled:
    images = folder_images(config, split_name(config, split))
    return Unlabelled(images.ids, images.read, images.left_out, images.encoded)


SOURCE = DataSource(
    lambda config, split, need_captions: folder_source(config, split_name(config, split), need_captions),
    _open_unlabelled,
)
