"""Sections on the loop: its rate from memory and from JPEGs, what prefetching hides, and the GPU's augmentation."""

import argparse
import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.bench import Bench, milliseconds, ratio
from benchmarks.gpu.sections import Row
from benchmarks.loading import make_folders, opened, pack
from benchmarks.loop_efficiency import Blocks, Enough, bare_steps
from tt_ray.config import DataConfig
from tt_ray.data.augment import channels_on
from tt_ray.data.finish import finish
from tt_ray.data.image_batches import AugmentedImages
from tt_ray.data.loader import Batch, TrainBatches
from tt_ray.data.loader_processes import prepared
from tt_ray.data.prepare import Data
from tt_ray.data.sources.base import Source
from tt_ray.terminal.progress import Standing
from tt_ray.training.context import LocalContext
from tt_ray.training.prefetch import finished_ahead
from tt_ray.training.run_folder import start_run
from tt_ray.training.trainer import Trainer, train


def from_memory(bench: Bench) -> Iterator[Row]:
    """The loop and bare steps of a second model by turns, both with images in memory."""
    log_every = 2 * bench.steps
    config = bench.config(run__log_every=log_every)
    data = bench.data(config, (40 if bench.cuda else 4) * bench.batch)
    context = LocalContext(0, 1, bench.device)
    trainer = Trainer(config, data, context)
    first = TrainBatches(data.train, data.targets, trainer.order, config)[0]
    blocks = Blocks(log_every, 0, bench.rounds, bench.batch, bare_steps(trainer, first))
    start_run(config)
    with suppress(Enough):
        train(config, data, replace(context, show=blocks))
    yield ratio("rate of the loop over bare steps", blocks.loop_rates, blocks.bare_rates, at_least=0.97)
    yield Row("the loop", float(np.median(blocks.loop_rates)), "images/s")


class Windows(LocalContext):
    """Collects the rates of the loop's windows until there are enough; the first two, of the start, count not."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        super().__init__(0, 1, device)
        self.seconds, self.rows = seconds, list[Mapping[str, float]]()
        self._until = 0.0

    def measured(self, row: Mapping[str, float]) -> None:
        """A row of metrics.jsonl; the last of a window has its rate."""
        if "images_per_s" in row:
            self.rows.append(row)

    def progress(self, standing: Standing) -> None:
        """After each window."""
        self._until = self._until or time.perf_counter() + self.seconds
        if time.perf_counter() > self._until and len(self.rows) > 3:
            raise Enough

    def median(self, column: str) -> float:
        """Of the windows that count."""
        return float(np.median([row[column] for row in self.rows[2:]]))


def jpegs(bench: Bench) -> dict[str, Source]:
    """JPEGs of 500 x 375 px in folders, and packed at the short side that training needs."""
    root, sizes = bench.folder / "jpegs", (500, 375) if bench.cuda else (60, 50)
    if not root.exists():
        given = argparse.Namespace(images=64 if bench.cuda else bench.batch, width=sizes[0], height=sizes[1])
        make_folders(root, given)
        pack(opened("imagefolder", root), bench.folder / "packed", bench.image_size)
    return {"folders": opened("imagefolder", root), "packed": opened("webdataset", bench.folder / "packed")}


def from_jpegs(bench: Bench) -> Iterator[Row]:
    """The loop with its loader processes; files are in the page cache, 64 images many times in an epoch."""
    bare = bench.stepper(bench.config(text__weight=0.0))
    rate = bench.batch / float(np.median(bench.take_turns({"": bare}, rounds=3)[""]))
    del bare
    yield Row("steps alone", rate, "images/s")
    ways = list(itertools.product(jpegs(bench).items(), ("device", "loader")))
    for (kind, source), where in ways[:: 3 if bench.tiny else 1]:
        bench.free()
        config = bench.config(
            data__augment="three_augment",
            data__augment_on=where,
            text__weight=0.0,
            run__log_every=bench.steps,
        )
        whole = source.select(np.arange(100 * bench.batch) % len(source))
        context = Windows(bench.device, 5 if bench.cuda else 0)
        start_run(config)
        with suppress(Enough):
            train(config, Data(whole, source, None, ()), context)
        gc.collect()  # ends loader processes
        name = f"{kind}, {bench.loaders} loaders, {'the GPU' if where == 'device' else 'loaders'} augment"
        aims: Any = {"at_most": 0.05} if (kind, where) == ("packed", "device") else {}
        yield Row(f"{name}: share of waiting", context.median("data_wait_share"), **aims)
        yield Row(f"{name}: the loop", context.median("images_per_s"), "images/s")
        yield Row(f"{name}: rate over that of steps alone", context.median("images_per_s") / rate)


def prefetch(bench: Bench) -> Iterator[Row]:
    """Batches from pinned memory that the GPU augments: finished ahead, on a stream of their own, or in the step."""
    config = bench.config(data__augment="three_augment", data__augment_on="device", text__weight=0.0)
    source = jpegs(bench)["packed"]
    data = Data(source.select(np.arange(4 * bench.batch) % len(source)), source, None, ())
    trainer = Trainer(config, data, LocalContext(0, 1, bench.device))
    trainer.model.train()
    batches = TrainBatches(data.train, None, trainer.order, config, on_device=True)
    held = list(prepared(batches, range(4 if bench.cuda else 1), 0, bench.cuda))
    number = itertools.count()

    def steps(ahead: bool) -> Callable[[int], float]:
        def several(count: int) -> float:
            chosen = itertools.islice(itertools.cycle(held), count)
            coming = finished_ahead(chosen, bench.device, config.data) if ahead and bench.cuda else chosen

            def run() -> None:
                for batch in coming:
                    trainer.step(batch, next(number))

            return bench.timed(run)(1) / count

        return several

    coming = itertools.cycle(held)
    sides = {"ahead": steps(True), "in the step": steps(False)}
    sides["alone"] = bench.timed(lambda: _finish(next(coming), bench.device, config.data))
    seconds = bench.take_turns(sides, 2 * bench.steps, 3)
    yield ratio("step with prefetching over one without", seconds["ahead"], seconds["in the step"], at_most=1.0)
    yield milliseconds("step without prefetching", seconds["in the step"])
    yield milliseconds("copying and augmenting alone", seconds["alone"])
    ahead, within, alone = (float(np.median(seconds[name])) for name in ("ahead", "in the step", "alone"))
    hidden = (within - ahead) / alone if bench.cuda else "no GPU"
    yield Row("share of copying and augmenting that is hidden", hidden)


def _finish(batch: Batch, device: torch.device, config: DataConfig) -> torch.Tensor:
    return finish(batch.images.to(device, non_blocking=True), batch.rest, config)


def augmentation(bench: Bench) -> Iterator[Row]:
    """The same samples by both ways, in grey levels; before that, the GPU against the CPU with the same code."""
    source = jpegs(bench)["folders"]
    rows, seeds = np.arange(len(source)), 7919 * np.arange(len(source)) + 3
    for preset in ("three_augment", "deit"):
        config = DataConfig(image_size=bench.image_size, augment=preset)
        by_device, rest = AugmentedImages(source, config, on_device=True)(rows, seeds)
        on_gpu = _levels(finish(by_device.to(bench.device), rest, config), config)
        on_cpu = _levels(finish(by_device, rest, config), config)
        # Not the largest difference: a rounding error at the threshold of solarise changes a pixel from dark to light.
        different = (on_gpu - on_cpu).abs()
        within, most = float((different <= 2).float().mean()), f"at most {float(different.max()):g}"
        yield Row(f"{preset}: GPU and CPU, values within two grey levels", within, at_least=0.999, note=most)
        by_loader = _levels(finish(*AugmentedImages(source, config, on_device=False)(rows, seeds), config), config)
        different = (on_gpu - by_loader).abs()
        mean = float(different.flatten(1).mean(1).max())
        yield Row(f"{preset}: GPU and loader, mean of the image that differs most", mean, "grey levels", at_most=1.0)
        within = float((different <= 2).float().mean())
        yield Row(f"{preset}: GPU and loader, values within two grey levels", within, at_least=0.99)


def _levels(images: torch.Tensor, config: DataConfig) -> torch.Tensor:
    mean, std = (channels_on(value, images.device) for value in (config.mean, config.std))
    return ((images * std + mean) * 255).round().cpu()
