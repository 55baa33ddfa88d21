"""What an audit looks at: images, labels and captions as a training with this configuration would read them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from tt_ray.audit.out_of_fold import Embedded
from tt_ray.config import Config
from tt_ray.data.prepare import find_store, join, open_images, spoil_labels
from tt_ray.data.sources.base import NOBODY, Source
from tt_ray.embeddings.store import EmbeddingStore, open_store
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.progress import Display
from tt_ray.text.caption_table import read_captions

# pyarrow makes these functions when it is imported: type checkers do not know them.
pc: Any = pyarrow.compute
_LEAST = 10
"""Images with a label and a caption below which nothing can be learned from them."""


@dataclass(frozen=True)
class Inputs:
    """Training images with their captions."""

    every: Source
    """All training images, with the labels of the data and of data.labels; of those without a caption, too."""
    original: Source
    """The training images with the labels of the data alone, without data.labels and data.label_noise."""
    seen: npt.NDArray[np.int64]
    """Labels of `every` that training would see, (N,); of those that data.unlabelled hides, what they are."""
    captions: pa.StringArray | None
    """Their captions, null where there is none; None where only embeddings are known."""
    images: Source
    """Those that have a label and an embedding, with the labels that training would see."""
    texts: pa.StringArray | None
    """Captions of these."""
    store: EmbeddingStore
    data: Embedded
    """Embeddings and labels of `images`."""
    own: npt.NDArray[np.int64]
    """Labels of `images` in the data alone: captions may have been made from these."""
    spoiled: bool
    """Whether labels of `images` were made wrong on purpose (data.label_noise)."""
    notes: tuple[str, ...]


def taught(config: Config) -> Config:
    """The configuration with what a run reads text for, whatever arm of a comparison it is."""
    plain = {"text.weight": 0.5, "text.loss": "clip", "text.temperature": 0.0, "text.control": "none"}
    plain |= {"text.class_embeddings": "", "text.class_variance": "population", "text.mixed_class": "shares"}
    plain |= {"text.schedule": "const", "text.max_missing": 1.0, "teacher.model": "", "head.out_dim": 0}
    return config.override(plain)


def read_inputs(config: Config, display: Display) -> Inputs:
    """Opens images and captions; embeds captions where the configuration names no store and no run has made it yet.

    Raises:
        UserError: They cannot be read, do not belong together, or are too few.
    """
    config = taught(config)
    every, val, notes = open_images(config, display.show)
    path = find_store(config, every, display.show, say=display.say)
    assert path is not None, "the configuration reads text"
    store = open_store(path)
    joined = join(config, every, val, store, notes)
    assert joined.targets is not None
    kept = np.flatnonzero(joined.train.labels != NOBODY)
    images, rows = joined.train.select(kept), joined.targets.index[kept].astype(np.int64)
    used = np.bincount(images.labels, minlength=len(images.classes))
    if len(images) < _LEAST or (used > 0).sum() < 2:
        raise UserError(
            f"{len(images)} images have a label and a caption, and {(used > 0).sum()} of {len(images.classes)} classes "
            f"have such images: an audit needs {_LEAST} images, and two classes"
        )
    captions, left_out = _captions(config, every)
    texts = None if captions is None else captions.take(pc.index_in(images.ids, value_set=every.ids))
    data = Embedded(store.embeddings, rows, images.labels, len(images.classes))
    original = open_images(config.override("data.labels", ""), display.show)[0] if config.data.labels else every
    own = original.labels[pc.index_in(images.ids, value_set=original.ids).to_numpy()]
    spoiled = config.data.label_noise > 0
    seen = spoil_labels(config, every, []).labels if spoiled else every.labels
    seen = np.where(seen == NOBODY, every.labels, seen)
    return Inputs(every, original, seen, captions, images, texts, store, data, own, spoiled, (*joined.notes, *left_out))


def labels_of_data(inputs: Inputs) -> npt.NDArray[np.int64]:
    """Labels in the data alone of all training images, (N,): not those of data.labels, and none made wrong."""
    return inputs.original.labels[pc.index_in(inputs.every.ids, value_set=inputs.original.ids).to_numpy()]


def _captions(config: Config, every: Source) -> tuple[pa.StringArray | None, list[str]]:
    """Captions of all training images, from the table or the data; of a store of embeddings the data's own, if any.

    And a sentence on rows of the table that cannot be used, if any.
    """
    if not config.text.captions:
        return every.captions, []
    path = Path(config.text.captions).expanduser()
    table = read_captions(path)
    said = f"{len(table.problems)} rows of {path} were left out, the first: {', '.join(table.problems[:1])}"
    return table.captions.take(pc.index_in(every.ids, value_set=table.ids)), [said] if table.problems else []
