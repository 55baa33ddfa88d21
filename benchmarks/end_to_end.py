"""Aim: the whole training, images in folders included, at 1.5 times the rate of timm's own loop on the same machine.

    python -m benchmarks.end_to_end             # three minutes on two cores

Both train timm's smallest ViT at 64 px, whose step takes so little that loading bounds the rate, as it does next to a
GPU (a step of `--model vit_tiny_patch16_224` takes a CPU twice as long as timm's loader), by AdamW with label smoothing
and 3-Augment (or `--augment deit`), from JPEGs of 500 x 375 px (about 92 kB), with two loader processes and torch's
threads. Sides take turns:

- timm: the loop of its train.py as far as it counts here: `create_loader` with its prefetcher, `create_optimizer_v2`,
  clipping, one step after the other, the loss read at the steps at which ours is
- folders, packed: `tt_ray.train`'s loop in this process, without Ray, with `data.augment_on device` (on a CPU that is
  the training's own thread) and without

The rate is that of the steps after the first ten, in which loaders start.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_loader
from timm.data.dataset import ImageDataset
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2

from benchmarks.loading import make_folders, opened, pack, spare_posterize
from benchmarks.step_cost import RESULTS, Side, compare
from tt_ray.config import Config
from tt_ray.data.prepare import Data
from tt_ray.training.context import LocalContext
from tt_ray.training.run_folder import start_run
from tt_ray.training.trainer import train

AIM = 1.5
_DEIT: dict[str, Any] = {"re_prob": 0.25, "re_mode": "pixel", "auto_augment": "rand-m9-mstd0.5-inc1"}
# Resized and cut at random, as 3-Augment does.
_THREE: dict[str, Any] = {"auto_augment": "3a", "color_jitter": 0.3, "train_crop_mode": "rkrr"}
_THREE |= {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
_STARTING = 10


def configuration(given: argparse.Namespace, folder: Path, name: str) -> Config:
    """The run that both sides train, without text."""
    settings = {
        "model.name": given.model,
        "model.kwargs": {"img_size": given.image_size},
        "text.weight": 0.0,
        "data.image_size": given.image_size,
        "data.augment": given.augment,
        "data.num_loaders": given.loaders,
        "train.batch_size": given.batch_size,
        "train.epochs": given.epochs,
        "optim.label_smoothing": 0.1,
        "train.eval_every": given.epochs,
        "optim.name": "adamw",
        "optim.grad_clip": 1.0,
        "run.log_every": _STARTING,
        "run.checkpoint_every": 10**6,
        "run.storage": str(folder),
        "run.name": name,
    }
    config = Config()
    for path, value in settings.items():
        config = config.override(path, value)
    return config


class Clock:
    """Images per second between the step of the first call and that of the last."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.seen = batch_size, list[tuple[int, float]]()

    def __call__(self, step: int) -> None:
        self.seen.append((step, time.perf_counter()))

    @property
    def rate(self) -> float:
        """Raises ValueError where there are too few steps."""
        (first, began), (last, ended) = self.seen[0], self.seen[-1]
        if last == first:
            raise ValueError(f"there are no steps after the first {_STARTING}: raise --epochs or --images")
        return (last - first) * self.batch_size / (ended - began)


def ours(source: str, root: Path, changes: dict[str, Any], given: argparse.Namespace) -> float:
    """Images per second of the project's loop."""
    split = opened(source, root)
    clock = Clock(given.batch_size)
    with tempfile.TemporaryDirectory(prefix="tt-ray-benchmark-") as name:
        config = configuration(given, Path(name), "run")
        for path, value in changes.items():
            config = config.override(path, value)
        data = Data(split, split.select(torch.arange(4).numpy()), None, ())
        start_run(config)
        train(config, data, LocalContext(0, 1, torch.device("cpu"), lambda standing: clock(standing.step)))
    return clock.rate


def timms(root: Path, given: argparse.Namespace) -> float:
    """Images per second of timm's loop."""
    dataset: Any = ImageDataset(str(root / "train"))
    config = configuration(given, root, "timm")
    loader: Any = create_loader(
        dataset,
        (3, given.image_size, given.image_size),
        given.batch_size,
        is_training=True,
        interpolation="bicubic",
        **(_DEIT if given.augment == "deit" else _THREE),
        mean=config.data.mean,
        std=config.data.std,
        num_workers=given.loaders,
        device=torch.device("cpu"),
        persistent_workers=True,
    )
    spare_posterize(dataset.transform)
    model = timm.create_model(given.model, num_classes=4, img_size=given.image_size)
    optimizer: Any = create_optimizer_v2(model, "adamw", lr=config.optim.lr, weight_decay=config.optim.weight_decay)
    loss_of, clock, step = LabelSmoothingCrossEntropy(0.1), Clock(given.batch_size), 0
    model.train()
    for _ in range(given.epochs):
        for images, labels in loader:
            loss = loss_of(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % _STARTING == 0:
                loss.item()
                clock(step)
    return clock.rate


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="test_vit")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--augment", choices=("three_augment", "deit"), default="three_augment")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--loaders", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="rounds: a run of each side")
    parser.add_argument("--out", type=Path, default=RESULTS / "end_to_end.json")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tt-ray-benchmark-") as name:
        root, shards = Path(name) / "folders", Path(name) / "packed"
        kilobytes = make_folders(root, given)
        packed = pack(opened("imagefolder", root), shards, 256)
        on_device = {"data.augment_on": "device"}
        sides: dict[str, Callable[[], float]] = {
            "timm": partial(timms, root, given),
            "folders": partial(ours, "imagefolder", root, {}, given),
            "folders, device": partial(ours, "imagefolder", root, on_device, given),
            "packed": partial(ours, "webdataset", shards, {}, given),
        }
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(given.repeats):
            for side, run in sides.items():
                rates[side].append(run())
    reference = Side("timm", rates.pop("timm"))
    result = {side: compare(Side(side, values), reference, "images per s") for side, values in rates.items()}
    settings = {key: value for key, value in vars(given).items() if key != "out"}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"aim": {"folders": f">= {AIM}"}, "kilobytes": [kilobytes, packed], "settings": settings}
    given.out.write_text(json.dumps({**about, **result}, indent=2) + "\n")
    print("| | images per s | timm's | ratio (quartiles) | aim |\n| --- | --- | --- | --- | --- |")
    for side, row in result.items():
        low, high = row["ratio"]["quartiles"]
        medians = [row["sides"][name]["median"] for name in (side, "timm")]
        aim = f">= {AIM}" if side == "folders" else ""
        values = f"{medians[0]:.0f} | {medians[1]:.0f} | {row['ratio']['median']:.2f} ({low:.2f} - {high:.2f})"
        print(f"| {side} | {values} | {aim} |")


if __name__ == "__main__":
    main()
