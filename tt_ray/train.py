"""The main command: `python -m tt_ray.train [RECIPE | config.yaml] [--dotted.path value ...]`."""

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tt_ray.background import in_background
from tt_ray.cli import read_config, run_command
from tt_ray.config import Config
from tt_ray.errors import Interrupted, Stopped, UserError
from tt_ray.mailbox import Mailbox
from tt_ray.progress import Display, Watcher
from tt_ray.run_folder import check_run, discard_run, disk_problems, start_run, starts_over
from tt_ray.storage import is_uri

_SAME_SIGNAL_S = 1.0


def main(arguments: list[str]) -> None:
    """Prepares the data, trains under Ray Train (or as a torchrun process), and sums up."""
    started = time.time()
    config = read_config(arguments, "python -m tt_ray.train")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        train_under_torchrun(config, started)
        return
    with Display() as display:
        resumes = check_run(config)
        from tt_ray.ray_train import cluster_address, start_ray, train_on_ray

        display.show("starting Ray", 0, 1)
        prepared = in_background(prepare, config, display)  # Ray's start is mostly waiting
        joined = start_ray(config, display.say)
        classes, store = prepared.result()
        if joined or config.run.overwrite:
            # Workers of a machine's own Ray come at once and try the model as well: there it need not be done twice.
            _try_model(config, classes)
        where = f" on the Ray cluster at {cluster_address()}" if joined else ""
        display.say(_opening(config, resumes, where))
        start_run(config)
        mailbox = Mailbox(uuid.uuid4().hex)
        ask = partial(mailbox.put, "request", "stop")
        with Watcher(mailbox.get, display), stop_on_signals(ask, signal.SIGTERM, signal.SIGINT) as signals:
            display.show("starting workers", 0, 1)
            try:
                result = train_on_ray(config, store, mailbox)
            except UserError:
                if not resumes:
                    discard_run(config)
                raise
        mailbox.clear()
    if "stopped" in result:
        raise stopped(result["stopped"], signals[0])
    print(summary(config, result, started))


def _opening(config: Config, resumes: bool, where: str = "") -> str:
    """What is about to happen; labels that are made wrong are not left for the summary to tell."""
    noise = f"; {config.data.label_noise:.4g} of its training labels are made wrong (data.label_noise)"
    run = f"{'going on with' if resumes else 'starting'} run {config.run_place}{where}"
    if not resumes and not config.run.overwrite and starts_over(config):
        run += " again: with other settings it came to no checkpoint"
    return run + noise * bool(config.data.label_noise)


@contextmanager
def stop_on_signals(ask: Callable[[], None], *numbers: signal.Signals) -> Iterator[list[int]]:
    """The first signal asks for a checkpoint and the end, a second one ends the command at once; gives what came.

    Within a second it is still the first: `timeout` signals its child, and then the group that the child is in.
    """
    came: list[int] = []
    first = 0.0

    def handle(number: int, frame: object) -> None:
        nonlocal first
        came.append(number)
        if len(came) == 1:
            first = time.monotonic()
            ask()
        elif time.monotonic() > first + _SAME_SIGNAL_S:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped(step: int, number: int) -> Stopped:
    """What a command ends with that a signal has ended."""
    return Stopped(f"stopped after step {step}, with a checkpoint; the same command goes on", 128 + number)


def prepare(config: Config, display: Display | None = None) -> tuple[int, Path | None]:
    """Checks what can be checked of the data before workers start, and makes the embedding store where it is missing.

    Returns the number of classes and the store. Imports no torch unless captions are to be embedded.
    """
    from tt_ray.data.order import train_order
    from tt_ray.embeddings import open_store
    from tt_ray.prepare import check_images, find_store, join, open_images

    show = None if display is None else display.show
    train, val, notes = open_images(config, show)
    train_order(config, len(train), 0, config.workers[1])
    check_images(config, train, val, show)
    try_model = partial(_try_model, config, len(train.classes))
    store = find_store(config, train, show, try_model, None if display is None else display.say)
    data = join(config, train, val, None if store is None else open_store(store), notes)
    train_order(config, len(data.train), 0, config.workers[1])
    return len(train.classes), store


def _try_model(config: Config, classes: int) -> None:
    from tt_ray.model import check_model  # takes seconds to import

    check_model(config, classes)


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
            classes, _ = prepare(config, display)
            _try_model(config, classes)
            display.say(_opening(config, resumes))
            start_run(config)
        if context.world > 1:
            dist.barrier()
        store = find_store(config, open_images(config)[0])
        ask = partial(setattr, context, "request", "stop")
        try:
            with disk_problems(config.run_dir), stop_on_signals(ask, signal.SIGTERM):
                result = train(config, open_data(config, store), context)
        except Interrupted as stop:
            raise stopped(stop.step, signal.SIGTERM) from None
    if context.rank == 0:
        print(summary(config, result, started))
    if context.world > 1:
        dist.destroy_process_group()


def summary(config: Config, result: dict[str, Any], started: float) -> str:
    """What a user wants to know at the end: accuracy, time, where things are, what to run next."""
    run = config.run_place if is_uri(config.run.storage) else os.path.relpath(config.run_dir)
    run = str(config.run_dir) if run.startswith("..") else run
    epochs = f"{result['epochs']} epoch{'' if result['epochs'] == 1 else 's'}"
    lines = [
        f"top-1 {result['top1']:.2f} % on {result['val_images']} validation images after {epochs}",
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
