"""Claim: a checkpoint of 1.4 GB delays training by less than half a step.

    python -m benchmarks.checkpoint_cost

A ViT-B/16 with AdamW and an average of its weights takes steps on one thread; every few steps a checkpoint is written
next to the training, as the loop does it. The clock runs from the end of one step to the end of the next. Then the
parts of a checkpoint one by one: what training waits for, and what the thread that writes does next to it.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.step_cost import RESULTS, Side, compare, random_data, report, synchronize
from tt_ray.config import Config
from tt_ray.data.loader import Batch, TrainBatches
from tt_ray.training.checkpoint import Position, save_checkpoint
from tt_ray.training.context import LocalContext
from tt_ray.training.metrics_log import MetricsLog
from tt_ray.training.run_folder import start_run
from tt_ray.training.snapshot import Snapshot, snapshot
from tt_ray.training.trainer import Trainer


def configure(given: argparse.Namespace, folder: Path) -> Config:
    """Small images, without an end."""
    settings = {
        "data.image_size": given.image_size,
        "data.augment": "none",
        "model.name": given.model,
        "model.kwargs": {"img_size": given.image_size},
        "text.weight": 0.0,
        "train.batch_size": given.batch_size,
        "train.ema": 0.9998,
        "train.epochs": 1_000_000,
        "run.keep_checkpoints": 1,
        "run.storage": str(folder),
        "run.name": "run",
    }
    return Config().override(settings)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the step after each checkpoint, the median of those between, and the parts."""
    torch.set_num_threads(1)
    device = torch.device("cuda", 0) if given.gpu else torch.device("cpu")
    after: list[float] = []
    between: list[float] = []
    with tempfile.TemporaryDirectory(prefix="tt-ray-benchmark-") as name:
        config = configure(given, Path(name))
        start_run(config)
        data = random_data(given.batch_size, given.image_size, 1000, 0)
        trainer = Trainer(config, data, LocalContext(0, 1, device))
        batch = TrainBatches(data.train, data.targets, trainer.order, config)[0]
        with MetricsLog(config.run_dir, 0) as log:
            trainer.step(batch, 0)
            # The first checkpoint, which is not counted, pins the memory that the others use again.
            for number in range(-1, given.repeats):
                seconds = []
                for step in range(given.steps):
                    began = time.perf_counter()
                    if step == 0:
                        trainer._checkpoint(number + 2, log)
                    trainer.step(batch, 0)
                    synchronize(device)
                    seconds.append(time.perf_counter() - began)
                if number >= 0:
                    after.append(seconds[0])
                    between.append(median(seconds[1:]))
                trainer.checkpoints.kept()
        found = parts(trainer, batch, Path(name), given.repeats)
    result = compare(Side("after a checkpoint", after), Side("between", between), "s per step")
    return {**result, **found, "settings": {key: value for key, value in vars(given).items() if key != "out"}}


def parts(trainer: Trainer, batch: Batch, folder: Path, repeats: int) -> dict[str, Any]:
    """Medians of each part's seconds by the clock and of the thread's processor, and the size of the state.

    The processor's are those that a busy machine does not lengthen; a GPU's work and the disk's are not in them.
    """

    def copied() -> Snapshot:
        return snapshot(trainer.model, trainer.optimizer, trainer.ema and trainer.ema.module, trainer.memory)

    def timed(function: Callable[[], Any]) -> dict[str, float]:
        clock, processor = list[float](), list[float]()
        for _ in range(repeats):
            synchronize(trainer.context.device)
            began, worked = time.perf_counter(), time.thread_time()
            function()
            clock.append(time.perf_counter() - began)
            processor.append(time.thread_time() - worked)
        return {"clock": median(clock), "processor": median(processor)}

    state = copied()
    state.wait()
    sizes = [tensor.numel() * tensor.element_size() for file in state.tensors.values() for tensor in file.values()]
    position = Position(1, 0, 0)
    found = {
        "a step": timed(lambda: trainer.step(batch, 0)),
        "training waits: asking for the copy": timed(copied),
        "the copy": timed(lambda: copied().wait()),
        "next to training: looking for weights that are not finite": timed(state.not_finite),
        "next to training: that, checksums and writing": timed(
            lambda: save_checkpoint(folder / "part", position, state, {}, "")
        ),
    }
    return {"state_gb": sum(sizes) / 1e9, "parts": found}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--steps", type=int, default=4, help="steps from one checkpoint to the next")
    parser.add_argument("--repeats", type=int, default=5, help="checkpoints")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "checkpoint_cost.json")
    given = parser.parse_args(arguments)
    result = measure(given)
    report(result, "<= 1.5", given.out)
    print(f"\n| part of a checkpoint of {result['state_gb']:.2f} GB | s by the clock | s of a processor |")
    print("| --- | --- | --- |")
    for name, seconds in result["parts"].items():
        print(f"| {name} | {seconds['clock']:.3f} | {seconds['processor']:.3f} |")


if __name__ == "__main__":
    main()
