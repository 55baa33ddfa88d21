"""The fast path for JPEGs: Pillow's pixels, Pillow's errors, and Pillow itself for everything else."""

import io
import random
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.data.sources.encoded import encode
from tt_ray.data.sources import jpeg
from tt_ray.data.sources.decoding import to_rgb
from tt_ray.data.sources.jpeg import Jpeg, NotFast

# Grey levels. The same bits where both are built with the same libjpeg-turbo; torch resizes with weights of 16 bits.
DECODED, RESIZED = 1, 2
REDUCED_MEAN = 1.5


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with edges and some noise."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), np.uint8)).resize((width, height))
    pixels = np.asarray(coarse).astype(int) + generator.normal(0, 8, (height, width, 1)).round().astype(int)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (250, 10, 30)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def of_sampling(content: bytes, horizontal: int, vertical: int) -> bytes:
    """A JPEG of 4:2:2 or 4:2:0 declared as one of as many blocks in another order: 4:4:0 (1, 2) or 4:1:1 (4, 1)."""
    frame = next(content.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in content)
    factors = frame + 11  # marker, length, precision, height, width, components, the first one's number
    return content[:factors] + bytes([horizontal * 16 + vertical]) + content[factors + 1 :]


def sized(content: bytes, width: int, height: int) -> bytes:
    frame = content.index(b"\xff\xc0") + 5
    return content[:frame] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + content[frame + 4 :]


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encode(photo(70, 45), "JPEG", exif=exif)


ORDINARY: dict[str, bytes] = {
    **{f"4:{name}": encode(photo(83, 61), "JPEG", subsampling=n) for n, name in enumerate(("4:4", "2:2", "2:0"))},
    "4:4:0": sized(of_sampling(encode(photo(48, 24), "JPEG", subsampling=1), 1, 2), 24, 48),
    "4:1:1": sized(of_sampling(encode(photo(32, 32), "JPEG", subsampling=2), 4, 1), 64, 16),
    "restart markers": encode(photo(83, 61), "JPEG", restart_marker_blocks=2),
    "grey": encode(photo(83, 61).convert("L"), "JPEG"),
    "progressive": encode(photo(83, 61), "JPEG", progressive=True),
    "progressive grey": encode(photo(83, 61).convert("L"), "JPEG", progressive=True),
    "in RGB": encode(photo(83, 61), "JPEG", keep_rgb=True),
    "one pixel": encode(photo(1, 1), "JPEG"),
    "low quality": encode(photo(83, 61), "JPEG", quality=5),
    **{f"orientation {n}": oriented(n) for n in range(10)},
}
FOR_PILLOW: dict[str, bytes | None] = {
    "CMYK": encode(photo(83, 61).convert("CMYK"), "JPEG"),
    "PNG": encode(photo(83, 61), "PNG"),
    "WebP": encode(photo(83, 61), "WEBP"),
    "long": encode(photo(200, 2), "JPEG"),
    "no file": None,
    "empty": b"",
    "JPEG's start alone": b"\xff\xd8\xff",
}


def by_pillow(content: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(to_rgb(Image.open(io.BytesIO(content))))


def whole(content: bytes) -> np.ndarray[Any, Any]:
    opened = Jpeg(content)
    width, height = opened.size
    return opened.resized((0, 0, height, width), height, width)


def largest(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> int:
    assert first.shape == second.shape
    return int(np.abs(first.astype(int) - second).max())


@pytest.mark.parametrize("name", ORDINARY)
def test_pixels_are_pillow_s(name: str) -> None:
    assert largest(whole(ORDINARY[name]), by_pillow(ORDINARY[name])) <= DECODED


@pytest.mark.parametrize("name", FOR_PILLOW)
def test_everything_else_is_for_pillow(name: str) -> None:
    with pytest.raises(NotFast):
        Jpeg(FOR_PILLOW[name])


@pytest.mark.parametrize("name", ORDINARY)
def test_bare_headers_say_what_pillow_says(name: str) -> None:
    """A file with metadata (EXIF, Adobe's) is none of them, nor is one with 12 bits or without an end."""
    content = ORDINARY[name]
    bare = jpeg._bare_header(content)
    assert bare == (None if "orientation" in name or name == "in RGB" else jpeg._header(content))
    frame = 4 + next(content.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in content)
    assert jpeg._bare_header(content[:frame] + b"\x0c" + content[frame + 1 :]) is None
    assert jpeg._bare_header(content[: frame + 6]) is None


def test_memory_is_used_again_by_small_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (Jpeg(ORDINARY[name]) for name in ("4:4:4", "4:2:0"))
    pixels = first.resized((0, 0, 61, 83), 61, 83)
    assert np.shares_memory(pixels, second.resized((0, 0, 61, 83), 61, 83))
    monkeypatch.setattr(jpeg, "_KEPT", 1000)
    pixels = first.resized((0, 0, 61, 83), 61, 83)
    assert not np.shares_memory(pixels, second.resized((0, 0, 61, 83), 61, 83))


@pytest.mark.parametrize("region", [(0, 0, 375, 500), (11, 40, 300, 201), (0, 0, 90, 500), (370, 490, 5, 10)])
@pytest.mark.parametrize("size", [(224, 224), (224, 299), (96, 64)])
def test_parts_are_resized_as_pillow_does(region: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    content = encode(photo(500, 375), "JPEG")
    top, left, height, width = region
    part = Image.fromarray(by_pillow(content)).crop((left, top, left + width, top + height))
    expected = np.asarray(part.resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
    found = Jpeg(content).resized(region, *size)
    assert found.dtype == np.uint8 and found.shape == (*size, 3)
    difference = np.abs(found - expected)
    if min(height / size[0], width / size[1]) < 4:
        assert difference.max() <= RESIZED
    assert difference.mean() <= REDUCED_MEAN


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 5}])
@pytest.mark.parametrize("size", [(1203, 905), (1001, 1999)])
def test_large_images_are_decoded_at_a_lower_scale(
    options: dict[str, Any], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encode(photo(*size), "JPEG", **options)
    monkeypatch.setattr(Jpeg, "_pixels", lambda _: pytest.fail("it was decoded whole"))
    region = (37, 101, 803, 700)
    expected = Image.fromarray(by_pillow(content)).crop((101, 37, 801, 840)).resize((96, 96), Image.Resampling.BICUBIC)
    found = Jpeg(content).resized(region, 96, 96).astype(int)
    assert np.abs(found - np.asarray(expected)).mean() <= REDUCED_MEAN


@pytest.mark.parametrize("size", [(500, 375), (501, 377), (333, 499), (258, 1001), (1203, 805), (640, 480), (9, 70)])
@pytest.mark.parametrize("short", [1, 2, 7, 16, 32, 64])
def test_whole_images_are_decoded_at_the_scale_of_pillow_s_thumbnails(size: tuple[int, int], short: int) -> None:
    width, height = (int(short * side / min(size)) for side in size)
    content = encode(photo(*size), "JPEG")
    image = Image.open(io.BytesIO(content))
    scale = min(size[0] / width, size[1] / height) / 2
    if scale >= 2:
        image.draft("RGB", (int(size[0] / scale), int(size[1] / scale)))
    factor = max(each for each in (1, 2, 4, 8) if each <= max(scale, 1))
    box = (0, 0, size[0] / factor, size[1] / factor)
    expected = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box)).astype(int)
    found = Jpeg(content).resized((0, 0, size[1], size[0]), height, width)
    assert found.shape == (height, width, 3)
    difference = np.abs(found - expected)  # of some long images torch's kernel rounds one value of a thousand otherwise
    assert difference.max() <= 3 * RESIZED and (difference > RESIZED).sum() <= 1


def test_a_damaged_file_passes_or_fails_as_with_pillow() -> None:
    """Never half an image where Pillow raises, and the same half where it does not: 600 damaged files."""
    generator = random.Random(0)
    kinds = [content for name, content in ORDINARY.items() if "orientation" not in name and name != "one pixel"]
    refused = same = 0
    for number in range(600):
        content = bytearray(generator.choice(kinds))
        place = generator.randrange(100, len(content))
        if number % 4 == 0:
            del content[place:]
        elif number % 4 == 1:
            del content[place : place + generator.randrange(1, 60)]
        elif number % 4 == 2:
            del content[-2:]
            content += generator.randbytes(generator.randrange(20))
        else:
            content[place] = generator.randrange(256)
        try:
            found = whole(bytes(content))
        except NotFast:
            refused += 1
            continue
        assert largest(found, by_pillow(bytes(content))) <= DECODED
        same += 1
    assert min(refused, same) > 100


def test_damage_that_is_found_at_a_lower_scale_is_for_pillow() -> None:
    content = encode(photo(1203, 905), "JPEG")
    with pytest.raises(NotFast):
        Jpeg(content[: len(content) // 2]).resized((0, 0, 905, 1203), 96, 96)
