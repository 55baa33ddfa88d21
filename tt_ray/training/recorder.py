"""Columns of recent steps, read from the device together: the only place where the host waits for it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from tt_ray.data.loader import Batch
from tt_ray.training.collectives import sum_over_workers, world_size
from tt_ray.training.context import Stopwatch
from tt_ray.training.metrics_log import STEP_COLUMNS


class Read(NamedTuple):
    """What all workers learn together, once every `run.log_every` steps."""

    first: int
    """The first step of `rows`."""
    rows: list[dict[str, float]]
    """The parts of the loss and the gradient norm of each step."""
    images_per_s: float
    data_wait_share: float
    flags: list[bool]
    """Whether any worker has raised its flag, one by one."""

    def not_finite(self, scaled: bool) -> str | None:
        """What is not finite, the loss or the gradient, at the first such step, with the parts of its loss.

        `scaled`: fp16's scaler leaves out steps whose gradient is not finite, so those do no harm.
        """
        checked = {"loss": "loss"} if scaled else {"loss": "loss", "grad_norm": "gradient"}
        for step, row in enumerate(self.rows, self.first):
            for column, name in checked.items():
                if not math.isfinite(row[column]):
                    parts = ", ".join(f"{part} {row[part]:g}" for part in STEP_COLUMNS)
                    return f"the {name} is not finite at step {step} ({parts})"
        return None


@dataclass
class Recorder:
    """Keeps columns on the device until `read`."""

    watch: Stopwatch = field(default_factory=Stopwatch)
    columns: list[Tensor] = field(default_factory=list)
    first: int = 0

    def add(self, step: int, columns: Tensor, waited: float, images: int) -> None:
        """Columns (5,) of one step, the seconds that its batch was waited for, and the images of all workers."""
        if not self.columns:
            self.first = step
        self.columns.append(columns)
        self.watch.waited(waited, images)

    def read(self, flags: list[bool]) -> Read | None:
        """Means over workers since the last reading; None when there has been no step since."""
        if not self.columns:
            return None
        table = torch.stack(self.columns)
        raised = torch.tensor(flags, dtype=table.dtype).to(table.device, non_blocking=True)
        # One exchange for both, since small ones cost their latency.
        *values, total = sum_over_workers(torch.cat([table.flatten(), raised])).split([table.numel(), len(flags)])
        means = (values[0] / world_size()).reshape(table.shape).tolist()
        rate, wait = self.watch.read()
        self.columns = []
        rows: list[dict[str, float]] = [dict(zip(STEP_COLUMNS, row, strict=True)) for row in means]
        return Read(self.first, rows, rate, wait, [bool(value) for value in total.tolist()])


def timed(batches: Iterator[Batch], first: int) -> Iterator[tuple[int, Batch, float]]:
    """Steps with their batches and the seconds that each was waited for."""
    step = first
    while True:
        start = perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield step, batch, perf_counter() - start
        step += 1
