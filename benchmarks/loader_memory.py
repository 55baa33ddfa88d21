"""What sixteen loader processes hold in memory, at ImageNet's 1,281,167 images and at a hundredth of them.

    python -m benchmarks.loader_memory          # two minutes on two cores, 0.4 GB of disk

Aim: a loader's own memory grows by no more than the order of an epoch, 8 bytes an image (16 while it is drawn); ids,
labels and places in shards, some 100 bytes an image, are in memory once. Images are not read.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks.shard_index import make_shards
from tt_ray.config import Config, DataConfig
from tt_ray.data.finish import Rest
from tt_ray.data.loader import TrainBatches
from tt_ray.data.loader_processes import prepared
from tt_ray.data.sampling import Order, Rows
from tt_ray.data.sources.registry import open_source

_BATCH, _EACH = 64, 4
AIM_BYTES = 16


class OwnMemory(TrainBatches):
    """Training batches whose images are not read: this process's memory in place of the first pixels."""

    def _images(self, rows: Rows, copies: Rows, epoch: int) -> tuple[torch.Tensor, Rest]:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        own = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
        return torch.tensor([own, kilobytes["Pss"]]) * 1024, Rest()


def measure(images: int, loaders: int) -> dict[str, float]:
    """Bytes of a loader's own memory (median), and of all loaders together, what they share counted once."""
    config = Config().override("data.augment", "three_augment").override("data.cache_gb", 0.0)
    with tempfile.TemporaryDirectory() as folder:
        make_shards(Path(folder), images, 1000)
        source = open_source(DataConfig(source="webdataset", root=folder), "train", False)
    batches = OwnMemory(source, None, Order(images, _BATCH, 1, 0), config)
    # The last batch of each: by then every loader has drawn the order.
    found = [batch.images.tolist() for batch in prepared(batches, range(_EACH * loaders), loaders, pin=False)]
    own, shares = zip(*found[-loaders:], strict=True)
    return {"images": images, "own": median(own), "all": sum(shares)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--loaders", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "loader_memory.json")
    given = parser.parse_args(arguments)
    few, many = (measure(images, given.loaders) for images in (given.images // 100, given.images))
    per_image = (many["own"] - few["own"]) / (many["images"] - few["images"])
    result = {"aim": {"bytes per image": AIM_BYTES}, "loaders": given.loaders, "bytes per image": per_image}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({**result, "sizes": [few, many]}, indent=2) + "\n")
    print(f"| images | own memory of a loader | all {given.loaders} together |\n| --- | --- | --- |")
    for row in (few, many):
        print(f"| {row['images']:,.0f} | {row['own'] / 1e6:.0f} MB | {row['all'] / 1e9:.2f} GB |")
    print(f"\na loader's own memory grows by {per_image:.1f} bytes an image (aim: at most {AIM_BYTES})")


if __name__ == "__main__":
    main()
