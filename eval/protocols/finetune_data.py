"""Splits as fine-tuning prepares them for the loop."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from tt_ray.data.sources.base import Pixels, Source

_HELD_BYTES = 2**30
Rows = npt.NDArray[np.int64]


def joined(first: Source, second: Source) -> Source:
    """The images of both, one after the other; classes are those of the first."""
    border = len(first)

    def read(row: int) -> Image.Image:
        return first.read(row) if row < border else second.read(row - border)

    def pixels(rows: Rows, size: int) -> Pixels:
        result = np.empty((len(rows), size, size, 3), np.uint8)
        early = rows < border
        result[early] = first.pixels(rows[early], size)
        result[~early] = second.pixels(rows[~early] - border, size)
        return result

    ids, labels = pa.concat_arrays([first.ids, second.ids]), np.concatenate([first.labels, second.labels])
    copy = first.copy or second.copy
    if first.copy is not None and second.copy is not None:
        copy = first.copy.joined(second.copy)  # of one folder, as both are of one task
    return Source(ids, labels, first.classes, None, read, pixels, copy=copy)


def hold(source: Source, size: int) -> Source:
    """The split with its resized pixels in memory, if they fit in 1 GiB: every learning rate reads them again."""
    if not size or len(source) * size * size * 3 > _HELD_BYTES:
        return source
    held = source.pixels(np.arange(len(source)), size)
    given = source.pixels
    return replace(source, pixels=lambda rows, wanted: held[rows] if wanted == size else given(rows, wanted))


def repeated(source: Source, count: int, seed: int) -> Source:
    """`count` images: each of the split equally often, give or take one."""
    full, rest = divmod(count, len(source))
    extra = np.random.default_rng(seed).permutation(len(source))[:rest]
    return replace(source, captions=None, tasks=None).select(
        np.concatenate([np.tile(np.arange(len(source)), full), extra])
    )
