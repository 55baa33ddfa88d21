"""The main command: `python -m tt_ray.train [RECIPE | config.yaml] [--dotted.path value ...]`."""

import os
import shlex
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from tt_ray.cli import read_config
from tt_ray.cluster.messages import Messages, ProgressThread
from tt_ray.config import Config
from tt_ray.io.storage import Storage, is_uri
from tt_ray.terminal.command import in_background, run_command
from tt_ray.terminal.errors import Interrupted, UserError
from tt_ray.terminal.progress import Display
from tt_ray.terminal.signals import stop_on_signals, stopped
from tt_ray.training.run_folder import (
    check_run,
    discard_run,
    disk_problems,
    has_checkpoint,
    sole_writer,
    start_run,
    starts_over,
)
from tt_ray.training.same_data import check_data, keep_data, record_data
from tt_ray.training.weight_average import average_note


def main(arguments: list[str]) -> None:
    """Prepares the data, trains under Ray Train (or as a torchrun process), and sums up."""
    started = time.time()
    config = read_config(arguments, "python -m tt_ray.train")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        train_under_torchrun(config, started)
        return
    with Display() as display, sole_writer(config, display.say):
        resumes = check_run(config)
        from tt_ray.cluster.connect import cluster_address
        from tt_ray.cluster.launch import start_ray, train_on_ray

        display.show("starting Ray", 0, 1)
        prepared = in_background(prepare, config, display)  # Ray's start is mostly waiting
        joined = start_ray(config, display.say)
        data = prepared.result()
        if joined or config.run.overwrite:
            # Workers of a machine's own Ray come at once and try the model as well: there it need not be done twice.
            _try_model(config, data.classes)
        where = f" on the Ray cluster at {cluster_address()}" if joined else ""
        notes = data.check(config, resumes)  # before start_run, which writes
        display.notes([*data.notes, *notes])
        display.say(_opening(config, resumes, where))
        start_run(config)
        data.keep(config, notes)
        messages = Messages()
        ask = partial(messages.send, "request", "stop")
        with ProgressThread(messages, display), stop_on_signals(ask, signal.SIGTERM, signal.SIGINT) as signals:
            display.show("starting workers", 0, 1)
            try:
                result = train_on_ray(config, data.store, messages, notes=notes)
            except UserError:
                if not resumes:
                    discard_run(config)
                raise
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


@dataclass(frozen=True)
class Prepared:
    """What the driver knows of a run's data before workers start."""

    classes: int
    store: Path | None
    record: pa.Table
    """What the run trains on, as `record_data` returns it."""
    notes: list[str]
    """Said at the start, once nothing more can be refused: what of the data is not used, a too slow average."""

    def check(self, config: Config, resumes: bool) -> list[str]:
        """Notes for the summary; raises UserError where a run would resume on other data than it was begun on."""
        # Without a checkpoint nothing has been learned from the data of before.
        if not (resumes and has_checkpoint(config)):
            return []
        return check_data(config.run_dir, self.record, config.run.accept_changed_data)

    def keep(self, config: Config, notes: list[str]) -> None:
        """Writes the record into the run folder."""
        keep_data(config.run_dir, self.record, notes, Storage.open(config.run.storage))


def prepare(config: Config, display: Display | None = None) -> Prepared:
    """Checks what can be checked of the data before workers start, and makes the embedding store where it is missing.

    Imports no torch unless captions are to be embedded.
    """
    from tt_ray.data.prepare import check_images, find_store, join, left_out, open_images
    from tt_ray.data.sampling import train_order
    from tt_ray.embeddings.store import open_store

    show = None if display is None else display.show
    train, val, notes = open_images(config, show)
    train_order(config, len(train), 0, config.workers[1])
    check_images(config, train, val, show)
    try_model = partial(_try_model, config, len(train.classes))
    store = find_store(config, train, show, try_model, None if display is None else display.say)
    data = join(config, train, val, None if store is None else open_store(store), notes)
    order = train_order(config, len(data.train), 0, config.workers[1])
    said = left_out(config, train, val)
    if average := average_note(config.train.ema, config.train.epochs * order.steps_per_epoch):
        said.append(average)
    return Prepared(len(train.classes), store, record_data(config, data), said)


def _try_model(config: Config, classes: int) -> None:
    from tt_ray.models.classifier import check_model  # takes seconds to import

    check_model(config, classes)


def train_under_torchrun(config: Config, started: float) -> None:
    """The same loop in processes that torchrun started; worker 0 prepares, the others wait."""
    import torch.distributed as dist

    from tt_ray.data.prepare import find_store, open_data, open_images
    from tt_ray.training.context import LocalContext
    from tt_ray.training.trainer import train

    with Display() as display, ExitStack() as alone:
        context = LocalContext.start(config.run.use_gpu, display.training)
        changes = list[str]()
        if context.rank == 0:
            alone.enter_context(sole_writer(config, display.say))
            resumes = check_run(config)
            prepared = prepare(config, display)
            _try_model(config, prepared.classes)
            changes = prepared.check(config, resumes)
            display.notes([*prepared.notes, *changes])
            display.say(_opening(config, resumes))
            start_run(config)
            prepared.keep(config, changes)
        if context.world > 1:
            dist.barrier()
        store = find_store(config, open_images(config)[0])
        ask = partial(setattr, context, "request", "stop")
        try:
            with disk_problems(config.run_dir), stop_on_signals(ask, signal.SIGTERM):
                data = open_data(config, store)
                result = train(config, replace(data, notes=(*data.notes, *changes)), context)
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
    export, board, typed = f"local-dir:{run}/export", shlex.quote(f"{run}/tensorboard"), shlex.quote(run)
    epochs = f"{result['epochs']} epoch{'' if result['epochs'] == 1 else 's'}"
    lines = [
        f"top-1 {result['top1']:.2f} % on {result['val_images']} validation images after {epochs}",
        f"{time.time() - started:.0f} s in all, {result['train_seconds']:.0f} s of them training",
        *(f"note: {note}" for note in result["notes"]),
        f"deployed model   {run}/export   timm.create_model({export!r}, pretrained=True)",
        f"metrics          {run}/metrics.jsonl   tensorboard --logdir {board}",
        f"checkpoints      {run}/checkpoints   python -m tt_ray.export {typed} --out DIR",
    ]
    if config.run.name == "shapes_textteacher":
        lines.append("next: the same without the language teacher: python -m tt_ray.train shapes_baseline")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
