"""Decoding: tables of all of Pillow's modes and of the orientation tags, and what an image may cost."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import ExifTags, Image, ImageMode

from eval.features.extract import transform
from tt_ray.config import DataConfig
from tt_ray.data.augment import eval_transform, seeded, train_transform
from tt_ray.data.sources import decoding
from tt_ray.data.sources.decoding import LARGEST, LONGEST, ImageReader, square, to_rgb
from tt_ray.models.pretrained import Preprocessing
from tt_ray.terminal.errors import UserError

WHITE = (255, 255, 255)
Row = list[tuple[int, int, int]]


@dataclass(frozen=True)
class Encoded(ImageReader):
    """Images as they lie in files."""

    files: tuple[bytes, ...]

    def open(self, row: int) -> Image.Image:
        return Image.open(io.BytesIO(self.files[row]))

    def name(self, row: int) -> str:
        return f"row {row}"


def row_of(image: Image.Image) -> Row:
    """The first line of an image that has been decoded."""
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(rgb)[0].tolist()]


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def of_mode(mode: str, *pixels: Any) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


def palette(mode: str, *numbers: Any, **info: Any) -> Image.Image:
    """An image with the palette red, green, blue."""
    image = of_mode(mode, *numbers)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.info |= info
    return image


def raw(mode: str, data: bytes, width: int = 2) -> Image.Image:
    return Image.frombytes(mode, (width, 1), data)


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
MODES: list[tuple[str, Image.Image, Row]] = [
    ("1", of_mode("1", 0, 255), [(0, 0, 0), WHITE]),
    ("L", of_mode("L", 7, 200), [(7, 7, 7), (200, 200, 200)]),
    ("LA", of_mode("LA", (7, 255), (7, 0)), [(7, 7, 7), WHITE]),
    ("La", raw("La", bytes([7, 255, 0, 0])), [(7, 7, 7), WHITE]),
    ("P", palette("P", 0, 2), [RED, BLUE]),
    ("PA", palette("PA", (1, 255), (1, 0)), [GREEN, WHITE]),
    ("RGB", of_mode("RGB", RED, (1, 2, 3)), [RED, (1, 2, 3)]),
    ("RGBA", of_mode("RGBA", (*RED, 255), (9, 9, 9, 0)), [RED, WHITE]),
    ("RGBa", raw("RGBa", bytes([*RED, 255, 0, 0, 0, 0])), [RED, WHITE]),
    ("RGBX", raw("RGBX", bytes([*RED, 0, *GREEN, 255])), [RED, GREEN]),
    ("CMYK", raw("CMYK", bytes([0, 255, 255, 0, 0, 0, 0, 255])), [RED, (0, 0, 0)]),
    ("YCbCr", raw("YCbCr", bytes([255, 128, 128, 100, 128, 128])), [WHITE, (100, 100, 100)]),
    ("LAB", raw("LAB", bytes([255, 0, 0, 0, 0, 0])), [WHITE, (0, 0, 0)]),
    ("HSV", raw("HSV", bytes([0, 255, 255, 0, 0, 100])), [RED, (100, 100, 100)]),
    ("I;16", raw("I;16", struct.pack("<2H", 255, 44000)), [(0, 0, 0), (171, 171, 171)]),
    ("I;16L", raw("I;16L", struct.pack("<2H", 255, 44000)), [(0, 0, 0), (171, 171, 171)]),
    ("I;16B", raw("I;16B", struct.pack(">2H", 255, 44000)), [(0, 0, 0), (171, 171, 171)]),
    ("I;16N", raw("I;16N", struct.pack("=2H", 255, 44000)), [(0, 0, 0), (171, 171, 171)]),
    ("F", raw("F", struct.pack("<2f", 0.0, 44000 / 65535)), [(0, 0, 0), (171, 171, 171)]),
]


@pytest.mark.parametrize(("mode", "image", "expected"), MODES, ids=[mode for mode, *_ in MODES])
def test_every_mode(mode: str, image: Image.Image, expected: Row) -> None:
    assert image.mode == mode
    np.testing.assert_allclose(row_of(image), expected, atol=1 if mode in ("LAB", "La", "RGBa") else 0)


def test_the_table_of_modes_is_complete() -> None:
    assert set(Image.MODES) <= {mode for mode, *_ in MODES} | {"I"}
    for mode in {"I;16L", "I;16B", "I;16N", "La", "RGBa", "PA"}:
        assert ImageMode.getmode(mode).mode == mode


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (palette("P", 0, 1, transparency=1), [RED, WHITE]),
        (palette("P", 0, 1, transparency=bytes([255, 0, 255])), [RED, WHITE]),
        (palette("P", 0, 1, transparency=GREEN), [RED, WHITE]),
        (of_mode("1", 0, 255), [(0, 0, 0), WHITE]),
    ],
)
def test_transparent_palettes(image: Image.Image, expected: Row) -> None:
    assert row_of(image) == expected


# PNG


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(bits: int, colour: int, line: bytes, width: int, *chunks: bytes) -> bytes:
    """A PNG of one line, with further chunks before its pixels."""
    head = chunk(b"IHDR", struct.pack(">2I5B", width, 1, bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + line))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + pixels + chunk(b"IEND", b"")


GREYS = struct.pack(">2H", 44000, 60000)
COLOURS = struct.pack(">6H", 44000, 50000, 60000, 255, 2000, 65535)


@pytest.mark.parametrize(
    ("bits", "colour", "line", "key", "expected"),
    [
        (16, 0, GREYS, None, [(171, 171, 171), (234, 234, 234)]),
        (16, 0, GREYS, (44000,), [WHITE, (234, 234, 234)]),
        (16, 0, GREYS, (44001,), [(171, 171, 171), (234, 234, 234)]),
        (16, 2, COLOURS, None, [(171, 195, 234), (0, 7, 255)]),
        (16, 2, COLOURS, (44000, 50000, 60000), [WHITE, (0, 7, 255)]),
        (16, 4, struct.pack(">4H", 44000, 65535, 44000, 0), None, [(171, 171, 171), WHITE]),
        (16, 6, struct.pack(">8H", *[44000] * 3, 65535, *[0] * 4), None, [(171, 171, 171), WHITE]),
        (8, 0, bytes([3, 200]), (3,), [WHITE, (200, 200, 200)]),
        (8, 2, bytes([1, 2, 3, 4, 5, 6]), (1, 2, 3), [WHITE, (4, 5, 6)]),
        (4, 0, bytes([0x2F]), (2,), [WHITE, WHITE]),
        (4, 0, bytes([0x2F]), (15,), [(34, 34, 34), WHITE]),
        (2, 0, bytes([0b01100000]), (1,), [WHITE, (170, 170, 170)]),
        (1, 0, bytes([0b01000000]), (0,), [WHITE, WHITE]),
    ],
)
def test_png_of_all_depths(bits: int, colour: int, line: bytes, key: tuple[int, ...] | None, expected: Row) -> None:
    chunks = () if key is None else (chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)),)
    assert row_of(opened(png(bits, colour, line, 2, *chunks))) == expected


LONG_TEXT = zlib.compress(bytes(3_000_000))


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"Comment\0\0" + LONG_TEXT),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + LONG_TEXT),
        chunk(b"iCCP", b"profile\0\0" + LONG_TEXT),
        chunk(b"tEXt", b"Comment\0" + b"a" * 3_000_000),
    ],
    ids=["zTXt", "iTXt", "iCCP", "tEXt"],
)
def test_png_with_long_texts(extra: bytes) -> None:
    assert row_of(opened(png(8, 2, bytes([*RED, *BLUE]), 2, extra))) == [RED, BLUE]


def test_a_text_that_explodes_is_refused() -> None:
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 << 20), 1))
    with pytest.raises(UserError, match="row 0"):
        Encoded((png(8, 2, bytes([*RED, *BLUE]), 2, bomb),)).read(0)


# PGM, PFM and TIFF


def pgm(largest: int, *values: int) -> bytes:
    return b"P5 %d 1 %d\n" % (len(values), largest) + struct.pack(f">{len(values)}H", *values)


def tiff(image: Image.Image) -> Image.Image:
    """The image after it has been a TIFF."""
    return opened(encode(image, "TIFF"))


def bare_tiff(bits: int, kind: int, photometric: int, data: bytes, width: int = 2) -> Image.Image:
    """A little-endian TIFF of one line and channel; `kind` is its SampleFormat."""
    entries = [
        *((tag, 3, value) for tag, value in ((256, width), (257, 1), (258, bits), (259, 1), (262, photometric))),
        (273, 4, 8 + 2 + 10 * 12 + 4),
        *((tag, 3, value) for tag, value in ((277, 1), (278, 1), (279, len(data)), (339, kind))),
    ]
    table = b"".join(struct.pack("<HHII", tag, size, 1, value) for tag, size, value in entries)
    return opened(b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + struct.pack("<I", 0) + data)


def test_greys_of_16_bits_are_the_same_in_all_formats() -> None:
    """What Pillow reads as mode I, with values to 65535 or with those of the file, was clipped to white."""
    values = np.linspace(44000, 60000, 24).astype(np.uint16)
    expected = row_of(opened(png(16, 0, values.astype(">u2").tobytes(), 24)))
    assert len(set(expected)) > 20
    assert row_of(opened(pgm(65535, *values.tolist()))) == expected
    plain = f"P2 24 1 65535 {' '.join(map(str, values))}".encode()
    assert row_of(opened(plain)) == expected
    assert row_of(bare_tiff(16, 1, 1, values.astype("<u2").tobytes(), 24)) == expected
    image = Image.frombytes("I;16", (24, 1), values.astype("<u2").tobytes())
    for kind in ("TIFF", "JPEG2000"):
        assert row_of(opened(encode(image, kind))) == expected, kind
    floats = (values / 65535).astype(np.float32)[None]
    assert row_of(tiff(Image.fromarray(floats))) == expected
    assert row_of(opened(encode(Image.fromarray(floats), "PPM"))) == expected


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (lambda: opened(pgm(4095, 0, 2048, 4095)), [0, 128, 255]),
        (lambda: opened(b"P5 2 1 15\n" + bytes([0, 15])), [0, 255]),
        (lambda: bare_tiff(12, 1, 1, bytes([0x80, 0x0F, 0xFF])), [128, 255]),
        (lambda: bare_tiff(16, 1, 0, struct.pack("<2H", 0, 65535)), [255, 0]),
        (lambda: bare_tiff(8, 1, 0, bytes([0, 255])), [255, 0]),
        (lambda: bare_tiff(32, 3, 0, struct.pack("<2f", 0, 1)), [255, 0]),
        (lambda: opened(b"Pf\n2 1\n-2.0\n" + struct.pack("<2f", 0.25, 0.5)), [128, 255]),
    ],
)
def test_the_largest_value_of_the_file_is_white(image: Callable[[], Image.Image], expected: list[int]) -> None:
    assert [grey for grey, *_ in row_of(image())] == expected


def fits(bits: int, values: bytes) -> bytes:
    cards = ["SIMPLE  = T", f"BITPIX  = {bits}", "NAXIS   = 2", "NAXIS1  = 2", "NAXIS2  = 1", "END"]
    return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + values.ljust(2880, b"\0")


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (lambda: tiff(Image.fromarray(np.full((1, 2), 44000, np.int32))), "signed integers"),
        (lambda: bare_tiff(32, 1, 1, struct.pack("<2I", 0, 44000)), "32-bit integers"),
        (lambda: bare_tiff(16, 2, 1, struct.pack("<2h", -5, 5)), "signed integers"),
        (lambda: bare_tiff(8, 2, 1, struct.pack("<2b", -5, 5)), "signed integers"),
        (lambda: tiff(Image.fromarray(np.array([[0, 255]], np.float32))), "floats go from 0 to 255"),
        (lambda: tiff(Image.fromarray(np.array([[-0.5, 1]], np.float32))), "floats go from -0.5 to 1"),
        (lambda: tiff(Image.fromarray(np.array([[0, np.nan]], np.float32))), "floats go from nan"),
        (lambda: opened(fits(16, struct.pack(">2h", -5, 5))), "FITS integers"),
        (lambda: opened(fits(32, struct.pack(">2i", -5, 5))), "32-bit integers"),
        (lambda: Image.new("I", (2, 1)), "32-bit integers"),
    ],
)
def test_values_without_a_white_are_refused(image: Callable[[], Image.Image], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        to_rgb(image())


# Orientation

ORIENTATIONS: dict[int, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}
"""What each tag asks for, as operations on (height, width, 3)."""


def picture(width: int = 60, height: int = 40) -> Image.Image:
    """Smooth, so that JPEG and resizing change little; no symmetry."""
    y, x = np.mgrid[:height, :width] / (height, width)[0]
    pixels = np.stack([x / x.max() * 255, y / y.max() * 255, (x + y) / (x + y).max() * 128], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def exif(orientation: Any) -> Image.Exif:
    found = Image.Exif()
    found[ExifTags.Base.Orientation] = orientation
    return found


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
@pytest.mark.parametrize("tag", ORIENTATIONS)
def test_every_orientation_in_every_format(tag: int, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind in ("JPEG", "MPO", "AVIF") else {}
    plain, tagged = (encode(picture(), kind, **options, **more) for more in ({}, {"exif": exif(tag)}))
    reader = Encoded((plain, tagged))
    expected = ORIENTATIONS[tag](np.asarray(reader.read(0)))
    np.testing.assert_array_equal(np.asarray(reader.read(1)), expected)
    np.testing.assert_array_equal(
        reader.pixels(np.array([1]), 16)[0],
        square(Image.fromarray(np.ascontiguousarray(expected)), 16),
    )


@pytest.mark.parametrize("tag", ORIENTATIONS)
def test_orientation_is_that_of_hugging_face(tag: int) -> None:
    import datasets

    data = encode(picture(), "JPEG", exif=exif(tag))
    theirs = datasets.Image().decode_example({"bytes": data, "path": None})
    np.testing.assert_array_equal(np.asarray(Encoded((data,)).read(0)), np.asarray(theirs))


@pytest.mark.parametrize("tag", ORIENTATIONS)
def test_jpegs_that_are_decoded_at_a_lower_scale_are_turned(tag: int) -> None:
    """601 x 403 is no multiple of the scale: the box that leaves out the rest turns with the image."""
    data = encode(picture(601, 403), "JPEG", quality=95, exif=exif(tag))
    reader = Encoded((data,))
    found = reader.pixels(np.array([0]), 24)[0].astype(int)
    whole = square(reader.read(0), 24).astype(int)
    assert np.abs(found - whole).max() <= 3


@pytest.mark.parametrize("mode", [mode for mode, *_ in MODES])
def test_every_mode_is_turned(mode: str) -> None:
    image = next(image for name, image, _ in MODES if name == mode).copy()
    image.info["exif"] = exif(6).tobytes()
    before = row_of(next(image for name, image, _ in MODES if name == mode))
    found = to_rgb(image)
    assert found.size == (1, 2) and [tuple(found.getpixel((0, y))) for y in (0, 1)] == before  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_does_no_harm(kind: str) -> None:
    """Every byte of it is spoilt in turn, and it is cut off everywhere."""
    whole = exif(6).tobytes()
    assert whole.startswith(b"Exif\0\0")
    upright = np.asarray(opened(encode(picture(8, 6), kind)).convert("RGB"))
    damaged = [whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :] for place in range(6, len(whole))]
    damaged += [whole[:place] for place in range(7, len(whole))]
    for data in damaged:
        found = np.asarray(Encoded((encode(picture(8, 6), kind, exif=data),)).read(0))
        turned = found.shape != upright.shape
        np.testing.assert_allclose(found, ORIENTATIONS[6](upright) if turned else upright, atol=8)


@pytest.mark.parametrize("tag", [0, 9, 65535])
def test_orientations_that_there_are_not(tag: int) -> None:
    assert Encoded((encode(picture(), "JPEG", exif=exif(tag)),)).read(0).size == (60, 40)


# What an image may cost

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
        evaluated += [eval_transform(config), train_transform(config)]
    for each in evaluated:
        assert seeded(each, image, 7).shape == torch.Size([3, 224, 224])
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
