"""Aims: a core prepares twice as many images as before from folders, and 12 times as many packed, with a GPU's help.

    python -m benchmarks.loading      # three minutes on one core

JPEGs of 500 x 375 px that it makes itself, about 92 kB each, are prepared at 224 px with 3-Augment by one thread, from
files in the page cache, in batches of 256, which is what a recipe for ImageNet gives each of 8 GPUs. Sides take turns,
and what counts is the processor time of this process, which hardly follows the load of the machine. Sides:

- before: Pillow decodes, resizes and augments, image by image (`data.decoder pillow`, and its transform as it was)
- timm: the batches of timm's own loader in one process, with its own transform of the same steps, not normalised
- folders, packed: batches as the loaders now make them, from files and from shards of `tt_ray.pack`
- packed, device: the same where the device does all but decoding, resizing and cutting, which is not counted

Shards are packed with quality 90, the default of `tt_ray.pack`, and once with 85.
The rows of deit (RandomResizedCrop, RandAugment) have no aim.
"""

import argparse
import io
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data import create_loader, create_transform
from timm.data.auto_augment import AugmentOp, RandAugment
from timm.data.dataset import ImageDataset
from torchvision import transforms

from benchmarks.step_cost import RESULTS, Side, compare
from tt_ray.config import Config, DataConfig
from tt_ray.data.augment import sample_seeds
from tt_ray.data.augment_draws import deit_transform, seeded
from tt_ray.data.loader import TrainBatches
from tt_ray.data.sampling import Order
from tt_ray.data.shard_writer import ImageOptions, write_shard
from tt_ray.data.sources.base import Source
from tt_ray.data.sources.registry import open_source
from tt_ray.data.sources.shard_files import find_shards
from tt_ray.data.sources.webdataset import make_index

BEFORE = "before"
AIMS = {
    "folders": {BEFORE: 2.0, "timm": 1.5},
    "packed 224": {BEFORE: 6.0},
    "packed 224, device": {BEFORE: 12.0},
}
Prepare = Callable[[int], Any]
"""Prepares the batch of a step."""


def photo(seed: int, width: int, height: int) -> Image.Image:
    """Random clouds with the spectrum of photographs (Field, 1987): amplitudes fall with the 1.2th power of frequency,
    those of the two colour channels faster."""
    generator = np.random.default_rng(seed)
    planes = [(118, 52, 1.2), (128, 14, 1.7), (128, 14, 1.7)]
    channels = [mean + spread * _clouds(generator, height, width, power) for mean, spread, power in planes]
    return Image.merge("YCbCr", [Image.fromarray(each.clip(0, 255).astype(np.uint8)) for each in channels])


def _clouds(generator: np.random.Generator, height: int, width: int, power: float) -> npt.NDArray[np.float64]:
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    phases = generator.normal(size=frequency.shape) + 1j * generator.normal(size=frequency.shape)
    clouds = np.fft.irfft2(phases / frequency**power, (height, width))
    return clouds / clouds.std()


def make_folders(root: Path, given: argparse.Namespace) -> float:
    """Writes the images as `<root>/train/<class>/<number>.jpg`; returns their mean size in kB."""
    sizes = []
    for number in range(given.images):
        file = root / "train" / f"class{number % 4}" / f"{number:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        photo(number, given.width, given.height).convert("RGB").save(buffer, "JPEG", quality=90)
        sizes.append(file.write_bytes(buffer.getvalue()))
    return sum(sizes) / len(sizes) / 1000


def opened(source: str, root: Path) -> Source:
    """The training split."""
    return open_source(DataConfig(source=source, root=str(root)), "train", False)


def pack(source: Source, root: Path, short_side: int, quality: int = 90) -> float:
    """Writes the images as one shard, as `tt_ray.pack` does; returns their mean size in kB."""
    root.mkdir()
    options = ImageOptions(short_side=short_side, quality=quality)
    name = "train-000000.tar"
    rows = write_shard(root / name, name, source, range(len(source)), options)
    config = DataConfig(source="webdataset", root=str(root))
    shards = find_shards(config)
    shards.write_index(make_index(shards, config))
    return sum(row["length"] for row in rows) / len(rows) / 1000


def as_before(source: Source, config: Config) -> Prepare:
    """Batches as they were made image by image, all by Pillow."""
    order, transform = Order(len(source), config.train.batch_size, 1, 0), _as_it_was(config.data)

    def prepare(step: int) -> torch.Tensor:
        epoch, position = divmod(step, order.steps_per_epoch)
        rows, copies = (part[position * order.batch_size :][: order.batch_size] for part in order.epoch_rows(epoch))
        seeds = sample_seeds(rows, copies, epoch, 0)
        samples = zip(rows.tolist(), seeds.tolist(), strict=True)
        return torch.stack([seeded(transform, source.read(row), seed) for row, seed in samples])

    return prepare


def _as_it_was(config: DataConfig) -> Callable[[Image.Image], torch.Tensor]:
    """What was done to one image: 3-Augment by torchvision, which draws for itself, or timm's transform."""
    if config.augment == "deit":
        transform = deit_transform(config)
        spare_posterize(transform)
        return transform
    jitter = config.color_jitter
    return transforms.Compose(
        [
            transforms.Resize(config.image_size, transforms.InterpolationMode.BICUBIC),
            transforms.RandomCrop(config.image_size, padding=4, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.RandomChoice([transforms.Grayscale(3), _solarise, _blur]),
            transforms.ColorJitter(jitter, jitter, jitter),
            transforms.PILToTensor(),
        ]
    )


def _solarise(image: Image.Image) -> Image.Image:
    return ImageOps.solarize(image, 128)


def _blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.2, 2.0)))


def ours(source: Source, config: Config, on_device: bool = False) -> Prepare:
    """Batches as loader processes make them."""
    order = Order(len(source), config.train.batch_size, 1, 0)
    return TrainBatches(source, None, order, config, on_device).__getitem__


def timms(root: Path, config: Config) -> Prepare:
    """Batches of timm's loader: uint8, without the part that it leaves to the GPU."""
    data = config.data
    kwargs: dict[str, Any] = {"auto_augment": "rand-m9-mstd0.5-inc1"}
    if data.augment == "three_augment":
        kept = {"train_crop_mode": "rkrr", "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}  # resize, and crop at random
        kwargs = {"auto_augment": "3a", "color_jitter": data.color_jitter, **kept}
    dataset: Any = ImageDataset(str(root / "train"))
    size = (3, data.image_size, data.image_size)
    loader: Any = create_loader(
        dataset, size, config.train.batch_size, num_workers=0, device=torch.device("cpu"), persistent_workers=False
    )
    dataset.transform = create_transform(size, is_training=True, interpolation="bicubic", use_prefetcher=True, **kwargs)
    spare_posterize(dataset.transform)
    batches = iter(())

    def prepare(step: int) -> Any:
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader.loader)  # what the prefetcher wraps, which moves to the device
            batch = next(batches)
        return batch

    return prepare


def spare_posterize(transform: Any) -> None:
    """Pillow 13 refuses to keep 0 bits, which timm asks of one image in 600: it keeps one here."""
    for step in transform.transforms:
        for operation in step.ops if isinstance(step, RandAugment) else ():
            if isinstance(operation, AugmentOp) and operation.name == "PosterizeIncreasing":
                posterize = operation.aug_fn
                operation.aug_fn = partial(_posterize, posterize)


def _posterize(posterize: Callable[..., Image.Image], image: Image.Image, bits: int, **how: Any) -> Image.Image:
    return posterize(image, max(1, bits), **how)


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All sides by turns; the first round warms up."""
    torch.set_num_threads(1)
    sizes = {"folders": make_folders(folder / "images", given)}
    folders = opened("imagefolder", folder / "images")
    packed = {}
    short, long = given.image_size, given.image_size * 8 // 7
    for name, short_side, quality in (
        (f"packed {short}", short, 90),
        (f"packed {short}, quality 85", short, 85),
        (f"packed {long}", long, 90),
    ):
        sizes[name] = pack(folders, folder / name, short_side, quality)
        packed[name] = opened("webdataset", folder / name)
    results: dict[str, Any] = {"settings": _settings(given), "kB per image": sizes}
    for preset in given.presets:
        data = DataConfig(image_size=given.image_size, augment=preset)
        run = replace(Config(), data=data, train=replace(Config().train, batch_size=given.batch_size))
        sides = {BEFORE: as_before(folders, run), "timm": timms(folder / "images", run), "folders": ours(folders, run)}
        sides["folders, device"] = ours(folders, run, on_device=True)
        for name, source in packed.items():
            sides[name] = ours(source, run)
            sides[f"{name}, device"] = ours(source, run, on_device=True)
        results[preset] = _ratios(_rates(sides, given))
    return results


def _settings(given: argparse.Namespace) -> dict[str, Any]:
    return {key: value for key, value in vars(given).items() if key != "out"}


def _rates(sides: dict[str, Prepare], given: argparse.Namespace) -> dict[str, list[float]]:
    """Images per second of processor time, by side and round."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-1, given.repeats):
        for name, prepare in sides.items():
            began = time.process_time()
            for step in range(given.steps):
                prepare((number + 1) * given.steps + step)
            rate = given.steps * given.batch_size / (time.process_time() - began)
            if number >= 0:
                rates[name].append(rate)
    return rates


def _ratios(rates: dict[str, list[float]]) -> dict[str, Any]:
    references = [Side(name, rates[name]) for name in (BEFORE, "timm")]
    unit = "images/s per core"
    return {
        name: {f"over {side.name}": compare(Side(name, values), side, unit) for side in references}
        for name, values in rates.items()
    }


def show(results: dict[str, Any], presets: Sequence[str]) -> None:
    """Prints one table for each preset."""
    print(f"kB per image: { {name: round(size) for name, size in results['kB per image'].items()} }")
    for preset in presets:
        print(f"\n| {preset} | images/s per core (quartiles) | over before (aim) | over timm (aim) |")
        print("| --- | --- | --- | --- |")
        for name, row in results[preset].items():
            side, cells = row[f"over {BEFORE}"]["sides"][name], list[str]()
            low, high = side["quartiles"]
            for reference in (BEFORE, "timm"):
                aim = AIMS.get(name, {}).get(reference) if preset == "three_augment" else None
                aimed = "" if aim is None else f" ({aim:g})"
                cells.append(f"{row[f'over {reference}']['ratio']['median']:.2f}{aimed}")
            print(f"| {name} | {side['median']:.0f} ({low:.0f} - {high:.0f}) | {' | '.join(cells)} |")


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="JPEGs to make")
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1, help="batches of a side in a round")
    parser.add_argument("--repeats", type=int, default=9, help="rounds")
    parser.add_argument("--presets", nargs="+", default=["three_augment", "deit"])
    parser.add_argument("--out", type=Path, default=RESULTS / "loading.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = read_arguments(arguments)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(given, Path(folder))
    show(results, given.presets)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"aims": AIMS, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
