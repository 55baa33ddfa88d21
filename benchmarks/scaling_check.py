"""The predictor's check: one small recipe on this machine's CPU, predicted from its parts and run with torchrun."""

import argparse
import itertools
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import ray_overhead
from benchmarks.loop_efficiency import open_data
from benchmarks.scaling_model import FLOAT, ring_volume
from benchmarks.scaling_parts import Exchange, exchange, timings
from benchmarks.step_cost import stepper
from tt_ray.config import Config
from tt_ray.data.loader import TrainBatches
from tt_ray.recipes import RECIPES
from tt_ray.training.context import LocalContext
from tt_ray.training.trainer import Trainer


class Share(NamedTuple):
    """What one worker's part of a step costs alone on the machine, with one thread."""

    steps: list[float]
    """Seconds of each, from its part of the batch being made, which nothing hides where the split is held in memory,
    to the optimiser."""
    parameters: int


def slowest(seconds: list[float], n: int) -> float:
    """The expected longest of n draws from N measured times, sorted: sum over i of t_i ((i / N)^n - ((i - 1) / N)^n).

    Workers wait for the last of them in every step, and other processes of the machine delay now one, now another.
    """
    count = len(seconds)
    return sum(t * ((i / count) ** n - ((i - 1) / count) ** n) for i, t in enumerate(sorted(seconds), 1))


def predict(share: Share, exchange: Exchange, workers: int, cores: int, batch: int, dim: int, log_every: int) -> float:
    """Seconds of a step of `workers` processes with a thread each.

    slowest(steps, n) max(1, n / cores), as cores are shared, and then the exchanges; none is hidden, for the cores that
    would compute meanwhile are those that exchange. All-reduce: latency + 2 (n - 1) / n bytes / rate (ring); gather of
    the embeddings: latency + (n - 1) / n bytes / rate. Six small messages: the balance, the loss and its softmax. The
    text loss of the part's rows is taken for that of the part: the pairs of so small a batch do not show.
    """
    gradients = exchange.latency + ring_volume(share.parameters * FLOAT, workers) / exchange.reduce_rate
    gathered = exchange.gather_latency + ring_volume(batch * dim * FLOAT, workers) / 2 / exchange.gather_rate
    small = exchange.latency * (6 + 1 / log_every)
    return slowest(share.steps, workers) * max(1.0, workers / cores) + gradients + gathered + small


def measure_share(config: Config, dim: int, folder: Path, repeats: int) -> Share:
    """Times the parts of a worker that has the whole batch of `config` to itself."""
    torch.set_num_threads(1)
    data, device = open_data(config, dim, folder), torch.device("cpu")
    trainer = Trainer(config, data, LocalContext(0, 1, device))
    batches = TrainBatches(data.train, data.targets, trainer.order, config)
    run, numbers = stepper(config, data, device), itertools.count()

    def step() -> None:
        batches[next(numbers)]
        run(1)

    return Share(timings(step, repeats), sum(parameter.numel() for parameter in trainer.model.parameters()))


def check(given: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row for each number of workers: steps per s predicted and measured, and the first over the second."""
    config = RECIPES[given.recipe]().override("train.epochs", 1_000_000).override("run.storage", str(folder))
    for path, value in given.set:
        config = config.override(path, value)
    cores, batch = len(os.sched_getaffinity(0)), config.train.batch_size
    rows: list[dict[str, Any]] = []
    for workers in given.workers:
        part = config.override("train.batch_size", batch // workers)
        before = measure_share(part, given.check_dim, folder / f"before-{workers}", given.repeats)
        exchanged = exchange(workers)
        run = argparse.Namespace(**vars(given) | {"workers": workers, "threads": 1, "embedding_dim": given.check_dim})
        base = folder / f"run-{workers}"
        base.mkdir(parents=True)
        measured = ray_overhead.run("torchrun", "run", run, ray_overhead.options(run, base), base)
        # Before and after, since the machine's load drifts.
        after = measure_share(part, given.check_dim, folder / f"after-{workers}", given.repeats)
        share = after._replace(steps=before.steps + after.steps)
        dim = given.check_dim if config.teaches else 0
        predicted = 1 / predict(share, exchanged, workers, cores, batch, dim, config.run.log_every)
        row = {"workers": workers, "predicted": predicted, "measured": measured, "ratio": predicted / measured}
        print(f"checked {row}", file=sys.stderr, flush=True)
        row |= {"cores": cores, "load_1min": os.getloadavg()[0]}
        rows.append({**row, "share": share._asdict(), "exchange": exchanged._asdict()})
    return rows
