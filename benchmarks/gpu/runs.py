"""Sections on whole runs: killed and resumed, saved, and exported."""

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file

from benchmarks.gpu.bench import Bench, Take, milliseconds
from benchmarks.gpu.sections import Row
from benchmarks.step_cost import synchronize
from tt_ray.config import Config
from tt_ray.data.loader import TrainBatches
from tt_ray.data.loader_processes import start_server
from tt_ray.models.export import find_checkpoint, load_trained
from tt_ray.terminal.progress import Standing
from tt_ray.training.context import LocalContext
from tt_ray.training.metrics_log import MetricsLog
from tt_ray.training.run_folder import start_run
from tt_ray.training.trainer import Trainer, train

_STEPS = 12
_FIRST_CHECKPOINT = 4
_START_S = 40.0
"""For a second process to train that far."""
Weights = dict[str, torch.Tensor]


def resume(bench: Bench) -> Iterator[Row]:
    """12 steps with AdamW and EMA; the process that begins them is killed at step 8, and what it saved continues.

    Kernels that add in any order make two runs differ, and training makes that grow: the aim allows for it.
    """
    process = _killed(bench, _config(bench, "killed"))
    straight = _weights(_run(bench, _config(bench, "straight")))
    again = _weights(_run(bench, _config(bench, "again")))
    process.join(_START_S)
    if process.is_alive():
        process.kill()
        raise RuntimeError(f"the process to be killed did not train to step {2 * _FIRST_CHECKPOINT} in time")
    if process.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"the process to be killed ended by itself, with status {process.exitcode}")
    config = _config(bench, "killed").override("run.overwrite", False)
    saved = sorted(path.name for path in (config.run_dir / "checkpoints").glob("step-*"))
    yield Row("checkpoints that the killed process left", float(len(saved)), at_least=1.0, note=", ".join(saved))
    reported: list[int] = []
    resumed = _weights(_run(bench, config, lambda standing: reported.append(standing.step)))
    first = float(reported[0])
    yield Row("first step that the resumed run reports", first, at_least=_FIRST_CHECKPOINT + 1)
    noise = {name: _apart(again[name], straight[name]) for name in straight}
    for name in straight:
        yield Row(f"{name}: two runs alike differ by", noise[name], "of the norm")
        aim = max(1e-4, 3 * noise[name])
        yield Row(
            f"{name}: the resumed run differs by", _apart(resumed[name], straight[name]), "of the norm", at_most=aim
        )


def _config(bench: Bench, name: str) -> Config:
    changes: dict[str, Any] = {"run__name": name, "train__ema": 0.9, "run__checkpoint_every": _FIRST_CHECKPOINT}
    changes |= {"train__epochs": 2, "train__eval_every": 1, "run__log_every": 2, "train__batch_size": bench.batch // 4}
    return bench.config(optim__warmup_epochs=0.0, **changes)


def _run(bench: Bench, config: Config, show: Callable[[Standing], None] | None = None) -> Path:
    """Trains to the end; returns the run's folder."""
    data = bench.data(config, _STEPS // 2 * config.train.batch_size)
    start_run(config)
    train(config, data, LocalContext(0, 1, bench.device, show))
    bench.free()
    return config.run_dir


def _killed(bench: Bench, config: Config) -> Any:
    """A process that trains and is killed between two steps, while its parent does something else."""
    bench.store(bench.few())  # so that it is not written by both
    start_server()
    context: Any = multiprocessing.get_context("forkserver")
    process = context.Process(target=_begin, args=(bench, config))
    process.start()
    return process


def _begin(bench: Bench, config: Config) -> None:
    """In a process of its own."""
    if bench.cuda:
        torch.cuda.set_device(bench.device)
    else:
        torch.set_num_threads(1)
    _run(bench, config, partial(_die, config))


def _die(config: Config, standing: Standing) -> None:
    """At the step of the second checkpoint, before it, once the first is on the disk."""
    if standing.step < 2 * _FIRST_CHECKPOINT:
        return
    folder = config.run_dir / "checkpoints"
    while not list(folder.glob("step-*/manifest.json")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def _weights(run: Path) -> dict[str, Weights]:
    newest, _ = find_checkpoint(run)
    return {name: load_file(newest / f"{name}.safetensors") for name in ("model", "ema")}


def _apart(one: Weights, other: Weights) -> float:
    """The difference of all weights, over their norm."""
    pairs = [(one[name].double(), other[name].double()) for name in other]
    apart, norm = (
        sum(float(x.square().sum()) for x in xs) for xs in ([a - b for a, b in pairs], [b for _, b in pairs])
    )
    return (apart / norm) ** 0.5


def checkpoint(bench: Bench) -> Iterator[Row]:
    """ViT-B with AdamW and EMA; steps with a checkpoint before the first, which is written next to them, and without.

    The first checkpoint, which pins its memory, is not counted.
    """
    changes: dict[str, Any] = {
        "train__ema": 0.9998,
        "text__weight": 0.0,
        "run__name": "saved",
        "run__keep_checkpoints": 1,
    }
    config = bench.config(**changes, **({} if bench.tiny else {"model__name": "vit_base_patch16_224"}))
    data = bench.data(config, config.train.batch_size)
    trainer = Trainer(config, data, LocalContext(0, 1, bench.device))
    trainer.model.train()
    batch = TrainBatches(data.train, None, trainer.order, config)[0]
    start_run(config)
    number, asked = itertools.count(1), list[float]()

    def steps(saves: bool, log: MetricsLog) -> Take:
        def take(count: int) -> float:
            synchronize(bench.device)
            start = time.perf_counter()
            if saves:
                trainer._checkpoint(next(number), log)
                asked.append(time.perf_counter() - start)
            for _ in range(count):
                trainer.step(batch, 0)
            synchronize(bench.device)
            seconds = (time.perf_counter() - start) / count
            trainer.checkpoints.kept()
            return seconds

        return take

    with MetricsLog(config.run_dir, 0) as log:
        seconds = bench.take_turns({saves: steps(saves, log) for saves in (False, True)}, rounds=4)
    without, delayed = (float(np.median(seconds[saves])) for saves in (False, True))
    count = bench.steps
    yield Row("delay by a checkpoint, in steps", count * (delayed - without) / without, at_most=0.5)
    yield Row("a step", 1e3 * without, "ms")
    yield milliseconds("until the host goes on", asked[1:])
    yield Row("the first one, which pins memory: until the host goes on", 1e3 * asked[0], "ms")


def export(bench: Bench) -> Iterator[Row]:
    """A run's export, which timm builds, against the weights of its last checkpoint in the training's own model."""
    run = _run(bench, _config(bench, "exported"))
    ours = load_trained(find_checkpoint(run)[0]).backbone.to(bench.device).eval()
    theirs = timm.create_model(f"local-dir:{run / 'export'}", pretrained=True).to(bench.device).eval()
    images = torch.randn(bench.batch, 3, bench.image_size, bench.image_size, device=bench.device)
    with torch.inference_mode():
        apart = float((ours(images) - theirs(images)).abs().max())
    yield Row("largest difference of logits", apart, at_most=1e-3)
