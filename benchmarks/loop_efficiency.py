"""Claim: the loop keeps the model busy: its images per second are at least 0.90 of those of the bare model (aim).

    python -m benchmarks.loop_efficiency
    python -m benchmarks.loop_efficiency --set data.source imagefolder --set data.root DIR --set data.num_loaders 2

The loop is `tt_ray.training.trainer.train` itself: batches, augmentation, Trainer.step, metrics.jsonl and TensorBoard.
It calls its context every `run.log_every` steps, and there bare steps (forward, objective, backward, optimiser; no
clipping) of a second copy of the model run on one batch that is held in memory, with the same number of threads.
Validation and checkpoints are put off beyond the measured steps. Loader processes work on during bare steps until their
queues are full; so either block follows on `--settle` steps that do not count. Embeddings are random, which costs the
same.
"""

import argparse
import contextlib
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.step_cost import RESULTS, Side, compare, report, synchronize
from tt_ray.config import Config
from tt_ray.data.augment import normalize
from tt_ray.data.loader import Batch, TrainBatches, loader_processes
from tt_ray.data.prepare import Data, join, open_images
from tt_ray.data.sources.base import Source
from tt_ray.embeddings.build import write_store
from tt_ray.embeddings.store import EmbeddingStore
from tt_ray.recipes import RECIPES
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.progress import Standing
from tt_ray.training.context import LocalContext
from tt_ray.training.run_folder import start_run
from tt_ray.training.trainer import Trainer, train

_NEVER = 1_000_000_000
_PREFETCH = 4
_BARE_WARM_UP = 2


class Enough(Exception):
    """All blocks are measured."""


class Blocks:
    """The loop's progress callback: times the loop's blocks, and takes and times a block of bare steps after each."""

    def __init__(self, steps: int, settle: int, repeats: int, batch_size: int, bare: Callable[[int], None]) -> None:
        self.steps, self.settle, self.repeats, self.batch_size, self.bare = steps, settle, repeats, batch_size, bare
        self.loop_rates: list[float] = []
        self.bare_rates: list[float] = []
        self._start: tuple[int, float] | None = None
        self._ready_at = settle

    def __call__(self, standing: Standing) -> None:
        """Called between two steps of the loop, which has waited for the device. The first steps warm up."""
        now = time.perf_counter()
        if self._start is None:
            if standing.step >= self._ready_at:
                self._start = (standing.step, now)
            return
        steps, seconds = standing.step - self._start[0], now - self._start[1]
        if steps < self.steps:
            return
        self.bare(max(self.settle, _BARE_WARM_UP))
        start = time.perf_counter()
        self.bare(steps)
        self.bare_rates.append(steps * self.batch_size / (time.perf_counter() - start))
        self.loop_rates.append(steps * self.batch_size / seconds)
        if len(self.loop_rates) == self.repeats:
            raise Enough
        self._ready_at = standing.step + self.settle
        self._start = None if self.settle else (standing.step, time.perf_counter())


def bare_steps(trainer: Trainer, batch: Batch) -> Callable[[int], None]:
    """A function that takes as many steps of the trainer's model and waits for the device at the end."""
    config, device = trainer.config, trainer.context.device
    model, optimizer, objective = trainer.model.train(), trainer.optimizer, trainer.text_teacher.objective
    images = normalize(batch.images.to(device), config.data.mean, config.data.std)
    images, labels = images.contiguous(memory_format=trainer.memory_format), batch.labels.to(device)
    text = None if batch.text is None else batch.text.to(device)
    if trainer.mixing is not None:
        images, labels, text = trainer.mixing.mix(images, labels, text, 0, 0)
    weight = trainer.text_teacher.weight(0)

    def run(steps: int) -> None:
        for _ in range(steps):
            with trainer.autocast():
                outputs = model(images)
            loss, _ = objective(outputs, labels, text, weight)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        synchronize(device)

    return run


def random_store(source: Source, dim: int, path: Path) -> EmbeddingStore:
    """An embedding store of random embeddings for all images of a split."""
    table = np.random.default_rng(0).standard_normal((len(source), dim)).astype(np.float16)
    about = {"id": "random", "revision": "", "pooling": "none", "max_tokens": 0}
    return write_store(path, source.ids, [table], dim, "float16", about)


def configure(given: argparse.Namespace, folder: Path) -> Config:
    """The recipe, without an end, validation or checkpoints."""
    config = RECIPES[given.recipe]()
    settings = {
        "train.epochs": _NEVER,
        "train.eval_every": _NEVER,
        "run.checkpoint_every": _NEVER,
        "run.storage": str(folder),
        "run.use_gpu": given.gpu,
    }
    for path, value in [*settings.items(), *given.set]:
        config = config.override(path, value)
    return config


def open_data(config: Config, embedding_dim: int, folder: Path) -> Data:
    """The recipe's splits, joined with random embeddings when the recipe teaches."""
    train_split, val_split, notes = open_images(config)
    store = random_store(train_split, embedding_dim, folder / "store") if config.teaches else None
    return join(config, train_split, val_split, store, notes)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Runs the loop until all blocks are measured."""
    if given.threads:
        torch.set_num_threads(given.threads)
    device = torch.device("cuda", 0) if given.gpu else torch.device("cpu")
    with tempfile.TemporaryDirectory(prefix="tt-ray-benchmark-") as folder:
        config = configure(given, Path(folder))
        data = open_data(config, given.embedding_dim, Path(folder))
        trainer = Trainer(config, data, LocalContext(0, 1, device))
        batches = TrainBatches(data.train, data.targets, trainer.order, config)
        loaders = loader_processes(config.data.num_loaders, given.gpu)
        fetched = 0 if batches.pixels is not None else loaders * _PREFETCH
        settle = given.settle if given.settle >= 0 else fetched
        bare = bare_steps(trainer, batches[0])
        blocks = Blocks(given.steps, settle, given.repeats, config.train.batch_size, bare)
        start_run(config)
        with contextlib.suppress(Enough):
            train(config, data, LocalContext(0, 1, device, blocks))
        gc.collect()  # ends loader processes before the folder goes
    loop, bare_side = Side("loop", blocks.loop_rates), Side("bare model", blocks.bare_rates)
    settings = {key: value for key, value in vars(given).items() if key != "out"}
    return {**compare(loop, bare_side, "images per s"), "settings": settings, "settle": settle}


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, default="shapes_textteacher")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("PATH", "VALUE"), help="any field")
    parser.add_argument("--embedding-dim", type=int, default=384, help="length of the text targets")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of either side; 0 is torch's choice")
    parser.add_argument("--steps", type=int, default=40, help="steps of a block, rounded up to run.log_every")
    parser.add_argument("--settle", type=int, default=-1, help="uncounted steps before a block; -1 is the queues' size")
    parser.add_argument("--repeats", type=int, default=7, help="blocks of either side")
    parser.add_argument("--out", type=Path, default=RESULTS / "loop_efficiency.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = read_arguments(arguments)
    try:
        report(measure(given), ">= 0.90", given.out)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
