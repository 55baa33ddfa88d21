"""A validation split out of training images: stratified, the same on every machine, groups kept together."""

import hashlib

import numpy as np
import numpy.typing as npt

from tt_ray.data.sources.base import Source
from tt_ray.terminal.errors import UserError, some


def hold_out(train: Source, share: float) -> tuple[Source, Source]:
    """Training images without about `share` of each class, and those.

    Which ones follows from a hash of their group (`Source.groups`), or of their id where they have none, and from
    nothing else: neither the seed nor the order of rows. A group counts for the class of its image whose id comes
    first, and is on one side as a whole. Raises UserError when a class has only one group, so that nothing of it could
    be held out, and when all of a class was, in groups of several classes.
    """
    names = train.ids.to_pylist()
    rows = np.arange(len(names))
    if train.groups is not None:
        named = zip(train.groups.to_pylist(), names, strict=True)
        # Prefixed, so that a group cannot be taken for an image's id.
        names = [f"id {name}" if group is None else f"group {group}" for group, name in named]
        rows = np.argsort(train.ids.to_numpy(zero_copy_only=False).astype(str), kind="stable")
    groups, first, member, sizes = np.unique(
        np.array(names)[rows], return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.array([hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in groups])
    held = np.zeros(len(groups), bool)
    for number, name in enumerate(train.classes):
        own = np.flatnonzero(train.labels[rows[first]] == number)
        if len(own) == 1:
            raise UserError(f"class {name!r} has one training image (or group): nothing to hold out for validation")
        own = own[np.argsort(rank[own], kind="stable")]
        # As many groups as come nearest to the share of images, but some on either side.
        filled = np.cumsum(sizes[own])
        count = int(np.argmin(np.abs(filled - share * filled[-1]))) + 1 if len(own) else 0
        held[own[: min(count, len(own) - 1)]] = True
    inside = np.empty(len(names), bool)
    inside[rows] = held[member]
    _check_left(train, inside)
    return train.select(np.flatnonzero(~inside)), train.select(np.flatnonzero(inside))


def _check_left(train: Source, inside: npt.NDArray[np.bool_]) -> None:
    held, left = (np.bincount(train.labels[side], minlength=len(train.classes)) for side in (inside, ~inside))
    if len(lost := np.flatnonzero((held > 0) & (left == 0))):
        names = some([train.classes[number] for number in lost])
        raise UserError(
            f"data.val_share holds out all images of {len(lost)} classes, whose groups (data.group_column) have images "
            f"of other classes too: {names}; choose another share, or other groups"
        )
