"""What packing and indexing cost on one core, on JPEGs of ImageNet's size: 500 x 375, some 110 kB each.

    python -m benchmarks.packing

The images are noise with the spectrum of photographs, by which JPEGs of this size, this quality and these bytes result.
Rates are per second of one CPU: `tt_ray.pack` uses all of a cluster. Reading a shard for its index decodes each image,
as a header does not show that the rest is cut off.
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tt_ray.config import DataConfig
from tt_ray.data.shard_writer import ImageOptions, write_shard
from tt_ray.data.sources.base import Source
from tt_ray.data.sources.registry import open_source
from tt_ray.data.sources.tar_scan import scan
from tt_ray.io.files import sha256

WIDTH, HEIGHT, QUALITY = 500, 375, 92
WAYS = {
    "short side 256, quality 90": ImageOptions(),
    "short side 224, quality 90": ImageOptions(short_side=224),
    "kept": ImageOptions(keep=True),
}


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG of noise whose amplitudes fall with the frequency, its colours mostly of one kind."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.fftfreq(WIDTH)[None])
    frequency[0, 0] = 1
    layers = [np.fft.ifft2(np.fft.fft2(rng.standard_normal((HEIGHT, WIDTH))) / frequency**1.15).real for _ in range(4)]
    pixels = np.stack([layers[0] + 0.2 * layer for layer in layers[1:]], -1)
    pixels = (pixels - pixels.mean()) / pixels.std() * 55 + 120
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def make_images(root: Path, count: int) -> Source:
    """A folder of such images."""
    (root / "train" / "one").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        (root / "train" / "one" / f"{number}.jpg").write_bytes(photograph(rng))
    return open_source(DataConfig(source="imagefolder", root=str(root)), "train", False)


def rate(work: Callable[[], Any], count: int) -> float:
    """Images per second of CPU, the best of three rounds."""
    seconds = []
    for _ in range(3):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return count / min(seconds)


def measure(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Rates and sizes of each way to pack, and rates of reading the shard for its index."""
    source, found = make_images(folder / "images", count), dict[str, dict[str, float]]()
    shard = folder / "train.tar"
    for way, options in WAYS.items():

        def pack(options: ImageOptions = options) -> None:
            write_shard(shard, shard.name, source, range(count), options)

        def read() -> None:
            with shard.open("rb") as stream:
                scan(stream, str(shard), shard.name, "label", "caption")

        packed = rate(pack, count)
        size = shard.stat().st_size
        row = {"packed/s": packed, "indexed/s": rate(read, count), "kB": size / count / 1000}
        found[way] = row | {"checksum MB/s": rate(lambda: sha256(shard), size) / 1e6}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "packing.json")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), given.images)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=2) + "\n")
    print("| images | packed/s | kB of tar each | read for the index/s |\n| --- | --- | --- | --- |")
    for way, row in found.items():
        print(f"| {way} | {row['packed/s']:.0f} | {row['kB']:.0f} | {row['indexed/s']:.0f} |")


if __name__ == "__main__":
    main()
