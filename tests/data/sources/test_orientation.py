"""The orientation that an image's EXIF asks for, in every format, mode and size."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.data.sources.encoded import MODES, Encoded, encode, exif, opened, picture, row_of
from tt_ray.data.sources.decoding import square, to_rgb

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
