"""The main command: `python -m tt_ray.train [RECIPE | config.yaml] [--dotted.path value ...]`."""

import os
import shlex
import time
from typing import Any

from tt_ray import library
from tt_ray.cli import read_config
from tt_ray.config import Config
from tt_ray.io.storage import is_uri
from tt_ray.terminal.command import program, run_command


def main(arguments: list[str]) -> None:
    """Prepares the data, trains under Ray Train (or as a torchrun process), and sums up."""
    started = time.time()
    run = library.run_training(read_config(arguments, program("tt_ray.train")))
    if run.result:
        print(summary(run.config, run.result, started))


def summary(config: Config, result: dict[str, Any], started: float) -> str:
    """The end of the output: accuracy, time, where things are, what to run next."""
    epochs = f"{result['epochs']} epoch{'' if result['epochs'] == 1 else 's'}"
    lines = [
        f"top-1 {result['top1']:.2f} % on {result['val_images']} validation images after {epochs}",
        f"{time.time() - started:.0f} s in all, {result['train_seconds']:.0f} s of them training",
        *(f"note: {note}" for note in result["notes"]),
        *_places(config),
    ]
    if config.run.name == "shapes_textteacher":
        lines.append(f"next: the same without the language teacher: {program('tt_ray.train')} shapes_baseline")
    return "\n".join(lines)


def _places(config: Config) -> list[str]:
    """Where the run's parts are, each with the command that opens it."""
    export = program("tt_ray.export")
    if is_uri(config.run.storage):
        run = config.run_place.partition("?")[0]
        return [
            f"deployed model   {run}/export   {export} {shlex.quote(config.run_place)} --out DIR",
            f"metrics          {run}/metrics.jsonl",
            f"checkpoints      {run}/checkpoints",
        ]
    run = os.path.relpath(config.run_dir)
    run = str(config.run_dir) if run.startswith("..") else run
    model, board = f"local-dir:{run}/export", shlex.quote(f"{run}/tensorboard")
    return [
        f"deployed model   {run}/export   timm.create_model({model!r}, pretrained=True)",
        f"metrics          {run}/metrics.jsonl   tensorboard --logdir {board}",
        f"checkpoints      {run}/checkpoints   {export} {shlex.quote(run)} --out DIR",
    ]


library.callable_as(__name__, library.train)

if __name__ == "__main__":
    run_command(main)
