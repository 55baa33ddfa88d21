"""The only training loop. It knows no Ray: it talks to its runner through a Context."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tt_ray.checkpoint import Position, load_checkpoint, newest_intact, prune, save_checkpoint
from tt_ray.config import Config
from tt_ray.context import Context, Stopwatch
from tt_ray.data.hashing import seed_of
from tt_ray.data.loader import Batch, EvalBatches, TrainBatches, load
from tt_ray.data.mixing import build_mixing
from tt_ray.data.order import train_order
from tt_ray.data.transforms import normalize
from tt_ray.errors import NonFiniteLoss, UserError
from tt_ray.export import export_model
from tt_ray.logbook import STEP_COLUMNS, Logbook
from tt_ray.model import Outputs, build_model
from tt_ray.objective import Objective
from tt_ray.optim import build_optimizer, build_scheduler, clip_gradients, learning_rate
from tt_ray.parallel import sum_over_workers
from tt_ray.prepare import Data
from tt_ray.progress import Standing
from tt_ray.schedules import build_schedule
from tt_ray.validation import validate

_STEP_SEED = 6
_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def train(config: Config, data: Data, context: Context) -> dict[str, Any]:
    """Trains from the newest intact checkpoint in the run folder, or from the start, to the end.

    Returns what result.json holds. Worker 0 writes metrics, checkpoints, the export and, last of all, result.json.
    Raises NonFiniteLoss, and UserError when a checkpoint cannot be written or does not fit the configuration.
    """
    return Trainer(config, data, context).run()


class Trainer:
    """State of one worker's training."""

    def __init__(self, config: Config, data: Data, context: Context) -> None:
        self.config, self.data, self.context = config, data, context
        device = context.device
        self.order = train_order(config, len(data.train), context.rank, context.world)
        self.steps = config.train.epochs * self.order.steps_per_epoch
        self.model = build_model(config, len(data.train.classes), data.targets.dim if data.targets else 0)
        self.memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
        self.model.to(device).to(memory_format=self.memory_format)
        self.ema = ModelEmaV3(self.model, decay=config.train.ema) if config.train.ema else None
        if config.train.compile:
            self.model.compile_backbone()
        self.optimizer = build_optimizer(config.optim, self.model)
        self.scheduler = build_scheduler(config.optim, self.optimizer, config.train.epochs, self.order.steps_per_epoch)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
        self.objective = Objective.of(config)
        self.weight = build_schedule(config.text.schedule, config.text.weight, config.train.epochs)
        self.mixing = build_mixing(config, len(data.train.classes))
        self.net: nn.Module = self.model
        if context.world > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.net = DistributedDataParallel(self.model, device_ids=ids, gradient_as_bucket_view=True)
        self.seconds, self.scores, self.warnings = 0.0, dict[str, float](), list[str]()
        self.first_step_at: float | None = None

    # --- a step ---------------------------------------------------------------------------------------------------

    def step(self, batch: Batch, step: int) -> Tensor:
        """One update; returns the columns STEP_COLUMNS, shape (5,), on the device. Does not wait for the device."""
        self.scheduler.step_update(step)
        images, labels, text = self._on_device(batch, step)
        weight = self.weight(step // self.order.steps_per_epoch)
        limit = self.config.train.max_batch_per_worker
        backward = self._backward_in_parts if 0 < limit < len(images) else self._backward
        parts = backward(images, labels, text, weight, step)
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.model.parameters(), self.config.optim.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model)
        return torch.cat([parts, norm.detach().reshape(1)])

    def _on_device(self, batch: Batch, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        data, device = self.config.data, self.context.device
        images = normalize(batch.images.to(device, non_blocking=True), data.mean, data.std)
        images = images.contiguous(memory_format=self.memory_format)
        labels = batch.labels.to(device, non_blocking=True)
        text = None if batch.text is None else batch.text.to(device, non_blocking=True)
        if self.mixing is not None:
            images, labels, text = self.mixing.mix(images, labels, text, self.config.train.seed, step)
        return images, labels, text

    def _backward(self, images: Tensor, labels: Tensor, text: Tensor | None, weight: float, step: int) -> Tensor:
        self._seed(step, 0)
        with self.autocast():
            outputs = self.net(images)
        loss, parts = self.objective(outputs, labels, text, weight)
        self.scaler.scale(loss).backward()
        return parts

    def _backward_in_parts(
        self, images: Tensor, labels: Tensor, text: Tensor | None, weight: float, step: int
    ) -> Tensor:
        """The same gradient in less memory: contrastive losses need all features, so those come first, without a graph.

        Each part then runs again, with the same random numbers, to carry its share of the gradient back (GradCache,
        arXiv 2101.06983). Batch-norm statistics see every part twice.
        """
        chunks = images.split(self.config.train.max_batch_per_worker)
        pooled: list[Tensor] = []
        for number, chunk in enumerate(chunks):
            self._seed(step, number)
            with torch.no_grad(), self.autocast():
                pooled.append(self.model.features(chunk))
        with self.autocast():
            outputs = self.model.heads(torch.cat(pooled).requires_grad_())
        loss, parts = self.objective(outputs, labels, text, weight)
        roots = [root for root in (outputs.logits, outputs.text, outputs.scalars) if root is not None]
        grads = torch.autograd.grad(self.scaler.scale(loss), roots)
        start = 0
        for number, chunk in enumerate(chunks):
            last = number == len(chunks) - 1
            self._seed(step, number)
            self._require_sync(last)
            with self.autocast():
                again: Outputs = self.net(chunk)
            heads = [root for root in (again.logits, again.text) if root is not None]
            part = [grad[start : start + len(chunk)] for grad in grads[: len(heads)]]
            if last and again.scalars is not None:
                heads, part = [*heads, again.scalars], [*part, grads[-1]]
            torch.autograd.backward(heads, part)
            start += len(chunk)
        return parts

    def _require_sync(self, value: bool) -> None:
        if isinstance(self.net, DistributedDataParallel):
            # What DDP.no_sync() sets: workers exchange gradients once, with the last part.
            self.net.require_backward_grad_sync = value

    def _seed(self, step: int, part: int) -> None:
        seed = seed_of(self.config.train.seed, _STEP_SEED, step, self.context.rank, part)
        # torch.manual_seed seeds every kind of device there is, which takes ten times as long.
        torch.default_generator.manual_seed(seed)
        if self.context.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def autocast(self) -> torch.autocast:
        """Mixed precision as configured."""
        dtype = _PRECISIONS[self.config.train.precision]
        return torch.autocast(self.context.device.type, dtype=dtype, enabled=dtype is not None)

    # --- a run ----------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """From the newest intact checkpoint to result.json."""
        config, context = self.config, self.context
        start = self._restore()
        batches = TrainBatches(self.data.train, self.data.targets, self.order, config)
        held_out = EvalBatches(self.data.val, config, context.rank, context.world)
        cuda = context.device.type == "cuda"
        loaded = load(batches, range(start, self.steps), config.data.num_loaders, pin=cuda)
        with Logbook(config.run_dir, start) if context.rank == 0 else nullcontext() as book:
            self._steps(start, loaded, held_out, book)
        return self._finish()

    def _steps(self, start: int, loaded: Iterator[Batch], held_out: EvalBatches, book: Logbook | None) -> None:
        config = self.config
        began = time.perf_counter() - self.seconds
        self.model.train()
        recorder = _Recorder(self, book)
        for step, batch, waited in _timed(loaded, start):
            recorder.add(step, self.step(batch, step), waited, len(batch.rows) * self.context.world)
            self.first_step_at = self.first_step_at or time.time()
            done = step + 1
            self.seconds = time.perf_counter() - began
            if done % config.run.log_every == 0:
                recorder.flush()
            if done % self.order.steps_per_epoch == 0:
                recorder.flush()
                self._validate(held_out, done, book, recorder)
            if done % (config.run.checkpoint_every or self.order.steps_per_epoch) == 0 or done == self.steps:
                recorder.flush()
                self._checkpoint(done, book)
        if not self.scores:  # resumed after the last step, from a checkpoint without a validation
            self._validate(held_out, self.steps, book, recorder)

    def _validate(self, held_out: EvalBatches, done: int, book: Logbook | None, recorder: "_Recorder") -> None:
        epoch = done // self.order.steps_per_epoch
        if epoch % self.config.train.eval_every and done != self.steps:
            return
        start = time.perf_counter()
        model = self.model if self.ema is None else self.ema.module
        self.scores = validate(model, held_out, self.config, self.context.device, self.autocast())
        row = {"step": done, "epoch": epoch, **self.scores}
        if book is not None:
            book.validation(row)
        self.context.report(row)
        recorder.watch.skip(time.perf_counter() - start)

    def _checkpoint(self, done: int, book: Logbook | None) -> None:
        """Worker 0 writes; all workers learn whether it could."""
        problem, path = "", self._folder / f"step-{done:08d}"
        if book is not None:
            try:
                book.flush()
                self._save(path, done)
                prune(self._folder, self.config.run.keep_checkpoints)
            except OSError as error:
                problem = f"cannot write checkpoint {path}: {error.strerror or error}"
        failed = sum_over_workers(torch.tensor(float(bool(problem)), device=self.context.device))
        if failed:
            raise UserError(f"{problem or 'worker 0 cannot write its checkpoint'}; {self._last_good()}")

    def _save(self, path: Path, done: int) -> None:
        position = Position(done, done // self.order.steps_per_epoch, done * self.order.batch_size)
        extra = {
            "seconds": self.seconds,
            "scores": self.scores,
            "scaler": self.scaler.state_dict(),
            "classes": self.data.train.classes,
        }
        yaml = (self.config.run_dir / "config.yaml").read_text()
        save_checkpoint(path, position, self.model, self.optimizer, self.ema and self.ema.module, extra, yaml)

    def _restore(self) -> int:
        path, problems = newest_intact(self._folder)
        self.warnings += [f"{problem}; went on from {path.name if path else 'the start'}" for problem in problems]
        if path is None:
            return 0
        position, extra = load_checkpoint(path, self.model, self.optimizer, self.ema and self.ema.module)
        self.scaler.load_state_dict(extra["scaler"])
        self.seconds, self.scores = extra["seconds"], extra["scores"]
        return position.step

    def _finish(self) -> dict[str, Any]:
        """Exports and writes result.json, whose presence means that the run is complete."""
        result = {
            **self.scores,
            "steps": self.steps,
            "epochs": self.config.train.epochs,
            "train_seconds": self.seconds,
            "first_step_at": self.first_step_at,
            "notes": [*self.data.notes, *self.warnings],
        }
        if self.context.rank == 0:
            model = self.model if self.ema is None else self.ema.module
            export_model(model.backbone, self.config, self.data.train.classes, self.config.run_dir / "export")
            partial = self.config.run_dir / ".result.partial"
            partial.write_text(json.dumps(result, indent=2))
            partial.replace(self.config.run_dir / "result.json")
        return result

    @property
    def _folder(self) -> Path:
        return self.config.run_dir / "checkpoints"

    def _last_good(self) -> str:
        path, _ = newest_intact(self._folder)
        return f"the last good checkpoint is {path}" if path else "there is no checkpoint yet"


class _Recorder:
    """Keeps the columns of recent steps on the device and reads them together, once every `run.log_every` steps."""

    def __init__(self, trainer: Trainer, book: Logbook | None) -> None:
        self.trainer, self.book, self.watch = trainer, book, Stopwatch()
        self.columns: list[Tensor] = []
        self.first = 0

    def add(self, step: int, columns: Tensor, waited: float, images: int) -> None:
        """Columns (5,) of one step, the seconds that its batch was waited for, and the images of all workers."""
        if not self.columns:
            self.first = step
        self.columns.append(columns)
        self.watch.waited(waited, images)

    def flush(self) -> None:
        """Writes rows and shows progress; raises NonFiniteLoss. This is where the host waits for the device."""
        if not self.columns:
            return
        trainer, count = self.trainer, len(self.columns)
        table = (sum_over_workers(torch.stack(self.columns)) / trainer.context.world).tolist()
        self.columns = []
        rate, wait = self.watch.read()
        rows = [self._row(self.first + offset, values) for offset, values in enumerate(table)]
        for row in rows:
            if not math.isfinite(row["loss"]):
                parts = ", ".join(f"{name} {row[name]:g}" for name in STEP_COLUMNS)
                raise NonFiniteLoss(f"the loss is not finite at step {row['step']} ({parts}); {trainer._last_good()}")
        if self.book is None:
            return
        rows[-1] |= {"lr": learning_rate(trainer.optimizer), "images_per_s": rate, "data_wait_share": wait}
        self.book.steps([{key: value for key, value in row.items() if math.isfinite(value)} for row in rows])
        done = self.first + count
        eta = (trainer.steps - done) * trainer.order.batch_size / rate
        epoch, top1 = done // trainer.order.steps_per_epoch, trainer.scores.get("top1")
        trainer.context.progress(Standing(done, trainer.steps, epoch, rate, eta, rows[-1]["loss"], top1))

    def _row(self, step: int, values: list[float]) -> dict[str, float]:
        epoch = step // self.trainer.order.steps_per_epoch
        return {"step": step, "epoch": epoch, "text_weight": self.trainer.weight(epoch)} | dict(
            zip(STEP_COLUMNS, values, strict=True)
        )


def _timed(batches: Iterator[Batch], first: int) -> Iterator[tuple[int, Batch, float]]:
    """Steps with their batches and the seconds that each was waited for."""
    step = first
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield step, batch, time.perf_counter() - start
        step += 1
