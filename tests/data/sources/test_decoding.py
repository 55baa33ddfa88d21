"""Decoding: tables of all of Pillow's modes, and of what formats keep greys and transparency in."""

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageMode

from tests.data.sources.encoded import (
    BLUE,
    GREEN,
    MODES,
    RED,
    WHITE,
    Encoded,
    Row,
    chunk,
    encode,
    of_mode,
    opened,
    palette,
    png,
    row_of,
)
from tt_ray.data.sources.decoding import to_rgb
from tt_ray.terminal.errors import UserError


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
