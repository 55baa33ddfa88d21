"""What an image may cost: long ones, those of too many pixels, and several frames."""

import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from eval.features.extract import transform
from tests.data.sources.encoded import GREEN, RED, Encoded, chunk, encode, opened, palette, picture, row_of
from tt_ray.config import DataConfig
from tt_ray.data.augment import eval_transform
from tt_ray.data.image_batches import AugmentedImages
from tt_ray.data.sources import decoding
from tt_ray.data.sources.base import Source
from tt_ray.data.sources.decoding import LARGEST, LONGEST, to_rgb
from tt_ray.models.pretrained import Preprocessing
from tt_ray.terminal.errors import UserError

CONFIGS = [DataConfig(augment=augment) for augment in ("none", "crop", "crop_flip", "three_augment", "deit")]
CONFIGS = [DataConfig(augment=config.augment, image_size=224) for config in CONFIGS]


@pytest.fixture
def largest(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects pixels of every image that is resized to."""
    found: list[int] = []
    resize = Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], *rest: Any, **more: Any) -> Image.Image:
        found.append(size[0] * size[1])
        # Pillow resizes the width first: this is between.
        found.append(size[0] * image.height)
        if max(found) > LARGEST:
            raise AssertionError(f"resized to {size}")
        return resize(image, size, *rest, **more)

    monkeypatch.setattr(Image.Image, "resize", watched)
    return found


@pytest.mark.parametrize("size", [(20000, 1), (1, 20000), (20000, 3), (65000, 2)])
def test_long_images_are_cut_before_they_are_enlarged(size: tuple[int, int], largest: list[int]) -> None:
    reader = Encoded((encode(Image.new("RGB", size, RED), "PNG"),))
    assert reader.pixels(np.array([0]), 224)[0, 100, 100].tolist() == list(RED)
    image = reader.read(0)
    assert max(image.size) == LONGEST * min(image.size)
    evaluated = [
        transform(Preprocessing(224, 0.9, mode, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
        for mode in ("center", "squash", "border")
    ]
    for config in CONFIGS:
        evaluated.append(eval_transform(config))
    for each in evaluated:
        assert each(image).shape == torch.Size([3, 224, 224])
    source = Source(pa.array(["long"]), np.zeros(1, np.int64), ("a",), None, reader.read, reader.pixels, reader.encoded)
    for config in CONFIGS[-2:]:
        images, _ = AugmentedImages(source, config, on_device=False)(np.zeros(1, np.int64), np.array([7]))
        assert images.shape == torch.Size([1, 3, 224, 224])
    assert 0 < max(largest) * 4 < 2**29


def test_the_middle_of_a_long_image_is_kept() -> None:
    line = Image.new("RGB", (1001, 1))
    line.putpixel((500, 0), RED)
    found = np.asarray(Encoded((encode(line, "PNG"),)).read(0))
    assert found.shape == (1, 64, 3) and found[0, 32].tolist() == list(RED)


def test_images_as_long_as_allowed_are_whole() -> None:
    for size in ((64, 1), (1, 64), (640, 10), (639, 10)):
        assert to_rgb(Image.new("RGB", size)).size == size


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(8193, 8192), (10000, 10000), (20000, 20000)])
def test_too_many_pixels_are_refused_by_name(size: tuple[int, int]) -> None:
    head = chunk(b"IHDR", struct.pack(">2I5B", *size, 1, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    for read in (lambda reader: reader.read(0), lambda reader: reader.pixels(np.array([0]), 8)):
        with pytest.raises(UserError, match=r"cannot read image row 0 .*pixels"):
            read(Encoded((data,)))


def test_large_jpegs_are_read_at_a_lower_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "LARGEST", 301 * 200)
    plain, progressive = (encode(picture(601, 400), "JPEG", progressive=how) for how in (False, True))
    assert Encoded((plain,)).read(0).size == (301, 200)
    assert Encoded((plain,)).pixels(np.array([0]), 200).shape == (1, 200, 200, 3)
    with pytest.raises(UserError, match="601 x 400 pixels"):
        Encoded((progressive,)).read(0)


def test_large_images_are_converted_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (50, 30, 4), np.uint8)), palette("P", *[0, 1, 2] * 7).resize((9, 9))]
    images += [Image.frombytes("I;16", (30, 50), rng.bytes(3000)), picture(30, 50).convert("CMYK")]
    whole = [np.asarray(to_rgb(image.copy())) for image in images]
    monkeypatch.setattr(decoding, "_STRIP", 100)
    for image, expected in zip(images, whole, strict=True):
        np.testing.assert_array_equal(np.asarray(to_rgb(image)), expected)


def test_the_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.abs(np.subtract(row_of(opened(data))[0], RED)).max() <= 1, kind
