"""Sections on ways to train: memory, half precision, averaged weights, memory formats, parts and shards."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from benchmarks.gpu.bench import Bench, Take, milliseconds, ratio
from benchmarks.gpu.sections import Row
from benchmarks.step_cost import random_data
from tt_ray.config import Config
from tt_ray.data.loader import TrainBatches
from tt_ray.models.classifier import mixed_precision
from tt_ray.training.context import LocalContext
from tt_ray.training.run_folder import start_run
from tt_ray.training.trainer import Trainer, train


def memory(bench: Bench) -> Iterator[Row]:
    """Peaks of some steps: the loop's step with and without text, and a loop as one writes it by hand."""
    peaks: dict[str, float] = {}
    for name in ("a bare loop", "without text", "with text"):
        bench.free()
        weight = 0.5 if name == "with text" else 0.0
        config = bench.config(text__weight=weight)
        take = _bare(bench, config) if name == "a bare loop" else bench.stepper(config, bench.dim if weight else 0)
        take(4)
        peaks[name] = bench.peak_gib()
        del take
        yield Row(f"{name}: peak", peaks[name] if bench.cuda else "no GPU", "GiB")
    for name in ("without text", "with text"):
        value = peaks[name] / peaks["a bare loop"] if bench.cuda else "no GPU"
        yield Row(f"{name}: peak over a bare loop's", value, at_most=1.05)


def _bare(bench: Bench, config: Config) -> Take:
    kwargs = {"img_size": bench.image_size, **config.model.kwargs}
    model = timm.create_model(config.model.name, num_classes=bench.classes, **kwargs).to(bench.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=bench.cuda)
    size = (bench.batch, 3, bench.image_size, bench.image_size)
    images, labels = torch.randn(size, device=bench.device), torch.randint(bench.classes, size[:1], device=bench.device)

    def step() -> None:
        with mixed_precision(bench.device, config.train.precision):
            logits = model(images)
        F.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return bench.timed(step)


def fp16(bench: Bench) -> Iterator[Row]:
    """Steps from the first on, in which the scaler finds its scale."""
    half = "fp16" if bench.cuda else "bf16"  # half precision on a CPU takes forever
    trainer, batch = _trainer(bench, bench.config(train__precision=half))
    for step in range(20 if bench.cuda else 2):
        trainer.step(batch, step)
    wrong = sum(int((~weight.isfinite()).sum()) for weight in trainer.model.parameters())
    yield Row("weights that are not finite", float(wrong), at_most=0.0)
    yield Row("scale of the loss", float(trainer.scaler.get_scale()), at_least=1.0)
    del trainer, batch
    bench.free()
    sides = {name: bench.stepper(bench.config(train__precision=name), bench.dim) for name in (half, bench.precision)}
    seconds = bench.take_turns(sides, rounds=3)
    yield ratio(f"step in {half} over one in {bench.precision}", seconds[half], seconds[bench.precision], at_most=1.1)


def ema(bench: Bench) -> Iterator[Row]:
    """Steps with and without."""
    sides = {decay: bench.stepper(bench.config(train__ema=decay), bench.dim) for decay in (0.9998, 0.0)}
    seconds = bench.take_turns(sides, rounds=3)
    yield ratio("step with EMA over one without", seconds[0.9998], seconds[0.0], at_most=1.05)


def channels_last(bench: Bench) -> Iterator[Row]:
    """ConvNeXt-T in both memory formats."""
    name = "test_convnext" if bench.tiny else "convnext_tiny"
    changes: dict[str, Any] = {"model__name": name, "model__kwargs": {}, "train__batch_size": bench.batch // 2}
    sides = {
        last: bench.stepper(bench.config(train__channels_last=last, **changes), bench.dim) for last in (True, False)
    }
    seconds = bench.take_turns(sides, rounds=3)
    yield ratio("step in channels-last over one in torch's own format", seconds[True], seconds[False], at_most=1.0)
    yield milliseconds("step in channels-last", seconds[True])


def checkpointing(bench: Bench) -> Iterator[Row]:
    """Activations that are kept, and those that are computed again: losses and gradient norm, time and memory."""
    columns, sides, peaks = dict[bool, torch.Tensor](), dict[bool, Take](), dict[bool, float]()
    for again in (False, True):
        changes: dict[str, Any] = {"train__activation_checkpointing": again}
        trainer, batch = _trainer(bench, bench.config(**changes))
        columns[again] = trainer.step(batch, 0).double().cpu()
        del trainer, batch
        sides[again] = bench.stepper(bench.config(**changes), bench.dim)
        bench.free()
        sides[again](2)
        peaks[again] = bench.peak_gib()
    different = float(((columns[True] - columns[False]) / columns[False].abs().clamp(min=1e-6)).abs().max())
    yield Row("losses, balance and gradient norm differ at most by", different, "of their size", at_most=0.01)
    seconds = bench.take_turns(sides, rounds=3)
    yield ratio(
        "step that computes activations again over one that keeps them", seconds[True], seconds[False], at_most=1.4
    )
    value = peaks[True] / peaks[False] if bench.cuda else "no GPU"
    yield Row("memory over that of one that keeps them", value, at_most=0.6)


def parts(bench: Bench) -> Iterator[Row]:
    """A batch whole and in four parts: the first step's losses and gradient norm in float32, then time and memory."""
    found: dict[int, torch.Tensor] = {}
    for limit in (0, bench.batch // 4):
        trainer, batch = _trainer(bench, bench.config(train__precision="fp32", train__max_batch_per_worker=limit))
        found[limit] = trainer.step(batch, 0).double().cpu()
        del trainer, batch
        bench.free()
    whole, several = found.values()
    different = float(((several - whole) / whole.abs().clamp(min=1e-6)).abs().max())
    yield Row("losses, balance and gradient norm differ at most by", different, "of their size", at_most=0.01)
    sides: dict[int, Take] = {}
    peaks: dict[int, float] = {}
    for limit in found:
        sides[limit] = bench.stepper(bench.config(train__max_batch_per_worker=limit), bench.dim)
        bench.free()
        sides[limit](2)
        peaks[limit] = bench.peak_gib()
    seconds = bench.take_turns(sides, rounds=3)
    limit = bench.batch // 4
    yield ratio("step in four parts over a whole one", seconds[limit], seconds[0], at_most=1.45)
    value = peaks[limit] / peaks[0] if bench.cuda else "no GPU"
    yield Row("memory in four parts over that of a whole batch", value, at_most=0.5)
    # Without text nothing needs the features of all parts first, so each part runs once.
    sides = {limit: bench.stepper(bench.config(text__weight=0.0, train__max_batch_per_worker=limit)) for limit in found}
    seconds = bench.take_turns(sides, rounds=3)
    yield ratio("step without text in four parts over a whole one", seconds[limit], seconds[0], at_most=1.1)


def _trainer(bench: Bench, config: Config) -> tuple[Trainer, Any]:
    """A trainer and its first batch, on the CPU."""
    data = random_data(config.train.batch_size, bench.image_size, bench.classes, bench.dim)
    trainer = Trainer(config, data, LocalContext(0, 1, bench.device))
    trainer.model.train()
    return trainer, TrainBatches(data.train, data.targets, trainer.order, config)[0]


def fsdp(bench: Bench) -> Iterator[Row]:
    """One worker that shards, which the loop leaves out; both run to their end: checkpoint, validation, export."""
    losses: dict[str, float] = {}
    for strategy in ("ddp", "fsdp"):
        bench.free()
        changes: dict[str, Any] = {"run__name": strategy, "train__epochs": 1, "train__eval_every": 1}
        config = bench.config(run__strategy=strategy, train__ema=0.9, train__batch_size=bench.batch // 2, **changes)
        data = bench.data(config, 8 * config.train.batch_size)
        start_run(config)
        with ExitStack() as stack:
            if strategy == "fsdp":
                stack.enter_context(_sharding(bench))
            losses[strategy] = train(config, data, LocalContext(0, 1, bench.device))["val_loss"]
    different = abs(losses["fsdp"] / losses["ddp"] - 1)
    yield Row("validation loss sharded over whole, less 1", different, at_most=0.01)
    whole = bench.take_turns({"": bench.stepper(bench.config(), bench.dim)}, rounds=3)[""]
    bench.free()
    with _sharding(bench):
        take = bench.stepper(bench.config(run__strategy="fsdp"), bench.dim)
        sharded = bench.take_turns({"": take}, rounds=3)[""]
        del take
    yield ratio("step sharded over whole", sharded, whole, at_most=1.15)
    yield Row("step sharded", 1e3 * float(np.median(sharded)), "ms")


@contextmanager
def _sharding(bench: Bench) -> Iterator[None]:
    """A process group of one worker, in which models are sharded as with several."""

    def mesh_of(strategy: str, device: torch.device) -> DeviceMesh | None:
        return None if strategy == "ddp" else init_device_mesh(device.type, (1,))

    meeting = bench.folder / "meeting"
    meeting.unlink(missing_ok=True)
    backend, device = ("nccl", bench.device) if bench.cuda else ("gloo", None)
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=0, world_size=1, device_id=device)
    try:
        with mock.patch("tt_ray.training.parallelism.mesh_of", mesh_of):
            yield
    finally:
        dist.destroy_process_group()
