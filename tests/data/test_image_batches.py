"""Images that are decoded one by one: whoever decodes and whoever augments, the sample is the same."""

import io
import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.sources.encoded import encode
from tests.data.sources.test_jpeg import FOR_PILLOW, ORDINARY, photo
from tests.data.test_augment_draws import square_of
from tt_ray.config import Config, DataConfig
from tt_ray.data import image_batches
from tt_ray.data.augment import eval_transform
from tt_ray.data.augment_draws import own_randomness, preset_of
from tt_ray.data.finish import fill_of, finish
from tt_ray.data.image_batches import AugmentedImages, eval_images
from tt_ray.data.loader import EvalBatches, TrainBatches
from tt_ray.data.pillow_operations import apply_steps
from tt_ray.data.sampling import Order
from tt_ray.data.sources import jpeg
from tt_ray.data.sources.base import Source
from tt_ray.data.sources.image_folder import SOURCE
from tt_ray.terminal.errors import UserError

FILES = {
    "a.jpg": encode(photo(90, 70), "JPEG"),
    "b.jpg": encode(photo(61, 101, 1), "JPEG", subsampling=0, progressive=True),
    "c.png": encode(photo(70, 64, 2), "PNG"),
    "d.jpg": encode(photo(80, 64, 3).convert("CMYK"), "JPEG"),
    "e.jpg": ORDINARY["orientation 6"],
    "f.jpg": encode(photo(64, 64, 4).convert("L"), "JPEG"),
}
SEEDS = np.arange(len(FILES)) * 7919 + 3
ROWS = np.arange(len(FILES))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return folder(tmp_path, FILES)


def folder(path: Path, files: dict[str, bytes]) -> Source:
    (path / "train" / "class").mkdir(parents=True)
    for name, content in files.items():
        (path / "train" / "class" / name).write_bytes(content)
    return SOURCE.open(DataConfig(source="imagefolder", root=str(path)), "train", False)


def config(augment: str, **changes: Any) -> DataConfig:
    return DataConfig(**{"augment": augment, "image_size": 48, **changes})


def assert_read_by_pillow(source: Source, data: DataConfig, rows: Any) -> None:
    """Cut out by Pillow bit for bit; augmented by OpenCV, unless Pillow is to do it all."""
    for on_device in (True, False):
        images, expected = (
            AugmentedImages(source, replace(data, decoder=decoder), on_device)(rows, rows)[0].float()
            for decoder in ("auto", "pillow")
        )
        assert (images - expected).abs().mean() < (1e-9 if on_device else 0.7)


def levels(images: torch.Tensor, data: DataConfig) -> torch.Tensor:
    return ((images * torch.tensor(data.std).view(3, 1, 1) + torch.tensor(data.mean).view(3, 1, 1)) * 255).round()


@pytest.mark.parametrize("augment", ["three_augment", "deit"])
def test_what_is_drawn_for_a_sample_is_done_to_its_image(augment: str, source: Source) -> None:
    """Images that Pillow reads among those that it does not, in one batch."""
    data = config(augment, decoder="pillow")
    images, rest = AugmentedImages(source, data, on_device=False)(ROWS, SEEDS)
    assert images.dtype == torch.uint8 and rest.work is None
    with own_randomness():
        drawn = preset_of(data).drawn(SEEDS)
        for place, row in enumerate(ROWS.tolist()):
            image = source.read(row)
            square = Image.fromarray(square_of(image, drawn.cut(place, image.size), 48))
            expected = np.asarray(apply_steps(square, drawn.steps(place), fill_of(data)))
            assert (images[place].permute(1, 2, 0).numpy() == expected).all()
    assert (rest.erase is None) == (augment == "three_augment")


@pytest.mark.parametrize("decoder", ["auto", "pillow"])
@pytest.mark.parametrize("augment", ["three_augment", "deit"])
def test_loader_and_device_augment_alike(augment: str, decoder: str, source: Source) -> None:
    data = config(augment, decoder=decoder, image_size=40)
    found = []
    for on_device in (False, True):
        parts = [AugmentedImages(source, data, on_device)(ROWS, SEEDS + 1000 * number) for number in range(8)]
        found.append(torch.cat([levels(finish(*part, data), data) for part in parts]))
    difference = (found[0] - found[1]).abs().flatten(1)
    assert difference.mean(1).max() < 1, "noise too is the same"
    assert difference.mean() < 0.2


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("augment", ["three_augment", "deit"])
def test_a_sample_follows_from_its_seed_alone(augment: str, on_device: bool, source: Source) -> None:
    data = config(augment)
    augmented = AugmentedImages(source, data, on_device)
    whole = finish(*augmented(ROWS, SEEDS), data)
    order = np.array([3, 1, 0])
    assert torch.equal(finish(*augmented(order, SEEDS[order]), data), whole[order])
    assert torch.equal(finish(*AugmentedImages(source, data, on_device)(ROWS, SEEDS), data), whole)
    other = finish(*augmented(ROWS, SEEDS + 1), data)
    assert (other != whole).flatten(1).any(1).all()


@pytest.mark.parametrize("decoder", ["auto", "pillow"])
@pytest.mark.parametrize("augment", ["three_augment", "deit"])
def test_no_generator_is_moved(augment: str, decoder: str, source: Source) -> None:
    """The model's dropout follows no images."""
    states = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    for on_device in (False, True):
        AugmentedImages(source, config(augment, decoder=decoder), on_device)(ROWS, SEEDS)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (str(np.random.get_state()), random.getstate()) == states[1:]


@pytest.mark.parametrize("augment", ["three_augment", "deit"])
def test_jpegs_are_decoded_the_fast_way_and_nothing_else(
    augment: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    slow = replace(source, read=lambda row: (read.append(row), source.read(row))[1])
    for decoder, expected in (("auto", [2, 3]), ("pillow", list(range(6)))):
        read.clear()
        AugmentedImages(slow, config(augment, decoder=decoder), False)(ROWS, SEEDS)
        assert read == expected
    monkeypatch.setattr(jpeg, "LARGEST", 100)  # as if all were too large to be held
    read.clear()
    AugmentedImages(slow, config(augment), False)(ROWS, SEEDS)
    assert read == list(range(6))


def test_a_source_without_files_is_read_by_pillow(source: Source) -> None:
    bare = replace(source, encoded=lambda row: None)
    assert_read_by_pillow(bare, config("three_augment"), ROWS)


@pytest.mark.parametrize(
    "content",
    [
        FILES["a.jpg"][: len(FILES["a.jpg"]) // 2],
        FILES["b.jpg"][: len(FILES["b.jpg"]) // 2],
        FILES["c.png"][:200],
        b"",
        b"\xff\xd8\xff",
        b"not an image at all",
        ORDINARY["4:4:0"][:300],
    ],
)
def test_a_damaged_image_fails_with_pillow_s_message(content: bytes, tmp_path: Path) -> None:
    source = folder(tmp_path, {"bad.jpg": content})
    with pytest.raises(UserError) as expected:
        source.read(0)
    row, given = np.zeros(1, np.int64), (config("three_augment"), config("deit"))
    for data in given:
        for on_device in (False, True):
            with pytest.raises(UserError) as found:
                AugmentedImages(source, data, on_device)(row, row)
            assert str(found.value) == str(expected.value)
    with pytest.raises(UserError) as found:
        eval_images(source, row, given[0], eval_transform(given[0]))
    assert str(found.value) == str(expected.value) and "bad.jpg" in str(found.value)


def test_as_many_images_as_may_be_open_at_a_time_change_nothing(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = config("three_augment")
    expected, _ = AugmentedImages(source, data, False)(ROWS, SEEDS)
    monkeypatch.setattr(image_batches, "_TOGETHER", 4)
    assert torch.equal(AugmentedImages(source, data, False)(ROWS, SEEDS)[0], expected)


def test_a_missing_file_fails_with_pillow_s_message(source: Source, tmp_path: Path) -> None:
    (tmp_path / "train" / "class" / "b.jpg").unlink()
    with pytest.raises(UserError, match=r"cannot read image .*b\.jpg"):
        AugmentedImages(source, config("deit"), True)(ROWS, SEEDS)


@pytest.mark.parametrize("crop_pct", [0.7, 0.875, 1.0])
def test_validation_is_the_transform_s(crop_pct: float, source: Source) -> None:
    data = config("deit", crop_pct=crop_pct)
    transform = eval_transform(data)
    expected = torch.stack([transform(source.read(row)) for row in range(len(ROWS))]).int()
    exact = eval_images(source, ROWS, replace(data, decoder="pillow"), transform)
    assert torch.equal(exact.int(), expected)
    assert (eval_images(source, ROWS, data, transform).int() - expected).abs().max() <= 2


def test_batches_of_all_presets_are_uint8(source: Source) -> None:
    """A fourth of the bytes between the processes, and on the way to the device."""
    for augment in ("none", "crop", "crop_flip", "three_augment", "deit"):
        run = replace(Config(), data=config(augment))
        order = Order(len(source), 4, 1, 0)
        for on_device in (False, True):
            batch = TrainBatches(source, None, order, run, on_device)[0]
            assert batch.images.dtype == torch.uint8 and batch.images.shape == (4, 3, 48, 48)
            assert (batch.rest.work is not None) == (on_device and augment in ("three_augment", "deit"))
        assert EvalBatches(source, run, 0, 1)[0].images.dtype == torch.uint8


def test_pillow_reads_what_is_not_ordinary(tmp_path: Path) -> None:
    files = {f"{n}.jpg": content for n, content in enumerate(FOR_PILLOW.values()) if content and len(content) > 9}
    source = folder(tmp_path, files)
    rows = np.arange(len(source))
    assert_read_by_pillow(source, config("three_augment", image_size=32), rows)
    assert Image.open(io.BytesIO(next(iter(files.values())))).mode == "CMYK"


@pytest.mark.parametrize("augment", ["three_augment", "deit"])
def test_presets_can_be_sent_to_loader_processes(augment: str) -> None:
    preset, size = preset_of(config(augment)), (90, 70)
    again = pickle.loads(pickle.dumps(preset))
    found = []
    for each in (preset, again):
        with own_randomness():
            drawn = each.drawn(SEEDS)
            found.append(([drawn.steps(place) for place in ROWS], drawn.cut(4, size), drawn.boxes))
    assert found[0] == found[1]
