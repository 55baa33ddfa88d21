"""From encoded images to upright 8-bit RGB: the one place for modes, transparency, EXIF, sizes, damage and threads.

Training, captioning, evaluation and vision teachers all read through an `ImageReader`.
"""

import importlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from tt_ray.data.sources.base import Pixels
from tt_ray.terminal.errors import UserError, one_line

VERSION = 4
"""Version of the pixels of a decoded image: what is computed from images is kept under it."""
LARGEST = 60_000_000
"""Pixels of the largest image that is held: Pillow takes 4 bytes for each, and as much again while it converts or turns
it, so that no image costs more than half a GB."""
LONGEST = 64
"""Sides of longer images are cut to this ratio, around the centre: resizing the short side to 224 px would otherwise
make 4,480,000 x 224 px of 20000 x 1."""
_ROWS_PER_TASK = 32
_STRIP = 2**20
"""Pixels that are converted at a time: a few copies of these are small next to the image."""
_DRAFT_GAP = 2
"""JPEGs are decoded at no less than this many times the wanted size: Pillow's own choice in `Image.thumbnail`, where
the result is hard to distinguish from a full decode."""
_PLUGINS = ("pillow_heif.HeifImagePlugin", "pillow_jxl")
"""Packages that teach Pillow further formats when they are imported; used where they are installed."""

Box = tuple[float, float, float, float]
Levels = Callable[[npt.NDArray[Any]], Pixels]
T = TypeVar("T")

for _name in _PLUGINS:
    with suppress(ImportError, OSError):
        importlib.import_module(_name)
# All texts of a PNG may take 64 MiB together, but a single one, or a colour profile, only 1: too little for what
# editors embed. Set once, on import, since limits that change while threads decode would be those of other images.
PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
# Pillow warns of large images, which are refused by name here, and of damaged metadata, which does no harm.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class UnreadableImage(UserError):
    """An image that cannot be read. Made of its text alone as well, as torch's loader processes do."""

    def __init__(self, text: str, problem: str = "", cause: str = "") -> None:
        super().__init__(text)
        self.problem = problem or text
        """Which image, and why, without the ways to fix it."""
        self.cause = cause or self.problem
        """Why, alone."""


class ImageReader(ABC):
    """Reads one split's images; its `read` and `pixels` are those of `Source`. Objects can be pickled."""

    @abstractmethod
    def open(self, row: int) -> Image.Image:
        """Opens the image of a row, if possible without decoding it; may raise anything."""

    @abstractmethod
    def name(self, row: int) -> str:
        """What errors call the image of a row: its file, or its place in a table."""

    def encoded(self, row: int) -> bytes | None:
        """The file of a row's image as it is; None where there is none."""
        return None

    def read(self, row: int) -> Image.Image:
        """The RGB image of a row, as `to_rgb` returns it; raises UserError naming it when it cannot be read."""
        try:
            with self.open(row) as image:
                return to_rgb(image)
        except Exception as error:
            raise self._unreadable(row, error) from None

    def pixels(self, rows: npt.NDArray[np.int64], size: int) -> Pixels:
        """RGB images of rows, each resized to (size, size): uint8 (len(rows), size, size, 3).

        Raises UserError naming the first image that cannot be read.
        """
        out = np.empty((len(rows), size, size, 3), np.uint8)

        def fill(start: int) -> None:
            for place in range(start, min(start + _ROWS_PER_TASK, len(rows))):
                out[place] = self._square(int(rows[place]), size)

        for _ in in_threads(fill, range(0, len(rows), _ROWS_PER_TASK)):
            pass
        return out

    def _square(self, row: int, size: int) -> Pixels:
        try:
            with self.open(row) as image:
                return square(*_decode(image, size))
        except Exception as error:
            raise self._unreadable(row, error) from None

    def _unreadable(self, row: int, error: Exception) -> UserError:
        # Decoders raise almost anything on damaged data (OSError, SyntaxError, struct.error, ...).
        if isinstance(error, UserError):
            return error
        # Pillow's own text names the file again, or where it lies in memory.
        reason = "its format is not known" if isinstance(error, UnidentifiedImageError) else one_line(error)
        problem = f"cannot read image {self.name(row)} ({reason})"
        ways = "repair or remove it; training leaves such images out with --data.on_bad_image skip"
        return UnreadableImage(f"{problem}: {ways}", problem, reason)


def in_threads(work: Callable[[int], T], numbers: Sequence[int]) -> Iterator[T]:
    """Yields what `work` returns for each of `numbers`, in order; an exception drops what is not yet begun.

    Uses as many threads as torch does: Pillow decodes outside the interpreter lock, and torch's number follows
    OMP_NUM_THREADS (which Ray sets to the worker's CPUs) and is 1 in loader processes.
    """
    import torch

    threads = min(torch.get_num_threads(), len(numbers))
    if threads < 2:
        yield from map(work, numbers)
        return
    # A pool for each call: one that is kept would have no threads in forked loader processes.
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(work, numbers)
    finally:
        pool.shutdown(cancel_futures=True)


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB of 8 bits, the first frame of several.

    - The EXIF (or XMP) orientation turns the image, as Hugging Face's decoding does; a damaged one is passed over.
    - Transparent images stand on white, as a browser would show them.
    - 16-bit greys keep their upper 8 bits, as 16-bit colours do in Pillow; 12-bit TIFF and any PGM likewise by the
      largest value that the file declares. Floats go from 0 (black) to 1 (white), times the scale of a PFM.
    - Images longer than 64 times their width, or wider than 64 times their height, are cut around the centre.

    Args:
        image: Of any of Pillow's modes, loaded or not; it may be changed.
    Raises:
        ValueError: Where the file does not say which value is white (integers of 32 bits, signed ones, floats outside
            0 to 1), and for more than `LARGEST` pixels (a JPEG that is not progressive is decoded at a lower scale).
    """
    return _decode(image, 0)[0]


def square(image: Image.Image, size: int, box: Box | None = None) -> Pixels:
    """An RGB image (or its part inside `box`) resized to (size, size), whatever its shape: uint8 (size, size, 3).

    Pillow's bicubic resize widens its kernel when it shrinks, so it does antialias.
    """
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box))


def _decode(image: Image.Image, size: int) -> tuple[Image.Image, int, Box | None]:
    """The image as `to_rgb` returns it, `size`, and the box in which it lies (None: the whole).

    JPEGs are decoded at a lower scale where that still leaves twice `size` on each side; 0 decodes the whole image.
    """
    box = _draft(image, size)
    _scale_transparency(image)
    image.load()
    levels = _levels(image)  # before copies of it lose the file's tags
    orientation = _turn(image)
    long, short = max(image.size), min(image.size)
    if long > LONGEST * short:
        image, box = _cut(image, LONGEST * short), None
    return _in_strips(image, levels), size, box and _turned_box(box, orientation, image.size)


def _draft(image: Image.Image, size: int) -> Box | None:
    """Prepares the decoding at a lower scale; raises ValueError when the image is too large even so.

    The box ends within the last pixel where the JPEG's size is no multiple of the scale.
    """
    width, height = image.size
    goal = (_DRAFT_GAP * size or width, _DRAFT_GAP * size or height)
    if width * height > LARGEST:
        # A progressive JPEG is held whole while it is decoded, whatever the scale.
        goal = (0, 0) if "progressive" in image.info else (min(goal[0], width // 2), min(goal[1], height // 2))
    drafted = image.draft("RGB", goal) if goal != image.size and any(goal) else None
    if image.width * image.height > LARGEST:
        raise ValueError(f"{width} x {height} pixels are more than the {LARGEST:,} that are read: make it smaller")
    return drafted and drafted[1]


def _scale_transparency(image: Image.Image) -> None:
    """Brings a PNG's transparent colour to 8 bits, as Pillow does with the pixels alone."""
    key, tile = image.info.get("transparency"), getattr(image, "tile", None)
    if image.format != "PNG" or key is None or not tile:
        return
    raw = tile[0].args if isinstance(tile[0].args, str) else tile[0].args[0]
    if raw in ("L;2", "L;4"):
        image.info["transparency"] = key * 255 // (3 if raw == "L;2" else 15)
    elif raw == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _levels(image: Image.Image) -> Levels | None:
    """The conversion of values to grey levels from 0 to 255, for modes of more than 8 bits; None for the others.

    Raises ValueError where the file does not say which value is white.
    """
    tags: Any = getattr(image, "tag_v2", {})  # a TIFF's
    inverted = tags.get(ExifTags.Base.PhotometricInterpretation) == 0  # Pillow sees to it up to 8 bits
    if 2 in tags.get(ExifTags.Base.SampleFormat, ()):
        raise ValueError("its samples are signed integers, which have no agreed white: save it with 8 or 16 bits")
    if image.mode == "F":
        scale = image.info.get("scale", 1.0) if image.format == "PPM" else 1.0
        return lambda values: _upper_bits(_from_floats(values * scale), 16, inverted)
    if image.mode == "I" and image.format == "PPM":  # which Pillow scales to 65535
        return lambda values: _upper_bits(values, 16, inverted)
    if image.mode == "I" or (image.mode.startswith("I;16") and image.format in ("FITS", "MCIDAS")):
        kind = "32-bit integers" if image.mode == "I" else f"{image.format} integers"
        raise ValueError(f"{kind} have no agreed white: save it with 8 or 16 bits, white as the largest value")
    if image.mode.startswith("I;16"):
        bits, key = min(tags.get(ExifTags.Base.BitsPerSample, (16,))), image.info.get("transparency")
        return lambda values: np.where(values == key, np.uint8(255), _upper_bits(values, bits, inverted))
    return None


def _upper_bits(values: npt.NDArray[Any], bits: int, inverted: bool) -> Pixels:
    grey = (values >> (bits - 8)).astype(np.uint8)
    return ~grey if inverted else grey


def _from_floats(values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """16-bit integers for floats from 0 to 1; raises ValueError on others."""
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= 1:  # nor NaN
        raise ValueError(f"its floats go from {low:.4g} to {high:.4g}, not from 0 (black) to 1 (white): scale them")
    return np.rint(values * 65535).astype(np.uint16)


def _turn(image: Image.Image) -> int:
    """Turns the image as its EXIF says; returns the orientation that it had, from 1 (upright) to 8."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        if orientation not in range(2, 9):
            return 1
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # Damaged EXIF raises almost anything; the pixels are intact.
        return 1
    return int(orientation)


def _turned_box(box: Box, orientation: int, size: tuple[int, int]) -> Box:
    """Where a box from (0, 0) lies after the image has been turned to `size`."""
    width, height = box[2:] if orientation < 5 else (box[3], box[2])
    right, down = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    left, top = (size[0] - width if right else 0), (size[1] - height if down else 0)
    return left, top, (size[0] if right else width), (size[1] if down else height)


def _cut(image: Image.Image, length: int) -> Image.Image:
    width, height = min(image.width, length), min(image.height, length)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _in_strips(image: Image.Image, levels: Levels | None) -> Image.Image:
    """RGB of an upright image, converted strip by strip: copies in several modes stay small."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rows = max(1, _STRIP // image.width)
    if image.height <= rows:
        return _convert(image, levels)
    out = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(top + rows, image.height)))
        out.paste(_convert(part, levels), (0, top))
    return out


def _convert(image: Image.Image, levels: Levels | None) -> Image.Image:
    if levels is not None:
        return Image.fromarray(levels(np.asarray(image))).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":  # which Pillow converts to nothing else
        image = image.convert("LA")
    if image.mode == "P" and isinstance(image.info.get("transparency"), tuple):
        image = image.convert("RGB")  # which knows a transparent colour, not only a transparent number
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
