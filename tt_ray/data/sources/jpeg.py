"""JPEGs decoded into arrays, the fast way: libjpeg-turbo without a detour through Pillow's pixels of four bytes.

Pillow still reads the header, and remains the reference: what is not an ordinary, intact JPEG is refused (`NotFast`)
and left to `decoding.to_rgb`, so that there is one place for modes, damage and messages.
"""

import io
import struct
import threading
from math import prod
from typing import Any

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image

from tt_ray.data.sources.base import Pixels
from tt_ray.data.sources.decoding import LARGEST, LONGEST

_START = b"\xff\xd8\xff"
_GAP = 2
"""Decoded at no less than this many times the wanted size, as Pillow's `Image.thumbnail` does."""
_TURNS: dict[int, tuple[bool, tuple[int, ...]]] = {
    2: (False, (1,)),
    3: (False, (0, 1)),
    4: (False, (0,)),
    5: (True, ()),
    6: (True, (1,)),
    7: (True, (0, 1)),
    8: (True, (0,)),
}
"""By EXIF orientation: whether rows and columns change places, and the axes that are mirrored after it."""

_FRAMES, _SCAN = (0xC0, 0xC1, 0xC2), 0xDA
"""Markers of the frame (baseline, extended, progressive) and of the first scan."""
_FRAME = struct.Struct(">BHHB")
"""What follows a frame's marker and length: precision, height, width, components."""
_BARE = (0xC4, 0xDB, 0xDD, 0xE0, 0xFE)
"""Markers that may come before a scan and say nothing of how the image is to be shown: tables, JFIF, comments."""
_BLOCK = 8
"""Side of a block of JPEG: sizes of smaller images do not say at which of its scales they were decoded."""
_EPSILON = 1e-9
_KEPT = 2**24
"""Bytes of pixels that a thread keeps at most."""
_held = threading.local()

Region = tuple[int, int, int, int]
"""Top, left, height and width of a part of an image."""


class NotFast(Exception):
    """The image is one for Pillow."""


class Jpeg:
    """A JPEG whose header has been read.

    Args:
        content: The file; None where there is none.
    Raises:
        NotFast: It is no JPEG, or one that only Pillow may decode: CMYK, damaged, too large or too long, or with
            damaged metadata.
    """

    def __init__(self, content: bytes | None) -> None:
        if content is None or not content.startswith(_START):
            raise NotFast
        self._content = content
        (width, height), orientation = _bare_header(content) or _header(content)
        short, long = sorted((width, height))
        if width * height > LARGEST or long > LONGEST * short:
            raise NotFast
        self._swaps, self._mirrored = _TURNS.get(orientation, (False, ()))
        self._upright = orientation not in _TURNS
        self.size = (height, width) if self._swaps else (width, height)
        """Width and height of the upright image."""

    def resized(self, region: Region, height: int, width: int) -> Pixels:
        """A part of the upright image, resized with antialiasing: uint8 (height, width, 3).

        Its memory may be used again for the thread's next image. Where the part is more than four times as large as
        wanted, the image is decoded at a half, a quarter or an eighth of its size.

        Raises:
            NotFast: The file is damaged.
        """
        top, left, rows, columns = region
        scale = min(rows / height, columns / width) / _GAP
        if scale >= 2 and self._upright:
            return self._reduced(region, height, width, scale)
        part = self._pixels()[top : top + rows, left : left + columns]
        return part if (rows, columns) == (height, width) else _bicubic(part, size=(height, width))

    def _pixels(self) -> Pixels:
        """The upright image, uint8 (H, W, 3), the same bits as Pillow's."""
        pixels = self._decoded(prod(self.size))
        pixels = pixels.transpose(1, 0, 2) if self._swaps else pixels
        return np.flip(pixels, self._mirrored) if self._mirrored else pixels

    def _decoded(self, count: int, **scaled: float) -> Pixels:
        """The image as it is stored, of `count` pixels."""
        try:
            # Strict: of what libjpeg only warns of, such as half an image, Pillow decides what becomes.
            return simplejpeg.decode_jpeg(self._content, "RGB", strict=True, buffer=_buffer(3 * count), **scaled)
        except ValueError:
            raise NotFast from None

    def _reduced(self, region: Region, height: int, width: int, scale: float) -> Pixels:
        full, lines = self.size
        if region == (0, 0, lines, full) and min(self.size) >= _BLOCK:
            factor = next(each for each in (8, 4, 2) if each <= scale)
            # As Pillow's `draft` has it decoded. Sizes are rounded up: the last row may stand for a part of a row, so
            # that the scale is that of the image and not of the array. It must not round a size down.
            rows, columns = -(-lines // factor), -(-full // factor)
            pixels = self._decoded(rows * columns, min_height=rows, min_width=columns, min_factor=1)
            scales = (height * factor / lines + _EPSILON, width * factor / full + _EPSILON)
            return _bicubic(pixels, scale_factor=scales)
        # Torch resizes from whole pixels on, Pillow from parts of them.
        try:
            opened = Image.open(io.BytesIO(self._content), formats=("JPEG",))
            drafted: Any = opened.draft("RGB", (int(full / scale), int(lines / scale)))
            image = opened.convert("RGB")
        except MemoryError:
            raise
        except Exception:
            raise NotFast from None
        factor = full / drafted[1][2]  # sizes are rounded up, so theirs are no measure
        top, left, rows, columns = (value / factor for value in region)
        box = (left, top, min(left + columns, image.width), min(top + rows, image.height))
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box))


def _bicubic(pixels: Pixels, **to: Any) -> Pixels:
    """Resizes uint8 (H, W, 3) with antialiasing, to a size or by two factors.

    Torch's kernel for uint8 is Pillow's, in vector instructions: the same within two grey levels. It is fast on pixels
    that lie side by side.
    """
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    return F.interpolate(image, **to, mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()


def _header(content: bytes) -> tuple[tuple[int, int], int]:
    """Width, height and EXIF orientation as Pillow reads them; raises NotFast unless it is one of grey or RGB."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            if image.format != "JPEG" or image.mode not in ("RGB", "L"):
                raise NotFast
            return image.size, image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # parsers of headers raise almost anything
        raise NotFast from None


def _bare_header(content: bytes) -> tuple[tuple[int, int], int] | None:
    """The same in a tenth of the time, for files without metadata, as packed ones are; None for all others."""
    place, end, size = 2, len(content) - _FRAME.size - 4, None
    while place < end:
        marker = content[place + 1]
        if content[place] != 0xFF:
            return None
        if marker == _SCAN:
            return size and (size, 1)
        if marker in _FRAMES:
            precision, height, width, components = _FRAME.unpack_from(content, place + 4)
            if precision != 8 or components not in (1, 3) or not (width and height):
                return None
            size = width, height
        elif marker not in _BARE:
            return None
        place += 2 + (content[place + 2] << 8) + content[place + 3]
    return None


def _buffer(size: int) -> bytearray:
    """The thread's memory for pixels: fresh memory for each image would take a tenth of the time."""
    if size > _KEPT:
        return bytearray(size)
    if len(getattr(_held, "buffer", b"")) < size:
        _held.buffer = bytearray(size)
    return _held.buffer
