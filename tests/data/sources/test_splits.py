"""Held-out validation images: stratified, the same every time, whole groups on one side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tt_ray.data.sources.base import Source
from tt_ray.data.sources.image_folder import group_array
from tt_ray.data.sources.splits import hold_out
from tt_ray.terminal.errors import UserError


def source(labels: list[int], groups: Sequence[str | None] | None = None, names: list[str] | None = None) -> Source:
    def no(*_: Any) -> Any:
        raise AssertionError("no image needs to be read")

    classes = tuple(str(number) for number in range(max(labels) + 1))
    ids = pa.array(names or [f"{row}.png" for row in range(len(labels))])
    return Source(ids, np.array(labels), classes, None, no, no, groups=None if groups is None else pa.array(groups))


def test_the_parts_are_disjoint_complete_and_stratified() -> None:
    whole = source([0] * 100 + [1] * 40 + [2] * 10)
    train, val = hold_out(whole, 0.2)
    assert sorted(train.ids.to_pylist() + val.ids.to_pylist()) == sorted(whole.ids.to_pylist())
    assert np.bincount(val.labels).tolist() == [20, 8, 2]


def test_it_depends_on_ids_alone() -> None:
    whole = source([0, 1] * 50)
    shuffled = whole.select(np.random.default_rng(0).permutation(100))
    assert set(hold_out(whole, 0.3)[1].ids.to_pylist()) == set(hold_out(shuffled, 0.3)[1].ids.to_pylist())


def test_groups_stay_together() -> None:
    groups = [f"thing {row // 4}" for row in range(120)]
    train, val = hold_out(source([row // 4 % 3 for row in range(120)], groups), 0.25)
    assert train.groups is not None and val.groups is not None
    assert not set(train.groups.to_pylist()) & set(val.groups.to_pylist())
    assert 24 <= len(val) <= 36


def test_blank_groups_are_none() -> None:
    values = [1, float("nan"), None, "", " ", "b "]
    assert group_array(values).to_pylist() == ["1", None, None, None, None, "b"]


def test_an_image_without_a_group_stands_alone() -> None:
    groups: list[str | None] = [None] * 20
    train, val = hold_out(source([0] * 20, groups), 0.5)
    assert len(train) == len(val) == 10


def test_every_class_is_on_both_sides_or_there_is_an_error() -> None:
    train, val = hold_out(source([0] * 90 + [1] * 2), 0.05)
    assert set(train.labels) == set(val.labels) == {0, 1}
    with pytest.raises(UserError, match="class '1' has one training image"):
        hold_out(source([0] * 9 + [1]), 0.2)


def test_groups_of_several_classes_do_not_depend_on_the_order_of_rows() -> None:
    random = np.random.default_rng(0)
    whole = source(random.integers(0, 3, 200).tolist(), [f"g{row // 4}" for row in range(200)])
    shuffled = whole.select(random.permutation(200))
    assert set(hold_out(whole, 0.3)[1].ids.to_pylist()) == set(hold_out(shuffled, 0.3)[1].ids.to_pylist())


def test_a_class_that_would_be_held_out_as_a_whole_is_named() -> None:
    """Its images are in a group that counts for another class."""
    with pytest.raises(UserError, match="all images of 1 classes, .* have images of other classes too: 2;"):
        hold_out(source([0, 2] + [0] * 38 + [1] * 40, [f"g{row // 2}" for row in range(80)]), 0.9)
