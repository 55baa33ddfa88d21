"""Sections on single steps: what text costs, and where the host waits for the GPU."""

import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.gpu.bench import Bench, Take, milliseconds, ratio
from benchmarks.gpu.sections import Row
from benchmarks.loop_efficiency import Enough
from benchmarks.step_cost import random_data
from tt_ray.config import Config
from tt_ray.terminal.progress import Standing
from tt_ray.training.context import LocalContext
from tt_ray.training.run_folder import start_run
from tt_ray.training.text_teacher import TextTeacher
from tt_ray.training.trainer import train

LOGGING = "metrics_log.py"
"""The file that reads metrics off the device."""


def machine(bench: Bench) -> Iterator[Row]:
    """Rates to hold the other rows against."""
    size, dtype = (8192, torch.bfloat16) if bench.cuda else (64, torch.float32)
    left = torch.randn(size, size, device=bench.device, dtype=dtype)
    seconds = bench.take_turns({"product": bench.timed(lambda: left @ left)})["product"]
    yield Row(f"bf16 product of {size} x {size}", 2e-12 * size**3 / float(np.median(seconds)), "TFLOP/s")
    block = torch.empty(2**31 if bench.cuda else 2**16, dtype=torch.uint8, device=bench.device)
    seconds = bench.take_turns({"copy": bench.timed(block.clone)})["copy"]
    yield Row("copy on the device, read and written", 2e-12 * len(block) / float(np.median(seconds)), "TB/s")
    pinned = torch.empty(2**28 if bench.cuda else 2**16, dtype=torch.uint8, pin_memory=bench.cuda)
    seconds = bench.take_turns({"copy": bench.timed(lambda: pinned.to(bench.device, non_blocking=True))})["copy"]
    yield Row("copy to the device, pinned", 1e-9 * len(pinned) / float(np.median(seconds)), "GB/s")


def step(bench: Bench) -> Iterator[Row]:
    """Eager steps at both sizes of batch."""
    for batch in (bench.batch, bench.large):
        yield from _text_over_none(bench, batch, compiled=False)


def compiled_step(bench: Bench) -> Iterator[Row]:
    """Compiled steps; toy sizes run as they are, for a compiler takes longer than all other sections."""
    with ExitStack() as stack:
        if bench.tiny:
            stack.callback(torch.compiler.set_stance, "default")
            torch.compiler.set_stance("force_eager")
        for batch in (bench.batch, bench.large):
            yield from _text_over_none(bench, batch, compiled=True)
        bench.free()
        few = bench.batch // 8
        changes: dict[str, Any] = {"train__batch_size": few, "train__compile": True}
        modes = {
            mode: bench.stepper(bench.config(train__compile_mode=mode, **changes), bench.dim)
            for mode in ("default", "reduce-overhead")
        }
        seconds = bench.take_turns(modes)
        what = f"batch {few}: step with CUDA graphs (compile_mode reduce-overhead) over one without"
        yield ratio(what, seconds["reduce-overhead"], seconds["default"], at_most=1.0)


def _text_over_none(bench: Bench, batch: int, compiled: bool) -> Iterator[Row]:
    bench.free()
    sides: dict[float, Take] = {}
    name = f"batch {batch}, {'compiled' if compiled else 'eager'}"
    began = time.perf_counter()
    try:
        for weight, dim in ((0.0, 0), (0.5, bench.dim)):
            config = bench.config(text__weight=weight, train__batch_size=batch, train__compile=compiled)
            sides[weight] = bench.stepper(config, dim)
            sides[weight](1)
        first = time.perf_counter() - began
        seconds = bench.take_turns(sides, max(1, bench.steps * bench.batch // batch))
    except torch.OutOfMemoryError:
        yield Row(f"{name}: both sides", "do not fit on the card")
        return
    if compiled:
        yield Row(f"{name}: models, compilation and first steps of both", first, "s")
    yield ratio(f"{name}: step with text over one without", seconds[0.5], seconds[0.0], at_most=1.03)
    yield milliseconds(f"{name}: step without text", seconds[0.0])
    yield Row(f"{name}: without text", batch / float(np.median(seconds[0.0])), "images/s")


class Waits:
    """Counts the operations by which the host waits for the GPU, by the line of the project that asks for them."""

    def __init__(self, cuda: bool) -> None:
        self.cuda, self.places = cuda, Counter[str]()
        self._undo = ExitStack()

    def start(self) -> None:
        """Counts from now on."""
        self._undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("always")
        if self.cuda:
            self._undo.callback(torch.cuda.set_sync_debug_mode, "default")
            torch.cuda.set_sync_debug_mode("warn")
        warnings.showwarning = self.note  # catch_warnings puts the old one back

    def stop(self) -> None:
        """Counts no more."""
        self._undo.close()

    def note(self, message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        """One warning of torch's, or of others."""
        if "synchronizing CUDA operation" not in str(message):
            return
        frames = [frame for frame in traceback.extract_stack() if "tt_ray" in Path(frame.filename).parts]
        place = (frames[-1].filename, frames[-1].lineno) if frames else (filename, lineno)
        self.places[f"{Path(place[0]).name}:{place[1]}"] += 1


def syncs(bench: Bench) -> Iterator[Row]:
    """50 steps of the loop itself, from memory, after its first steps."""
    cases: dict[str, dict[str, Any]] = {
        "baseline": {"text__weight": 0.0},
        "text": {},
        "text held on the device": {"text__on_device": True},
        "text, cutmix, EMA, LAMB": {"data__cutmix": 1.0, "train__ema": 0.9998, "optim__name": "lamb"},
        "text, in two parts": {"train__max_batch_per_worker": bench.batch // 4},
        "text, fp16 with its scaler": {"train__precision": "fp16"} if bench.cuda else {},
    }
    for name, changes in list(cases.items())[4 if bench.tiny else 0 :]:
        bench.free()
        steps = 50 if bench.cuda else 2
        config = bench.config(train__batch_size=bench.batch // 2, run__log_every=10 if bench.cuda else 1, **changes)
        waits = _waits_of(bench, config, steps)
        places = {place: count for place, count in waits.places.items() if not place.startswith(LOGGING)}
        shown = ", ".join(f"{place} x{count}" for place, count in sorted(places.items())[:8])
        aim: dict[str, Any] = (
            {} if "fp16" in name else {"at_most": 0.0}
        )  # GradScaler reads whether a gradient is infinite
        what = f"{name}: waits in {steps} steps, besides {sum(waits.places.values()) - sum(places.values())} to log"
        yield Row(what, float(sum(places.values())) if bench.cuda else "no GPU", note=shown, **aim)


def _waits_of(bench: Bench, config: Config, steps: int) -> Waits:
    waits, begins = Waits(bench.cuda), 2 * config.run.log_every

    def show(standing: Standing) -> None:
        if standing.step >= begins + steps:
            raise Enough
        if standing.step == begins:
            waits.start()

    data = bench.data(config, 10 * config.train.batch_size)
    start_run(config)
    try:
        with suppress(Enough):
            train(config, data, LocalContext(0, 1, bench.device, show))
    finally:
        waits.stop()
    return waits


def text_loss(bench: Bench) -> Iterator[Row]:
    """The library's TextTeacher, forward and backward, over the same without text, as the batch grows."""
    width, source = 384, random_data(bench.distinct, 8, bench.classes, 0).train
    store = bench.store(source)
    steps = {}
    for batch in (bench.batch, bench.large):
        take = bench.stepper(bench.config(text__weight=0.0, train__batch_size=batch))
        steps[batch] = float(np.median(bench.take_turns({"": take}, 3, 3)[""]))
    for batch in (bench.batch, bench.large, 4 * bench.large, 16 * bench.large):
        bench.free()
        sides = {}
        for weight in (0.0, 0.5):
            teacher = TextTeacher(width, store, weight=weight, by_row=True, on_device=True).to(bench.device)
            sides[weight] = bench.timed(_Loss(bench, teacher, batch, width))
        seconds = bench.take_turns(sides, 3)
        text = float(np.median(seconds[0.5]) - np.median(seconds[0.0]))
        whole = steps[batch] if batch in steps else steps[bench.large] * batch / bench.large
        note = "" if batch in steps else "of a step at the rate of the smaller batch"
        aim: dict[str, Any] = {"at_most": 0.03} if batch in steps else {}
        yield Row(f"batch {batch}: the text loss over the step", text / whole, note=note, **aim)
        yield Row(f"batch {batch}: the text loss", 1e3 * text, "ms")


class _Loss:
    """A loss and its gradient, from features that a backbone might give."""

    def __init__(self, bench: Bench, teacher: TextTeacher, batch: int, width: int) -> None:
        device = bench.device
        self.teacher, self.classifier = teacher, torch.nn.Linear(width, bench.classes, device=device)
        self.features = torch.randn(batch, width, device=device, requires_grad=True)
        self.labels = torch.randint(bench.classes, (batch,), device=device)
        self.rows = np.arange(batch) % bench.distinct

    def __call__(self) -> None:
        pooled = F.layer_norm(self.features, self.features.shape[1:])
        self.teacher(pooled, self.classifier(pooled), self.labels, self.rows).loss.backward()
        self.features.grad = None
