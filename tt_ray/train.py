"""The main command: `python -m tt_ray.train [RECIPE | config.yaml] [--dotted.path value ...]`."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tt_ray.cli import read_config, run_command
from tt_ray.config import Config
from tt_ray.progress import Display, ProgressFile, Watcher
from tt_ray.run_folder import check_run, disk_problems, start_run


def main(arguments: list[str]) -> None:
    """Prepares the data, trains under Ray Train (or as a torchrun process), and sums up."""
    started = time.time()
    config = read_config(arguments, "python -m tt_ray.train")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        train_under_torchrun(config, started)
        return
    with Display() as display:
        resumes = check_run(config)
        from tt_ray.ray_train import start_ray, train_on_ray

        display.show("starting Ray", 0, 1)
        with ThreadPoolExecutor(1) as pool:
            # Ray's start is mostly waiting, and what is checked first of all needs seconds of imports.
            prepared = pool.submit(prepare, config, display)
            start_ray(config)
            store = prepared.result()
        display.say(f"{'going on with' if resumes else 'starting'} run {config.run_dir}")
        start_run(config)
        with Watcher(ProgressFile(config.run_dir), display):
            display.show("starting workers", 0, 1)
            result = train_on_ray(config, store)
    print(summary(config, result, started))


def prepare(config: Config, display: Display | None = None) -> Path | None:
    """Checks everything that can be checked before workers start, and makes the embedding store where it is missing."""
    from tt_ray.data.order import train_order
    from tt_ray.embeddings import open_store
    from tt_ray.prepare import check_images, find_store, join, open_images

    show = None if display is None else display.show
    train, val, notes = open_images(config, show)
    train_order(config, len(train), 0, config.run.num_workers)
    check_images(config, train, val, show)
    store = find_store(config, train, show)
    data = join(config, train, val, None if store is None else open_store(store), notes)
    train_order(config, len(data.train), 0, config.run.num_workers)
    return store


def train_under_torchrun(config: Config, started: float) -> None:
    """The same loop in processes that torchrun started; worker 0 prepares, the others wait."""
    import torch.distributed as dist

    from tt_ray.context import LocalContext
    from tt_ray.loop import train
    from tt_ray.prepare import find_store, open_data, open_images

    with Display() as display:
        context = LocalContext.start(config.run.use_gpu, display.training)
        if context.rank == 0:
            resumes = check_run(config)
            prepare(config, display)
            display.say(f"{'going on with' if resumes else 'starting'} run {config.run_dir}")
            start_run(config)
        if context.world > 1:
            dist.barrier()
        store = find_store(config, open_images(config)[0])
        with disk_problems(config.run_dir):
            result = train(config, open_data(config, store), context)
    if context.rank == 0:
        print(summary(config, result, started))
    if context.world > 1:
        dist.destroy_process_group()


def summary(config: Config, result: dict[str, Any], started: float) -> str:
    """What a user wants to know at the end: accuracy, time, where things are, what to run next."""
    run = os.path.relpath(config.run_dir)
    run = str(config.run_dir) if run.startswith("..") else run
    lines = [
        f"top-1 {result['top1']:.2f} % on {result['val_images']} validation images after {result['epochs']} epochs",
        f"{time.time() - started:.0f} s in all, {result['train_seconds']:.0f} s of them training",
        *(f"note: {note}" for note in result["notes"]),
        f"deployed model   {run}/export   timm.create_model('local-dir:{run}/export', pretrained=True)",
        f"metrics          {run}/metrics.jsonl   tensorboard --logdir {run}/tensorboard",
        f"checkpoints      {run}/checkpoints   python -m tt_ray.export {run} --out DIR",
    ]
    if config.run.name == "shapes_textteacher":
        lines.append("next: the same without the language teacher: python -m tt_ray.train shapes_baseline")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
