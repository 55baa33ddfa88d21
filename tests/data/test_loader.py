import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.io.pulled_here import copy_of_one_file
from tests.toy import toy_config
from tt_ray.data.loader import EvalBatches, TrainBatches
from tt_ray.data.prepare import open_data, open_images
from tt_ray.data.sampling import Order, train_order
from tt_ray.terminal.errors import UserError


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("batch_size", [7, 12, 16, 50])
def test_workers_share_a_batch_and_partners_stay_together(world: int, batch_size: int) -> None:
    parts = [Order(100, batch_size, 1, 0, rank, world).part() for rank in range(world)]
    assert sorted(np.concatenate(parts)) == list(range(batch_size))
    shares = [len(part) for part in parts]
    assert Order(100, batch_size, 1, 0, 0, world).shares == tuple(shares)
    assert max(shares) - min(shares) <= 2 - batch_size % 2
    if batch_size % 2 == 0:
        for part in parts:
            assert (part[::-1] == batch_size - 1 - part).all()


def test_more_workers_than_pairs_get_an_image_each() -> None:
    parts = [Order(100, 6, 1, 0, rank, 5).part() for rank in range(5)]
    assert sorted(np.concatenate(parts)) == list(range(6)) and all(len(part) for part in parts)


def test_one_worker_takes_the_batch_in_order() -> None:
    assert (Order(10, 6, 1, 0).part() == np.arange(6)).all()


def test_an_epoch_has_every_image_once_and_another_epoch_another_order() -> None:
    order = Order(50, 8, 1, seed=3)
    first, second = order.epoch_rows(0)[0], order.epoch_rows(1)[0]
    assert sorted(first) == sorted(second) == list(range(50))
    assert (first != second).any()
    assert (first == Order(50, 8, 1, seed=3).epoch_rows(0)[0]).all()
    assert (first != Order(50, 8, 1, seed=4).epoch_rows(0)[0]).any()


def test_repeats_keep_the_length_of_an_epoch() -> None:
    rows, copies = Order(48, 8, 3, 0).epoch_rows(0)
    assert len(rows) == 48
    assert (np.unique(rows, return_counts=True)[1] == 3).all()
    assert (copies.reshape(-1, 3) == [0, 1, 2]).all()


def test_images_are_pulled_before_loader_processes_start(tmp_path: Path) -> None:
    """Whose news nobody would see."""
    config = toy_config(tmp_path)
    train = open_images(config)[0]
    for number, batches in enumerate(
        (
            lambda source: TrainBatches(source, None, train_order(config, len(train), 0, 1), config),
            lambda source: EvalBatches(source, config, 0, 1),
        )
    ):
        copy = copy_of_one_file(tmp_path, f"{number}.tar")
        batches(dataclasses.replace(train, copy=copy))
        assert (copy.folder / f"{number}.tar").exists()


def test_a_batch_depends_on_its_step_alone(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    data = open_data(config, Path(config.text.embeddings))
    order = train_order(config, len(data.train), 0, 1)
    batches = TrainBatches(data.train, data.targets, order, config)
    forward = [batches[step] for step in (0, 7, 3)]
    fresh = TrainBatches(data.train, data.targets, order, config)
    for step, batch in zip((0, 7, 3), forward, strict=True):
        again = fresh[step]
        assert torch.equal(batch.images, again.images) and torch.equal(batch.rows, again.rows)
        assert batch.text is not None and again.text is not None and torch.equal(batch.text, again.text)
        assert torch.equal(batch.labels, torch.from_numpy(data.train.labels[batch.rows.numpy()]))


def test_copies_of_an_image_are_augmented_differently(tmp_path: Path) -> None:
    config = toy_config(tmp_path, data__repeats=4, text__weight=0.0)
    data = open_data(config, None)
    batch = TrainBatches(data.train, None, train_order(config, len(data.train), 0, 1), config)[0]
    assert len(set(batch.rows.tolist())) == 2
    assert len({image.numpy().tobytes() for image in batch.images}) > 2


def test_images_that_are_not_held_are_the_same(tmp_path: Path) -> None:
    held, streamed = (toy_config(tmp_path, text__weight=0.0, data__cache_gb=gb) for gb in (1.0, 0.0))
    batches = []
    for config in (held, streamed):
        data = open_data(config, None)
        batches.append(TrainBatches(data.train, None, train_order(config, len(data.train), 0, 1), config))
    assert batches[0].pixels is not None and batches[1].pixels is None
    assert torch.equal(batches[0][5].images, batches[1][5].images)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_sees_every_image_once(tmp_path: Path, world: int) -> None:
    config = toy_config(tmp_path, text__weight=0.0)
    data = open_data(config, None)
    rows: list[int] = []
    for rank in range(world):
        batches = EvalBatches(data.val, config, rank, world, batch_size=5)
        rows += [row for batch in batches for row in batch.rows.tolist()]
    assert sorted(rows) == list(range(37))


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    config = toy_config(tmp_path, text__weight=0.0)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=64))
    with pytest.raises(UserError, match=r"train\.batch_size is 64, but there are only 48 training images"):
        train_order(config, 48, 0, 1)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, subset=0.5))
    with pytest.raises(UserError, match=r"only 24 training images, of data.subset or data.unlabelled: lower it"):
        train_order(config, 24, 0, 1)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize(("batch_size", "labelled"), [(8, 10), (16, 150), (15, 40), (64, 3), (30, 199)])
def test_every_step_and_worker_has_its_share_of_labelled_images(world: int, batch_size: int, labelled: int) -> None:
    known = np.random.default_rng(0).permutation(200)[:labelled]
    orders = [Order(200, batch_size, 1, 0, rank, world, np.sort(known)) for rank in range(world)]
    order = orders[0]
    rows, copies = order.epoch_rows(0)
    steps = np.isin(rows, known).reshape(order.steps_per_epoch, batch_size)
    assert (steps == order.labelled_places).all()
    share = order.labelled_places.mean()
    assert 0 < share < 1 and abs(share - max(0.5, labelled / 200)) <= 2 / batch_size
    if batch_size % 2 == 0:
        assert (order.labelled_places == order.labelled_places[::-1]).all(), "mixing would pair both kinds"
    found = [int(steps[0][each.part()].sum()) for each in orders]
    assert order.labelled_shares == tuple(found)
    if batch_size // 2 >= world:
        assert max(found) - min(found) <= 2 + 2 * (batch_size % 2 == 0)
    # Each kind in passes: no image comes again before all have come, and never twice as the same copy.
    assert len(set(zip(rows.tolist(), copies.tolist(), strict=True))) == len(rows)
    for kind in (known, np.setdiff1d(np.arange(200), known)):
        counts = np.bincount(rows, minlength=200)[kind]
        assert counts.max() - counts.min() <= 1
    assert (order.epoch_rows(1)[0] != rows).any()


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("sizes", [(90, 8, 2), (34, 33, 33), (1, 1, 98), (5, 0, 95), (100,)])
def test_balanced_classes_come_equally_often_and_images_of_a_class_in_passes(
    sizes: tuple[int, ...], repeats: int
) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    order = Order(100, 10, repeats, 3, balanced=labels)
    rows, copies = order.epoch_rows(0)
    assert len(rows) == len(copies) == 100 and order.steps_per_epoch == 10
    counts = np.bincount(labels[rows], minlength=len(sizes))[np.array(sizes) > 0]
    assert counts.max() - counts.min() <= repeats
    for number, size in enumerate(sizes):
        images = rows[labels[rows] == number]
        if size and repeats == 1:
            assert np.ptp(np.bincount(np.searchsorted(np.flatnonzero(labels == number), images), minlength=size)) <= 1
    # An image that comes again is augmented in another way.
    assert len(set(zip(rows.tolist(), copies.tolist(), strict=True))) == 100
    assert (order.epoch_rows(1)[0] != rows).any() and (order.epoch_rows(0)[0] == rows).all()
    assert all((order._replace(rank=rank, world=4).epoch_rows(0)[0] == rows).all() for rank in range(4))
    # Classes are spread over an epoch, and none has its additional place in every epoch.
    assert (
        len({tuple(np.bincount(labels[order.epoch_rows(epoch)[0]])) for epoch in range(9)}) > 1
        or 100 % len(counts) == 0
    )


def test_balanced_sampling_is_of_the_labels_that_training_uses(tmp_path: Path) -> None:
    config = toy_config(tmp_path, data__sampling="balanced")
    labels = np.arange(48) % 3
    assert train_order(config, 48, 0, 1, labels).balanced is labels
    assert train_order(toy_config(tmp_path), 48, 0, 1, labels).balanced is None
    with pytest.raises(UserError, match=r"data\.sampling balanced needs the label of each image"):
        toy_config(tmp_path, data__sampling="balanced", data__unlabelled=0.5)


def test_labelled_images_need_room_in_a_batch(tmp_path: Path) -> None:
    config = toy_config(tmp_path, train__batch_size=3)
    with pytest.raises(UserError, match="too small for labelled and unlabelled images"):
        train_order(config, 48, 0, 1, np.arange(48) % 2 - 1)
    assert train_order(config, 48, 0, 1, np.arange(48)).labelled is None
