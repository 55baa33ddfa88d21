"""What a data source is, and what it opens: one split as ids, labels, captions, and a way to read images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from tt_ray.config import DataConfig
from tt_ray.io.local_copy import LocalCopy

Pixels = npt.NDArray[np.uint8]
# The label of an image that has none, or does not count.
NOBODY = -1
Split = Literal["train", "val"]


@dataclass(frozen=True)
class Source:
    """One split. Row numbers 0..N-1 stand for its images everywhere else."""

    ids: pa.StringArray
    """Image ids, length N."""
    labels: npt.NDArray[np.int64]
    """Class numbers, shape (N,); -1 for an image whose label is not used."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of their numbers."""
    captions: pa.StringArray | None
    """One caption per image, null where there is none; None when the source has no captions at all."""
    read: Callable[[int], Image.Image]
    """Decodes the RGB image of a row; raises UserError naming the image when it cannot be read."""
    pixels: Callable[[npt.NDArray[np.int64], int], Pixels]
    """Images of rows, resized to (size, size): uint8, shape (len(rows), size, size, 3)."""
    encoded: Callable[[int], bytes | None] = lambda row: None
    """The file of a row's image as it is; None where the source has no files."""
    skipped: tuple[str, ...] = ()
    """Ids of images that were left out because they cannot be read."""
    left_out: tuple[str, ...] = ()
    """Sentences on what was found with the images, but is not used."""
    tasks: dict[str, tuple[npt.NDArray[np.int64], tuple[str, ...]]] | None = None
    """Further labels of the same images, by name: class numbers and class names."""
    copy: LocalCopy | None = None
    """What pulls the images to this machine, where they lie in object storage: reading the first one does so too."""
    groups: pa.StringArray | None = None
    """The value of data.group_column for each image; None where that is empty."""
    hidden: npt.NDArray[np.bool_] | None = None
    """Images that are to be used without their label (data.unlabelled), (N,); None where all keep it."""

    def __len__(self) -> int:
        return len(self.labels)

    def pull(self) -> None:
        """Pulls the images to this machine, where they lie in object storage.

        Reading the first one does so too, but in a loader process, where nobody sees how far it is.
        """
        if self.copy is not None:
            self.copy.pull()

    def select(self, rows: npt.NDArray[np.int64], **changes: Any) -> Self:
        """The split with these rows alone, in this order."""
        read, pixels, encoded = self.read, self.pixels, self.encoded
        captions = None if self.captions is None else self.captions.take(pa.array(rows))
        groups = None if self.groups is None else self.groups.take(pa.array(rows))
        tasks = self.tasks and {name: (labels[rows], classes) for name, (labels, classes) in self.tasks.items()}
        return replace(
            self,
            ids=self.ids.take(pa.array(rows)),
            labels=self.labels[rows],
            captions=captions,
            tasks=tasks,
            groups=groups,
            hidden=None if self.hidden is None else self.hidden[rows],
            read=lambda row: read(int(rows[row])),
            pixels=lambda chosen, size: pixels(rows[chosen], size),
            encoded=lambda row: encoded(int(rows[row])),
            **changes,
        )

    def images_alone(self) -> Self:
        """The split for processes that only read images and labels."""
        return replace(self, ids=pa.array([], pa.string()), captions=None, tasks=None, groups=None, hidden=None)


class Unlabelled(NamedTuple):
    """A split without its labels."""

    ids: pa.StringArray
    read: Callable[[int], Image.Image]
    """Reads the image of a row as `Source.read` does."""
    left_out: tuple[str, ...] = ()
    """Sentences on files that lie with the images and are not read."""
    encoded: Callable[[int], bytes | None] = lambda row: None
    """As `Source.encoded`."""
    captions: pa.StringArray | None = None
    """As `Source.captions`; None also where the source does not look for them without labels."""


@dataclass(frozen=True)
class DataSource:
    """A way to get images that `data.source` can name."""

    open: Callable[[DataConfig, Split, bool], Source]
    """Opens a split; true where captions are needed. Raises UserError when there is no such split, or it lacks them."""
    open_unlabelled: Callable[[DataConfig, Split], Unlabelled] | None = None
    """Opens a split whether its images have labels or not; None where all have."""
    declares_classes: bool = False
    """The source lists its classes, so that one may have no training image."""
    takes_uris: bool = False
    """data.root may be a URI, such as s3://bucket/folder."""
    knows_unreadable: bool = False
    """The source says which images cannot be read without reading them again: in `Source.skipped`, and `left_out`."""


def split_name(config: DataConfig, split: Split) -> str:
    """The name of a split in the source: data.train_split or data.val_split."""
    return config.train_split if split == "train" else config.val_split
