"""Metrics from the device to files: metrics.jsonl, a row per step and per validation, and TensorBoard scalars."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from tt_ray.data.loader import Batch
from tt_ray.io.files import new_file
from tt_ray.terminal.command import in_background
from tt_ray.training.collectives import sum_over_workers, world_size
from tt_ray.training.objective import PARTS
from tt_ray.training.samples import Samples

STEP_COLUMNS = (*PARTS, "grad_norm")
_SCALARS = {
    "loss": "loss/total",
    "loss_cls": "loss/classification",
    "loss_text": "loss/text",
    "balance": "text/balance_w",
    "text_weight": "text/weight",
    "grad_norm": "optim/grad_norm",
    "lr": "optim/lr",
    "images_per_s": "speed/images_per_s",
    "data_wait_share": "speed/data_wait_share",
    "top1": "val/top1",
    "top5": "val/top5",
    "val_loss": "val/loss",
}


_LAST_WAIT_S = 10.0
Viewer = Callable[[Mapping[str, Any]], None]
"""Is handed each row that TensorBoard gets."""


class MetricsLog:
    """The files, and who else sees the rows; on resuming, rows of steps that will run again are dropped first."""

    def __init__(self, folder: Path, first_step: int, viewers: Sequence[Viewer] = ()) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        keep_rows(path, first_step)
        self._validated = {row["step"] for row in read_rows(path) if row["kind"] == "validation"}
        self._file = path.open("a")
        # purge_step hides events of the steps that an interrupted run had written beyond its last checkpoint.
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step or None)
        self._viewers = viewers
        self._samples: Future[None] | None = None

    def steps(self, rows: list[dict[str, Any]]) -> None:
        """Rows of consecutive steps; TensorBoard and the viewers get the last one."""
        for row in rows:
            self._file.write(json.dumps({"kind": "step", **row}) + "\n")
        self._show(rows[-1])

    def validation(self, row: dict[str, Any]) -> None:
        """The row of a validation after `row["step"]` steps."""
        self._validated.add(row["step"])
        self._file.write(json.dumps({"kind": "validation", **row}) + "\n")
        self._show(row)

    def show_samples(self, make: Callable[[], Samples]) -> None:
        """TensorBoard gets a few training images; `make` runs beside the training."""

        def show() -> None:
            made = make()
            self._board.add_image("training images", made.grid, 0)
            self._board.add_text("training images", made.table, 0)

        self._samples = in_background(show)

    def validated(self, step: int) -> bool:
        """Whether there is a validation after `step` steps."""
        return step in self._validated

    def flush(self) -> None:
        """Hands the rows so far to the operating system."""
        self._file.flush()
        self._board.flush()

    def close(self) -> None:
        """Flushes and closes both files."""
        # They are no part of the run: what goes wrong with them is for the log alone.
        if self._samples is not None and wait([self._samples], _LAST_WAIT_S).done and (e := self._samples.exception()):
            logging.getLogger(__name__).warning("TensorBoard shows no training images: %s", e)
        self.flush()
        self._file.close()
        self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show(self, row: dict[str, Any]) -> None:
        for tag, value in scalars(row).items():
            self._board.add_scalar(tag, value, row["step"])
        for viewer in self._viewers:
            viewer(row)


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by the names that TensorBoard shows."""
    return {tag: row[key] for key, tag in _SCALARS.items() if key in row}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Complete rows of a metrics.jsonl; an interrupted last line is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def keep_rows(path: Path, first_step: int) -> None:
    """Drops rows of steps from `first_step` on, and validations after them."""
    rows = read_rows(path)
    kept = [row for row in rows if row["step"] < first_step + (row["kind"] == "validation")]
    if path.exists():
        with new_file(path) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in kept))


# A share of waiting that is worth a word, and the seconds of training that show it.
_MUCH, _JUDGED_AFTER_S = 0.1, 30.0


class Stopwatch:
    """Time and images since the last reading, and the share of the time that went into waiting for data."""

    def __init__(self) -> None:
        self._start, self._images, self._waited = perf_counter(), 0, 0.0

    def waited(self, seconds: float, images: int) -> None:
        """One more batch arrived after `seconds`."""
        self._waited += seconds
        self._images += images

    def skip(self, seconds: float) -> None:
        """Leaves out time that is not training, such as validation."""
        self._start += seconds

    def read(self) -> tuple[float, float]:
        """Images per second and data-wait share since the last reading."""
        seconds = max(perf_counter() - self._start, 1e-9)
        result = self._images / seconds, self._waited / seconds
        self.__init__()
        return result


class Reading(NamedTuple):
    """Metrics of some steps that all workers have read together."""

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
class StepMetrics:
    """Columns of recent steps, kept on the device until `read`: the only place where the host waits for it."""

    watch: Stopwatch = field(default_factory=Stopwatch)
    columns: list[Tensor] = field(default_factory=list)
    first: int = 0

    def add(self, step: int, columns: Tensor, waited: float, images: int) -> None:
        """Columns (5,) of one step, the seconds that its batch was waited for, and the images of all workers."""
        if not self.columns:
            self.first = step
        self.columns.append(columns)
        self.watch.waited(waited, images)

    def read(self, flags: list[bool]) -> Reading | None:
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
        return Reading(self.first, rows, rate, wait, [bool(value) for value in total.tolist()])


@dataclass
class LoaderWatch:
    """Says once that a run's loaders keep it waiting."""

    processes: int
    """Loader processes of a worker; 0 where it prepares batches itself."""
    note: str = ""
    """What there is to say; empty as long as there is nothing."""
    _readings: int = 0
    _seconds: float = 0.0
    _waited: float = 0.0

    def add(self, seconds: float, share: float) -> None:
        """Share of the seconds since the last reading that went into waiting; the first, of the start, counts not."""
        self._readings += 1
        if self.note or self._readings == 1:
            return
        self._seconds += seconds
        self._waited += seconds * share
        if self._seconds >= _JUDGED_AFTER_S and self._waited > _MUCH * self._seconds:
            self.note = (
                f"training waits for its images {self._waited / self._seconds:.0%} of the time, with {self.processes} "
                "loader processes per worker: give it more (--data.num_loaders, --run.cpus_per_worker), pack the "
                "images (python -m tt_ray.pack), or hold them in memory (--data.cache_gb)"
            )


def timed(batches: Iterable[Batch], first: int) -> Iterator[tuple[int, Batch, float]]:
    """Steps with their batches and the seconds that each was waited for."""
    step, coming = first, iter(batches)
    while True:
        start = perf_counter()
        batch = next(coming, None)
        if batch is None:
            return
        yield step, batch, perf_counter() - start
        step += 1
