"""Claim: the step after a checkpoint takes at most 1.5 times the median step, copying the state included.

    python -m benchmarks.checkpoint_cost

A ViT-S/16 (the whole state is 260 MB) takes steps on one thread; after every few a checkpoint is written beside the
training, as the loop does it. The clock runs from the end of one step to the end of the next.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.step_cost import RESULTS, Side, compare, random_data, report
from tt_ray.config import Config
from tt_ray.data.loader import TrainBatches
from tt_ray.training.context import LocalContext
from tt_ray.training.metrics_log import MetricsLog
from tt_ray.training.run_folder import start_run
from tt_ray.training.trainer import Trainer


def configure(given: argparse.Namespace, folder: Path) -> Config:
    """ViT-S/16 on small images, without an end."""
    settings = {
        "data.image_size": given.image_size,
        "data.augment": "none",
        "model.name": "vit_small_patch16_224",
        "model.kwargs": {"img_size": given.image_size},
        "text.weight": 0.0,
        "train.batch_size": given.batch_size,
        "train.epochs": 1_000_000,
        "run.storage": str(folder),
        "run.name": "run",
    }
    config = Config()
    for path, value in settings.items():
        config = config.override(path, value)
    return config


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the step after each checkpoint, and the median of those between."""
    torch.set_num_threads(1)
    after: list[float] = []
    between: list[float] = []
    with tempfile.TemporaryDirectory(prefix="tt-ray-benchmark-") as name:
        config = configure(given, Path(name))
        start_run(config)
        data = random_data(given.batch_size, given.image_size, 1000, 0)
        trainer = Trainer(config, data, LocalContext(0, 1, torch.device("cpu")))
        batch = TrainBatches(data.train, data.targets, trainer.order, config)[0]
        with MetricsLog(config.run_dir, 0) as book:
            trainer.step(batch, 0)
            for number in range(given.repeats):
                seconds = []
                for step in range(given.steps):
                    began = time.perf_counter()
                    if step == 0:
                        trainer._checkpoint(number + 1, book)
                    trainer.step(batch, 0)
                    seconds.append(time.perf_counter() - began)
                after.append(seconds[0])
                between.append(median(seconds[1:]))
                trainer.checkpoints.wait()
        assert not trainer.checkpoints.problem(), trainer.checkpoints.problem()
    result = compare(Side("after a checkpoint", after), Side("between", between), "s per step")
    return {**result, "settings": {key: value for key, value in vars(given).items() if key != "out"}}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--steps", type=int, default=6, help="steps from one checkpoint to the next")
    parser.add_argument("--repeats", type=int, default=10, help="checkpoints")
    parser.add_argument("--out", type=Path, default=RESULTS / "checkpoint_cost.json")
    given = parser.parse_args(arguments)
    report(measure(given), "<= 1.5", given.out)


if __name__ == "__main__":
    main()
