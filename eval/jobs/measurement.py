"""Measured costs of a model: throughput, and memory at its peak.

Memory is what torch's allocator holds at most: on a GPU torch.cuda.max_memory_allocated; on a CPU the sum over the
profiler's events of allocations and releases, on top of parameters, buffers and the optimiser's state. What libraries
allocate for themselves, Python's own memory and fragmentation are not in it. A training step is forward, cross-entropy,
backward and AdamW in float32, after one that has allocated the optimiser's state. Throughput is of forward passes in
float32 on images that are on the device; the median of repeats.
"""

import os
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from statistics import median
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.features.backbone import Backbone
from eval.jobs.costs import Measured

_REPEATS, _SECONDS = 20, 5.0
"""Forward passes that are timed, and seconds after which there are no more."""


def measure(backbone: Backbone, batch_size: int, device: torch.device) -> Measured:
    """Throughput, and peak memory of a forward pass and of a training step; the model itself is left as it was."""
    model = deepcopy(backbone.model).to(device)
    size = backbone.preprocessing.size
    images = torch.zeros(batch_size, 3, size, size, device=device)
    with torch.inference_mode():
        rate = batch_size / _seconds(lambda: model(images), device)
        inference = peak_bytes(lambda: model(images), device, tensors_of(model))
    model.requires_grad_(True).train()
    step, state = training_step(model, images)
    step()
    training = peak_bytes(step, device, [*tensors_of(model), *state()])
    return Measured(batch_size, rate, inference / 1e6, training / 1e6)


def training_step(model: nn.Module, images: Tensor) -> tuple[Callable[[], None], Callable[[], list[Tensor]]]:
    """A step of AdamW on made-up labels, and a function that returns the optimiser's state."""
    optimizer = torch.optim.AdamW(model.parameters())
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def state() -> list[Tensor]:
        return [value for entries in optimizer.state.values() for value in entries.values() if torch.is_tensor(value)]

    return step, state


def tensors_of(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def peak_bytes(run: Callable[[], object], device: torch.device, held: Sequence[Tensor]) -> int:
    """The most bytes that torch's allocator holds while `run` runs, `held`, which was there before, included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler reports its stages on stderr
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        out = run()
    del out
    events = cast(Any, profiler).profiler.kineto_results.events()
    changes = sorted((each.start_ns(), each.nbytes()) for each in events if each.name() == "[memory]")
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most + sum(tensor.nbytes for tensor in held)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median of repeats, after one that warms up."""
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) <= _REPEATS and (len(taken) < 2 or time.perf_counter() - began < _SECONDS):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return median(taken[1:])


def device_name(device: torch.device) -> str:
    """Name of the device that figures were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
