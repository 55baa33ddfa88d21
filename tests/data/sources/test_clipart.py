"""The built-in clip art: whole, readable, with groups that no two splits share, and as the pack command writes it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tt_ray.config import DataConfig
from tt_ray.data.sources.clipart import FOLDER
from tt_ray.data.sources.registry import open_splits
from tt_ray.data.sources.shard_files import find_shards
from tt_ray.data.sources.tar_index import INDEX
from tt_ray.data.sources.webdataset import make_index
from tt_ray.terminal.errors import UserError

CLIPART = DataConfig(source="clipart", group_column="group")


def test_both_splits_are_there_with_captions_labels_and_groups() -> None:
    train, val = open_splits(CLIPART, need_captions=True)
    assert (len(train), len(val)) == (3017, 1251) and train.classes == val.classes and len(train.classes) == 12
    assert train.captions is not None and not train.captions.null_count
    assert train.groups is not None and val.groups is not None
    assert not set(train.groups.to_pylist()) & set(val.groups.to_pylist())
    assert train.read(0).size == (64, 64) and val.pixels(np.array([5]), 32).shape == (1, 32, 32, 3)


def test_validation_images_are_held_out_by_group() -> None:
    train, val = open_splits(replace(CLIPART, val_share=0.2), need_captions=True)
    assert train.groups is not None and val.groups is not None
    assert len(train) + len(val) == 3017 and 500 < len(val) < 700
    assert not set(train.groups.to_pylist()) & set(val.groups.to_pylist())


def test_the_index_is_that_of_its_shards() -> None:
    config = replace(CLIPART, source="webdataset", root=str(FOLDER))
    made = make_index(find_shards(config), config)
    there = pq.read_table(FOLDER / INDEX)
    assert there["bad"].null_count == len(there)
    order = [("shard", "ascending"), ("offset", "ascending")]
    for name in set(made.column_names) - {"image_id"}:
        assert made.sort_by(order)[name].to_pylist() == there.sort_by(order)[name].to_pylist(), name


def test_a_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="clipart is built in"):
        open_splits(replace(CLIPART, root=str(tmp_path)), False)
