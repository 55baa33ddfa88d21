"""Built-in clip art: 4,268 drawings in 12 classes, whose captions are their own titles and keywords.

From the Open Clip Art Library, release 0.18, which its authors have dedicated to the public domain. Images are JPEGs of
64 px, captions as messy as they were (8 words in the median), labels the library's top folders. Drawings whose names
begin alike are a group (`data.group_column group`), of which none is in both splits. The shards are those that this
writes:

    python -m tt_ray.pack --data.root CLIPART --data.label_column label_name --data.group_column group --keep \\
        --shard_size 5000 --out tt_ray/data/clipart
"""

from dataclasses import replace
from pathlib import Path

from tt_ray.config import DataConfig
from tt_ray.data.sources.base import DataSource, Source, Split
from tt_ray.data.sources.webdataset import tar_source
from tt_ray.terminal.errors import UserError

FOLDER = Path(__file__).parents[1] / "clipart"
"""Shards and index."""


def clipart_source(config: DataConfig, split: Split, need_captions: bool) -> Source:
    """One split: train has 3,017 images, test 1,251.

    Raises:
        UserError: data.root is set, or there is no such split.
    """
    if config.root:
        raise UserError(f"data.root is {config.root}, but data.source clipart is built in: leave one of them out")
    return tar_source(replace(config, root=str(FOLDER)), split, need_captions)


SOURCE = DataSource(clipart_source, declares_classes=True, knows_unreadable=True)
