"""A data source from outside the package: one module and its name on the command line; nothing is edited.

The command finds it in the folder where it is started: test_packaging.py.
"""

import sys
from pathlib import Path

import pytest

from tests.toy import run_toy, toy_config
from tt_ray.config import Config, DataConfig
from tt_ray.config.sources import SOURCES
from tt_ray.data.sources.registry import find_source, open_source, open_splits, open_unlabelled
from tt_ray.recipes import RECIPES
from tt_ray.terminal.errors import UserError

MODULE = '''
"""Squares that are light or dark."""

import numpy as np
import pyarrow as pa
from PIL import Image

from tt_ray.data.sources.base import DataSource, Source


def open_squares(config, split, need_captions):
    count = 48 if split == "train" else 16
    labels = np.arange(count) % 2
    grey = (60 + 130 * labels + np.arange(count)).astype(np.uint8)
    captions = pa.array([("a dark square", "a light square")[label] for label in labels])
    return Source(
        ids=pa.array([f"{split}/{row}" for row in range(count)]),
        labels=labels,
        classes=("dark", "light", "never seen"),
        captions=captions,
        read=lambda row: Image.new("RGB", (8, 8), (int(grey[row]),) * 3),
        pixels=lambda rows, size: np.broadcast_to(grey[rows, None, None, None], (len(rows), size, size, 3)),
    )


SQUARES = DataSource(open_squares, declares_classes=True)
OTHER = "no source"
'''


@pytest.fixture
def squares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "greys").mkdir()
    (tmp_path / "greys" / "my_squares.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("greys", "greys.my_squares"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "greys.my_squares:SQUARES"


def test_it_is_opened_by_its_name(squares: str) -> None:
    config = DataConfig(source=squares)
    train, val = open_splits(config, need_captions=True)
    assert (len(train), len(val)) == (48, 16) and train.classes == val.classes == ("dark", "light", "never seen")
    images = open_unlabelled(config, "val")
    assert images.ids == val.ids and images.read(1).getpixel((0, 0)) == (191,) * 3
    with pytest.raises(UserError, match=r"data.root s3://x is a URI, but data.source greys.my_squares:SQUARES reads"):
        open_source(DataConfig(source=squares, root="s3://x"), "train", False)


def test_a_run_trains_on_it(squares: str, tmp_path: Path) -> None:
    config = toy_config(tmp_path, data__source=squares, train__epochs=3)
    assert Config.from_dict(config.to_dict()) == config
    result = run_toy(config)
    assert result["top1"] > 60, "light and dark are easy to tell apart"


def test_a_wrong_name_is_refused_before_anything_is_imported(squares: str) -> None:
    config = RECIPES["shapes_baseline"]()
    for name, hint in (("imagefolders", "did you mean imagefolder?"), ("torchvison", "did you mean torchvision?")):
        with pytest.raises(UserError, match=f"data.source is '{name}'; ") as caught:
            config.override("data.source", name)
        assert hint in str(caught.value) and "MODULE:NAME" in str(caught.value)
    assert "greys.my_squares" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("greys.my_circles:SQUARES", "cannot import greys.my_circles: No module named"),
        ("greys.my_squares:CIRCLES", "greys.my_squares has no DataSource CIRCLES"),
        ("greys.my_squares:OTHER", "greys.my_squares has no DataSource OTHER"),
    ],
)
def test_a_source_that_is_not_there(squares: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(DataConfig(source=name), "train", False)


def test_own_sources_are_rows_of_the_same_kind() -> None:
    kinds = {name: find_source(name) for name in SOURCES}
    declare = {name for name, kind in kinds.items() if kind.declares_classes}
    assert declare == {"clipart", "shapes", "torchvision", "webdataset"}
    assert {name for name, kind in kinds.items() if kind.takes_uris} == {"datasets", "webdataset"}
    assert set(kinds) == declare | {"datasets", "imagefolder"}
