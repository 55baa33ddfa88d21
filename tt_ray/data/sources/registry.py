"""Opens the splits of a data source: the only place that knows which sources there are."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from tt_ray.config import DataConfig
from tt_ray.data.sources.base import Source
from tt_ray.data.sources.labels import common_classes, some
from tt_ray.data.sources.splits import hold_out
from tt_ray.io.storage import is_uri
from tt_ray.terminal.errors import UserError, nearest

Split = Literal["train", "val"]


def _shapes(config: DataConfig, split: Split, need_captions: bool) -> Source:
    from tt_ray.data.sources.shapes import shapes_source

    return shapes_source(config.shapes, split, config.image_size)


def _imagefolder(config: DataConfig, split: Split, need_captions: bool) -> Source:
    from tt_ray.data.sources.image_folder import folder_source

    return folder_source(config, split_name(config, split), need_captions)


def _datasets(config: DataConfig, split: Split, need_captions: bool) -> Source:
    from tt_ray.data.sources.hf_datasets import table_source

    return table_source(config, split_name(config, split), need_captions)


def _torchvision(config: DataConfig, split: Split, need_captions: bool) -> Source:
    from tt_ray.data.sources.torchvision import torchvision_source

    return torchvision_source(config, split_name(config, split), need_captions)


SOURCES: dict[str, Callable[[DataConfig, Split, bool], Source]] = {
    "shapes": _shapes,
    "imagefolder": _imagefolder,
    "datasets": _datasets,
    "torchvision": _torchvision,
}
"""Sources by the name that data.source gives; each imports its libraries when it is opened."""


def open_source(config: DataConfig, split: Split, need_captions: bool) -> Source:
    """One split by itself; class numbers are its own (`open_splits` makes them common).

    Raises UserError when the split is missing or empty, lacks labels, or lacks captions although they are needed.
    """
    if config.source not in SOURCES:
        raise UserError(f"no data.source {config.source!r}; {nearest(config.source, SOURCES)}")
    _check_root(config)
    source = SOURCES[config.source](config, split, need_captions)
    name = f"split {split_name(config, split)!r} of {_place(config)}"
    if not len(source):
        raise _empty(config, split, source.left_out)
    if source.captions is not None and source.captions.null_count == len(source):
        # `datasets` gives every split the columns of the first one, filled with null.
        if need_captions:
            raise UserError(
                f"no image in {name} has a caption under {config.caption_column!r}: "
                "set --data.caption_column, or give a caption table with --text.captions"
            )
        return dataclasses.replace(source, captions=None)
    return source


def _check_root(config: DataConfig) -> None:
    if is_uri(config.root) and config.source != "datasets":
        raise UserError(
            f"data.root {config.root} is a URI, but data.source {config.source} reads folders: "
            "give a folder that all nodes have, or the images as Parquet with --data.source datasets"
        )


class Images(NamedTuple):
    """A split without its labels."""

    ids: pa.StringArray
    read: Callable[[int], Image.Image]
    """Reads the image of a row as `Source.read` does."""
    left_out: tuple[str, ...]
    """Sentences on files that lie with the images and are not read."""


def open_images(config: DataConfig, split: Split) -> Images:
    """The images of a split; no labels are needed.

    Raises UserError when the split is missing or has no images.
    """
    _check_root(config)
    name = split_name(config, split)
    if config.source == "imagefolder":
        from tt_ray.data.sources.image_folder import folder_images

        images = folder_images(config, name)
    elif config.source == "datasets":
        from tt_ray.data.sources.hf_datasets import table_images

        images = table_images(config, name)
    else:  # these have labels anyway
        images = open_source(config, split, need_captions=False)
    left_out: tuple[str, ...] = getattr(images, "left_out", ())
    if not len(images.ids):
        raise _empty(config, split, left_out)
    return Images(images.ids, images.read, left_out)


def _empty(config: DataConfig, split: Split, left_out: Sequence[str]) -> UserError:
    there = f", but {', '.join(left_out)}" if left_out else ""
    name = f"split {split_name(config, split)!r} of {_place(config)}"
    return UserError(f"{name} has no images{there}: check --data.root and --data.{split}_split")


def open_splits(config: DataConfig, need_captions: bool) -> tuple[Source, Source]:
    """Training and validation split with common class numbers, those of training.

    `need_captions` asks for captions of training images; validation never needs any. Does not look for unreadable
    images (`drop_unreadable`). Raises UserError as `open_source` does, and when validation has a class that training
    lacks. With `val_share`, val_split is not opened: validation images are held out of the training images.
    """
    train = open_source(config, "train", need_captions)
    if config.val_share:
        if config.group_column and train.groups is None:
            raise UserError(f"data.group_column {config.group_column!r}: {_place(config)} has no such groups")
        return hold_out(train, config.val_share)
    val = open_source(config, "val", False)
    declared = config.source in ("shapes", "torchvision")
    return train, common_classes(train, val, _place(config), declared)


def drop_unreadable(source: Source, progress: Callable[[int], None] | None = None) -> Source:
    """The split without the images that cannot be decoded; their ids are added to `skipped`.

    Decodes every image, in threads; `progress` is told the number of images done. Raises UserError when none is left,
    in the split or in one of its classes.
    """
    import torch

    def readable(row: int) -> bool:
        try:
            # The smallest size: JPEGs are then decoded at an eighth of their own, which still reads all of the file.
            source.pixels(np.array([row]), 1)
        except UserError:
            return False
        return True

    good = np.ones(len(source), bool)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for row, fine in enumerate(pool.map(readable, range(len(source)))):
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


def split_name(config: DataConfig, split: Split) -> str:
    """What the source calls the split."""
    return config.train_split if split == "train" else config.val_split


def _place(config: DataConfig) -> str:
    return " ".join(part for part in (config.source, config.name, config.root) if part)
