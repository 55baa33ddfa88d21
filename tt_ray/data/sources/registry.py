"""Opens the splits of a data source, whichever it is."""

import dataclasses
import importlib
import posixpath
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from tt_ray.config import DataConfig
from tt_ray.config.sources import SOURCES, check_source
from tt_ray.data.sources.base import NOBODY, DataSource, Pixels, Source, Split, Unlabelled, split_name
from tt_ray.data.sources.decoding import in_threads, square
from tt_ray.data.sources.labels import common_classes
from tt_ray.data.sources.splits import hold_out
from tt_ray.io.storage import is_uri
from tt_ray.terminal.errors import UserError, one_line, some

_BUILT_IN = ("shapes", "clipart")
"""Sources whose splits have no names."""


def find_source(name: str) -> DataSource:
    """The data source of a name that `data.source` can have; its libraries are imported here.

    Raises UserError when the name is neither in `SOURCES` nor that of a `DataSource` in a module.
    """
    check_source(name)
    module, _, attribute = SOURCES.get(name, name).partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # a user's module may raise anything
        raise UserError(f"data.source {name}: cannot import {module}: {one_line(error)}") from error
    if not isinstance(found, DataSource):
        raise UserError(f"data.source {name}: {module} has no DataSource {attribute}")
    return found


def open_source(config: DataConfig, split: Split, need_captions: bool) -> Source:
    """Opens one split by itself; class numbers are its own (`open_splits` makes them common).

    Raises UserError when the split is missing or empty, lacks labels, or lacks captions although they are needed.
    """
    source = _find(config).open(config, split, need_captions)
    name = f"split {split_name(config, split)!r} of {_place(config)}"
    if not len(source):
        raise _empty(config, split, source.left_out)
    if source.captions is not None and source.captions.null_count == len(source):
        # `datasets` adds to every split the columns of the first one, filled with null.
        if need_captions:
            raise UserError(
                f"no image in {name} has a caption under {config.caption_column!r}: "
                "set --data.caption_column, or pass a caption table with --text.captions"
            )
        return dataclasses.replace(source, captions=None)
    return source


def open_unlabelled(config: DataConfig, split: Split) -> Unlabelled:
    """Opens the images of a split; no labels are needed.

    Raises UserError when the split is missing or has no images.
    """
    kind = _find(config)
    if kind.open_unlabelled is None:  # these have labels anyway
        source = open_source(config, split, need_captions=False)
        return Unlabelled(source.ids, source.read, source.left_out, source.encoded, source.captions)
    images = kind.open_unlabelled(config, split)
    if not len(images.ids):
        raise _empty(config, split, images.left_out)
    return images


def without_labels(config: DataConfig, split: Split) -> Source:
    """A split as `open_unlabelled` opens it, none of its images with a label."""
    images = open_unlabelled(config, split)

    def pixels(rows: npt.NDArray[np.int64], size: int) -> Pixels:
        return np.stack([square(images.read(int(row)), size) for row in rows])

    labels = np.full(len(images.ids), NOBODY, np.int64)
    read, encoded, left_out = images.read, images.encoded, images.left_out
    return Source(images.ids, labels, (), images.captions, read, pixels, encoded, left_out=left_out)


def _find(config: DataConfig) -> DataSource:
    """The source; raises UserError where it does not take the URI in data.root."""
    source = find_source(config.source)
    if is_uri(config.root) and not source.takes_uris:
        raise UserError(
            f"data.root {config.root} is a URI, but data.source {config.source} reads folders: "
            "pass a folder that all nodes have, the images packed by tt_ray.pack with --data.source webdataset, or as "
            "Parquet with --data.source datasets"
        )
    return source


def _empty(config: DataConfig, split: Split, left_out: Sequence[str]) -> UserError:
    there = f", but {', '.join(left_out)}" if left_out else ""
    name = f"split {split_name(config, split)!r} of {_place(config)}"
    return UserError(f"{name} has no images{there}: check --data.root and --data.{split}_split")


def open_splits(config: DataConfig, need_captions: bool) -> tuple[Source, Source]:
    """Opens training and validation split with common class numbers, those of training.

    With `val_share`, val_split is not opened: validation images are held out of the training images. Unreadable images
    are not looked for (`drop_unreadable`).

    Args:
        config: The source and its splits.
        need_captions: Whether training images need captions; validation never needs any.

    Raises:
        UserError: As `open_source`, and when validation has a class that training lacks.
    """
    if not config.val_share and config.source not in _BUILT_IN and _same_split(config):
        raise UserError(
            f"data.train_split and data.val_split are both {config.train_split!r}: a model would be validated on "
            "images that it has seen; name another split, or hold images out with --data.val_share 0.1"
        )
    train = open_source(config, "train", need_captions)
    if config.val_share:
        if config.group_column and train.groups is None:
            raise UserError(f"data.group_column {config.group_column!r}: {_place(config)} has no such groups")
        return hold_out(train, config.val_share)
    val = open_source(config, "val", False)
    declared = find_source(config.source).declares_classes
    return train, common_classes(train, val, _place(config), declared)


def _same_split(config: DataConfig) -> bool:
    return posixpath.normpath(config.train_split) == posixpath.normpath(config.val_split)


def drop_unreadable(source: Source, progress: Callable[[int], None] | None = None) -> Source:
    """The split without the images that cannot be decoded; their ids are added to `skipped`.

    Decodes every image, in threads; `progress` is called with the number of images done. Raises UserError when none is
    left, in the split or in one of its classes.
    """

    def readable(row: int) -> bool:
        try:
            # The smallest size: JPEGs are then decoded at an eighth of their own, which still reads all of the file.
            source.pixels(np.array([row]), 1)
        except UserError:
            return False
        return True

    good = np.ones(len(source), bool)
    for row, fine in enumerate(in_threads(readable, range(len(source)))):
        good[row] = fine
        if progress:
            progress(row + 1)
    if good.all():
        return source
    bad = source.ids.filter(~good).to_pylist()
    if not good.any():
        raise UserError(f"none of {len(bad)} images can be read ({some(bad)}): check --data.root, --data.image_column")
    images, left = (
        np.bincount(labels, minlength=len(source.classes)) for labels in (source.labels, source.labels[good])
    )
    if len(lost := np.flatnonzero((images > 0) & (left == 0))):
        names = some([f"{source.classes[number]!r} ({images[number]} images)" for number in lost])
        example = source.ids[int(np.argmax(source.labels == lost[0]))]
        raise UserError(
            f"no image can be read of {len(lost)} classes: {names}, such as {example}; restore them, or move them away"
        )
    return source.select(np.flatnonzero(good), skipped=(*source.skipped, *bad))


def _place(config: DataConfig) -> str:
    return " ".join(part for part in (config.source, config.name, config.root) if part)
