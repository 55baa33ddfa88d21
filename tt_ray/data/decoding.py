"""From encoded images to RGB: one place for transparency, resizing, damaged files and threads."""

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from PIL import Image

from tt_ray.data.source import Pixels
from tt_ray.errors import UserError

_ROWS_PER_TASK = 32
_DRAFT_GAP = 2
"""JPEGs are decoded at no less than this many times the wanted size: Pillow's own choice in `Image.thumbnail`, where
the result is hard to tell from a full decode."""


class ImageReader(ABC):
    """Reads one split's images; its `read` and `pixels` are those of `Source`. Objects can be pickled."""

    @abstractmethod
    def open(self, row: int) -> Image.Image:
        """Opens the image of a row, if possible without decoding it; may raise anything."""

    @abstractmethod
    def name(self, row: int) -> str:
        """What errors call the image of a row: its file, or its place in a table."""

    def read(self, row: int) -> Image.Image:
        """The whole RGB image of a row; raises UserError naming it when it cannot be read."""
        try:
            with self.open(row) as image:
                return to_rgb(image)
        except Exception as error:
            raise self._unreadable(row, error) from None

    def pixels(self, rows: npt.NDArray[np.int64], size: int) -> Pixels:
        """RGB images of rows, each resized to (size, size): uint8 (len(rows), size, size, 3).

        Uses as many threads as torch does: Pillow decodes outside the interpreter lock, and torch's number follows
        OMP_NUM_THREADS (which Ray sets to the worker's CPUs) and is 1 in loader processes.
        Raises UserError naming the first image that cannot be read.
        """
        import torch

        out = np.empty((len(rows), size, size, 3), np.uint8)

        def fill(start: int) -> None:
            for place in range(start, min(start + _ROWS_PER_TASK, len(rows))):
                out[place] = self._square(int(rows[place]), size)

        starts = range(0, len(rows), _ROWS_PER_TASK)
        threads = min(torch.get_num_threads(), len(starts))
        if threads < 2:
            for start in starts:
                fill(start)
            return out
        # A pool for each call: one that is kept would have no threads in forked loader processes.
        pool = ThreadPoolExecutor(threads)
        try:
            for _ in pool.map(fill, starts):
                pass
        finally:
            pool.shutdown(cancel_futures=True)
        return out

    def _square(self, row: int, size: int) -> Pixels:
        try:
            with self.open(row) as image:
                draft = image.draft("RGB", (_DRAFT_GAP * size, _DRAFT_GAP * size))
                # The box ends within the last pixel where the JPEG's size is no multiple of the draft's scale.
                return square(to_rgb(image), size, draft and draft[1])
        except Exception as error:
            raise self._unreadable(row, error) from None

    def _unreadable(self, row: int, error: Exception) -> UserError:
        # Decoders raise almost anything on damaged data (OSError, SyntaxError, struct.error, ...).
        if isinstance(error, UserError):
            return error
        reason = " ".join(str(error).split()) or type(error).__name__
        return UserError(
            f"cannot read image {self.name(row)} ({reason}): mend or remove it; training leaves such images out "
            "with --data.on_bad_image skip"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """Decodes to mode RGB. Transparent images stand on white, as a browser would show them."""
    image.load()
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit greys to 255: all white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def square(image: Image.Image, size: int, box: tuple[float, float, float, float] | None = None) -> Pixels:
    """An RGB image (or its part inside `box`) resized to (size, size), whatever its shape: uint8 (size, size, 3).

    Pillow's bicubic resize widens its kernel when it shrinks, so it does antialias.
    """
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box))
