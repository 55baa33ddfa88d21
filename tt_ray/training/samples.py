"""A few training images as the model gets them, with what they are joined with: a wrong join is seen at a glance."""

from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute
import torch
from torch import Tensor
from torchvision.utils import make_grid

from tt_ray.config import Config
from tt_ray.data.finish import finish
from tt_ray.data.loader import Batch
from tt_ray.data.prepare import Data
from tt_ray.text.caption_table import find_captions

# pyarrow makes these functions when it is imported: type checkers do not know them.
pc: Any = pyarrow.compute
_IMAGES, _COLUMNS = 8, 4


class Samples(NamedTuple):
    """What TensorBoard shows of them."""

    grid: Tensor
    """Images side by side, row by row: uint8, (3, H, W)."""
    table: str
    """Their ids, labels and captions in that order, as Markdown."""


def first_of(batch: Batch) -> Batch:
    """A copy of a batch's first images, on the CPU, since steps mix images in place."""
    images, labels = (part[:_IMAGES].clone().cpu() for part in (batch.images, batch.labels))
    return Batch(images, labels, None, batch.rows[:_IMAGES].clone(), batch.rest.first(_IMAGES))


def samples(config: Config, data: Data, batch: Batch) -> Samples:
    """The images of a small batch, augmented but not mixed, and their text; to look captions up may take seconds."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.data.mean, config.data.std))
    images = finish(batch.images, batch.rest, config.data)
    images = ((images * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    names = [data.train.classes[label] if label >= 0 else "none" for label in batch.labels.tolist()]
    ids = data.train.ids.take(pa.array(batch.rows.numpy())).to_pylist()
    rows = zip(map(str, range(1, len(ids) + 1)), ids, names, _texts(config, data, batch), strict=True)
    head = ["| | image id | label | text |", "| --- | --- | --- | --- |"]
    return Samples(make_grid(images, _COLUMNS), "\n".join([*head, *map(_line, rows)]))


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def _texts(config: Config, data: Data, batch: Batch) -> list[str]:
    """The caption whose embedding each image has, which control shuffle takes from another one; else whose it is."""
    targets = data.targets
    if targets is None:
        return ["none"] * len(batch.rows)
    if targets.table is not None:
        return ["a random vector for its class"] * len(batch.rows)
    owners = targets.store.ids.take(pa.array(targets.index[batch.rows.numpy()]))
    captions = _captions(config, data, owners)
    return [captions.get(owner) or f"the embedding of {owner}" for owner in owners.to_pylist()]


def _captions(config: Config, data: Data, owners: pa.StringArray) -> dict[str, str]:
    """Captions by image id, where a run has them at hand: of a store of one's own only the embeddings are known."""
    if config.text.embeddings:
        return {}
    if config.text.captions:
        return find_captions(Path(config.text.captions), owners.to_pylist())
    own = data.train.captions
    if own is None:
        return {}
    return dict(zip(owners.to_pylist(), own.take(pc.index_in(owners, data.train.ids)).to_pylist(), strict=True))
