"""Images as they lie in files, of all of Pillow's modes, and what they are as RGB."""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from tt_ray.data.sources.decoding import ImageReader, to_rgb

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


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(bits: int, colour: int, line: bytes, width: int, *chunks: bytes) -> bytes:
    """A PNG of one line, with further chunks before its pixels."""
    head = chunk(b"IHDR", struct.pack(">2I5B", width, 1, bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + line))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def picture(width: int = 60, height: int = 40) -> Image.Image:
    """Smooth, so that JPEG and resizing change little; no symmetry."""
    y, x = np.mgrid[:height, :width] / (height, width)[0]
    pixels = np.stack([x / x.max() * 255, y / y.max() * 255, (x + y) / (x + y).max() * 128], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def exif(orientation: Any) -> Image.Exif:
    found = Image.Exif()
    found[ExifTags.Base.Orientation] = orientation
    return found
