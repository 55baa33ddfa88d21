"""The only training loop. It knows no Ray: it talks to its runner through a Context."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from tt_ray.config import Config
from tt_ray.data.augment import normalize
from tt_ray.data.device_targets import hold_targets
from tt_ray.data.loader import Batch, EvalBatches, TrainBatches, load
from tt_ray.data.mixing import build_mixing
from tt_ray.data.prepare import Data
from tt_ray.data.sampling import train_order
from tt_ray.io.checkpoint_folder import checkpoint_name, step_of
from tt_ray.io.files import new_file
from tt_ray.io.storage import Storage
from tt_ray.losses import NEEDS
from tt_ray.models.classifier import Outputs, TaughtClassifier, build_model, mixed_precision
from tt_ray.models.export import write_export
from tt_ray.models.teacher import Teacher, load_teacher
from tt_ray.schedules import build_schedule
from tt_ray.stateless_random import seed_of
from tt_ray.terminal.errors import Interrupted, NonFiniteLoss, UserError
from tt_ray.terminal.progress import Standing
from tt_ray.training.checkpoint import Position, load_checkpoint, snapshot
from tt_ray.training.checkpoint_manager import Keeper
from tt_ray.training.class_statistics import class_statistics
from tt_ray.training.collectives import sum_over_workers
from tt_ray.training.context import REQUESTS, Context
from tt_ray.training.interrupts import Lookout
from tt_ray.training.metrics_log import Logbook
from tt_ray.training.objective import Objective
from tt_ray.training.optim import build_optimizer, build_scheduler, clip_gradients, learning_rate
from tt_ray.training.parallelism import distribute, place, sync_gradients
from tt_ray.training.recorder import Read, Recorder, timed
from tt_ray.training.validation import validate, validate_checkpoint
from tt_ray.training.weight_average import average_note

_STEP_SEED = 6
Loss = Callable[[Outputs], tuple[Tensor, Tensor]]


def train(config: Config, data: Data, context: Context, until: int = 0) -> dict[str, Any]:
    """Trains from the newest intact checkpoint in the run folder, or from the start, to the end.

    Returns what result.json holds. Worker 0 writes metrics, checkpoints, the export and, last of all, result.json.
    With `until`, raises Interrupted("until") once that many epochs are done and more are to come.
    Raises NonFiniteLoss, and UserError when a checkpoint cannot be written or does not fit the configuration.
    """
    return Trainer(config, data, context, until).run()


class Trainer:
    """State of one worker's training."""

    def __init__(self, config: Config, data: Data, context: Context, until: int = 0) -> None:
        self.config, self.data, self.context = config, data, context
        device = context.device
        self.order = train_order(config, len(data.train), context.rank, context.world, data.train.labels)
        self.steps = config.train.epochs * self.order.steps_per_epoch
        self.stop = min(until * self.order.steps_per_epoch or self.steps, self.steps)
        self.teacher, dim = self._load_teacher()
        self.model = build_model(config, len(data.train.classes), dim)
        self.memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        self.ema = ModelEmaV3(self.model, decay=config.train.ema) if config.train.ema else None
        if config.train.compile:
            self.model.compile_backbone()
        self.net = distribute(self.model, config.run.strategy, device)
        if self.ema is not None:
            place(cast(TaughtClassifier, self.ema.module), config.run.strategy, device)
        self.optimizer = build_optimizer(config.optim, self.model)
        self.scheduler = build_scheduler(config.optim, self.optimizer, config.train.epochs, self.order.steps_per_epoch)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
        self.objective = self._build_objective()
        limit = config.train.max_batch_per_worker or config.train.batch_size
        self.parts = -(-max(self.order.shares) // limit)
        self.held_text = hold_targets(data.targets, config.text.on_device, device)
        self.weight = build_schedule(config.text.schedule, config.text.weight, config.train.epochs)
        self.mixing = build_mixing(config, len(data.train.classes))
        self.seconds, self.scores, self.warnings = 0.0, dict[str, float](), list[str]()
        self.first_step_at: float | None = None
        self.recorder = Recorder()
        self.storage = Storage.open(config.run.storage)
        self.keeper = Keeper(config.run_dir, self.storage, config.run.keep_checkpoints)
        self.beside = config.run.async_validation and context.has_others
        self.validations: list[tuple[dict[str, int], str, Callable[[bool], dict[str, float] | None]]] = []

    def _load_teacher(self) -> tuple[Teacher | None, int]:
        """The vision teacher, if there is one, and the size of what the text head is to reach."""
        config, data = self.config, self.data
        text_dim = data.targets.dim if data.targets else 0
        if not (config.teaches and config.teacher.model):
            return None, text_dim
        teacher, dim = load_teacher(config, data.train, self.context.device)
        if text_dim and dim != text_dim:
            raise UserError(
                f"text.loss {config.text.loss} multiplies the teacher's embedding with that of text, but {dim} and "
                f"{text_dim} dimensions differ: give a teacher that shares the encoder's space (CLIP's +projection)"
            )
        return teacher, text_dim or dim

    def _build_objective(self) -> Objective:
        order, train, statistics = self.order, self.data.train, None
        objective = Objective.of(self.config)
        if self.config.teaches and "means" in NEEDS.get(objective.loss, ()):
            assert self.data.targets is not None
            where = (self.context.device, order.rank, order.world)
            statistics = class_statistics(self.data.targets, train.labels, len(train.classes), *where)
        return objective._replace(
            shares=() if len(set(order.shares)) == 1 else order.shares,
            labelled=() if order.labelled is None else order.labelled_shares,
            statistics=statistics,
        )

    # --- a step ---------------------------------------------------------------------------------------------------

    def step(self, batch: Batch, step: int) -> Tensor:
        """One update; returns the columns STEP_COLUMNS, shape (5,), on the device. Does not wait for the device."""
        self.scheduler.step_update(step)
        images, labels, text = self.on_device(batch, step)
        weight = self.weight(step // self.order.steps_per_epoch)
        text, teacher = self.ask_teacher(images, text) if weight else (text, None)
        # All workers in parts, or none: where the model is sharded they meet in each.
        backward = self._backward_in_parts if self.parts > 1 else self._backward
        objective = partial(self.objective, labels=labels, text=text, weight=weight, teacher=teacher)
        parts = backward(images, objective, step)
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.model.parameters(), self.config.optim.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model)
        return torch.cat([parts, norm.detach().reshape(1)])

    def on_device(self, batch: Batch, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images, normalised, labels and text targets, mixed as configured."""
        data, device = self.config.data, self.context.device
        images = normalize(batch.images.to(device, non_blocking=True), data.mean, data.std)
        images = images.contiguous(memory_format=self.memory_format)
        labels = batch.labels.to(device, non_blocking=True)
        text = None if batch.text is None else batch.text.to(device, non_blocking=True)
        if self.held_text is not None:
            text = self.held_text[batch.rows]
        if self.mixing is not None:
            images, labels, text = self.mixing.mix(images, labels, text, self.config.train.seed, step)
        return images, labels, text

    def ask_teacher(self, images: Tensor, text: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """What the text head is to reach, and what else the objective compares with; the teacher sees mixed images."""
        if self.teacher is None:
            return text, None
        target = torch.cat([self.teacher(chunk) for chunk in images.tensor_split(self.parts)])
        return (target, None) if text is None and self.model.text_head is not None else (text, target)

    def _backward(self, images: Tensor, objective: Loss, step: int) -> Tensor:
        self._seed(step, 0)
        with self.autocast():
            outputs = self.net(images)
        loss, parts = objective(outputs)
        self.scaler.scale(loss).backward()
        return parts

    def _backward_in_parts(self, images: Tensor, objective: Loss, step: int) -> Tensor:
        """The same gradient in less memory: contrastive losses need all features, so those come first, without a graph.

        Each part then runs again, with the same random numbers, to carry its share of the gradient back (GradCache,
        arXiv 2101.06983). Batch-norm statistics see every part twice.
        """
        chunks = images.tensor_split(self.parts)
        pooled: list[Tensor] = []
        for number, chunk in enumerate(chunks):
            self._seed(step, number)
            with torch.no_grad(), self.autocast():
                pooled.append(self.net(chunk).features)
        with self.autocast():
            outputs = self.model.heads(torch.cat(pooled).requires_grad_())
        loss, parts = objective(outputs)
        roots = [root for root in (outputs.logits, outputs.text, outputs.scalars) if root is not None]
        grads = torch.autograd.grad(self.scaler.scale(loss), roots)
        start = 0
        for number, chunk in enumerate(chunks):
            last = number == len(chunks) - 1
            self._seed(step, number)
            sync_gradients(self.net, last)
            with self.autocast():
                again: Outputs = self.net(chunk)
            heads = [root for root in (again.logits, again.text) if root is not None]
            part = [grad[start : start + len(chunk)] for grad in grads[: len(heads)]]
            if last and again.scalars is not None:
                heads, part = [*heads, again.scalars], [*part, grads[-1]]
            torch.autograd.backward(heads, part)
            start += len(chunk)
        return parts

    def _seed(self, step: int, part: int) -> None:
        seed = seed_of(self.config.train.seed, _STEP_SEED, step, self.context.rank, part)
        # torch.manual_seed seeds every kind of device there is, which takes ten times as long.
        torch.default_generator.manual_seed(seed)
        if self.context.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def autocast(self) -> torch.autocast:
        """Mixed precision as configured."""
        return mixed_precision(self.context.device, self.config.train.precision)

    # --- a run ----------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """From the newest intact checkpoint to result.json."""
        config, context = self.config, self.context
        start = self._restore()
        loaded_targets = None if self.held_text else self.data.targets
        batches = TrainBatches(self.data.train, loaded_targets, self.order, config)
        held_out = EvalBatches(self.data.val, config, context.rank, context.world)
        cuda = context.device.type == "cuda"
        loaded = load(batches, range(start, self.stop), config.data.num_loaders, pin=cuda)
        with Logbook(config.run_dir, start) if context.rank == 0 else nullcontext() as book:
            if book is not None and start and not book.validated(start):
                self._validate_beside(self.keeper.folder / checkpoint_name(start))
            self._steps(start, loaded, held_out, book)
        return self._finish()

    def _steps(self, start: int, loaded: Iterator[Batch], held_out: EvalBatches, book: Logbook | None) -> None:
        run, per_epoch = self.config.run, self.order.steps_per_epoch
        began, lookout = time.perf_counter() - self.seconds, Lookout(self.context, start)
        self.model.train()
        for step, batch, waited in timed(loaded, start):
            self.recorder.add(step, self.step(batch, step), waited, self.order.batch_size)
            self.first_step_at = self.first_step_at or time.time()
            done = step + 1
            self.seconds = time.perf_counter() - began
            due = done % (run.checkpoint_every or per_epoch) == 0 or done == self.stop or self._due_beside(done)
            logs = due or done % run.log_every == 0 or done % per_epoch == 0
            request = self._read(book) if logs or lookout.look(done) else ""
            if done % per_epoch == 0:
                self._validate(held_out, done, book)
            if request or due:
                self._checkpoint(done, book)
            if book is not None and book.validated(done):
                self.context.validated(done // per_epoch, self.scores, self.keeper.wait)
            if request and done < self.steps:
                self._settle()
                raise Interrupted(request, done)
        self._settle()
        if self.stop < self.steps:
            raise Interrupted("until", self.stop)
        self._collect(book, wait=True)
        if not self.scores:  # resumed after the last step, from a checkpoint without a validation
            self._validate(held_out, self.steps, book)

    def _read(self, book: Logbook | None) -> str:
        """Writes rows and shows progress; gives what a runner asks for. Raises NonFiniteLoss, and UserError when a
        checkpoint could not be written."""
        requested, problem = self.context.requested(), self.keeper.problem()
        read = self.recorder.read([*(requested == request for request in REQUESTS), bool(problem)])
        if read is None:
            return ""
        if bad := read.not_finite(self.scaler.is_enabled()):
            raise NonFiniteLoss(f"{bad}; {self.keeper.last_good()}")
        if read.flags[-1]:
            raise UserError(f"{problem or 'worker 0 cannot write its checkpoint'}; {self.keeper.last_good()}")
        if book is not None:
            self._write(book, read)
        return next((request for request, flag in zip(REQUESTS, read.flags, strict=False) if flag), "")

    def _write(self, book: Logbook, read: Read) -> None:
        per_epoch, rows = self.order.steps_per_epoch, list[dict[str, float]]()
        for step, row in enumerate(read.rows, read.first):
            row = {"step": step, "epoch": step // per_epoch, "text_weight": self.weight(step // per_epoch)} | row
            rows.append({key: value for key, value in row.items() if math.isfinite(value)})
        rate = read.images_per_s
        rows[-1] |= {"lr": learning_rate(self.optimizer), "images_per_s": rate}
        rows[-1] |= {"data_wait_share": read.data_wait_share, "workers": self.context.world}
        book.steps(rows)
        done = read.first + len(rows)
        eta = (self.steps - done) * self.order.batch_size / rate
        top1 = self.scores.get("top1")
        self.context.progress(Standing(done, self.steps, done // per_epoch, rate, eta, rows[-1]["loss"], top1))
        self._collect(book)

    def _validate(self, held_out: EvalBatches, done: int, book: Logbook | None) -> None:
        epoch, last = done // self.order.steps_per_epoch, done == self.steps
        if (epoch % self.config.train.eval_every or self.beside) and not last:
            return
        start = time.perf_counter()
        model = self.model if self.ema is None else self.ema.module
        self.scores = validate(model, held_out, self.config, self.context.device, self.autocast())
        if last and not math.isfinite(self.scores["val_loss"]):
            raise NonFiniteLoss(f"the validation loss is not finite after step {done - 1}; {self.keeper.last_good()}")
        if book is not None:
            book.validation({"step": done, "epoch": epoch, **self.scores})
        self.recorder.watch.skip(time.perf_counter() - start)

    def _checkpoint(self, done: int, book: Logbook | None) -> None:
        """Copies the state; worker 0 writes it while training goes on, and validates it elsewhere if it should."""
        self.keeper.wait()
        state = snapshot(self.model, self.optimizer, self.ema and self.ema.module)
        if bad := state.not_finite():  # the last update may have overflowed, by a learning rate without measure
            raise NonFiniteLoss(f"weights ({bad}) are not finite after step {done - 1}; {self.keeper.last_good()}")
        if book is None:
            return
        book.flush()
        position = Position(done, done // self.order.steps_per_epoch, done * self.order.batch_size)
        extra = {
            "seconds": self.seconds,
            "scores": self.scores,
            "scaler": self.scaler.state_dict(),
            "classes": self.data.train.classes,
        }
        self.keeper.save(position, state, extra, self._validate_beside)

    def _due_beside(self, done: int) -> bool:
        """Whether the state after `done` steps is to be validated elsewhere, which takes a checkpoint of it."""
        epoch, rest = divmod(done, self.order.steps_per_epoch)
        return self.beside and not rest and epoch % self.config.train.eval_every == 0 and done != self.steps

    def _validate_beside(self, checkpoint: Path) -> None:
        """Called by the keeper's thread when a checkpoint is complete."""
        step = step_of(checkpoint)
        if not self._due_beside(step):
            return
        epoch = step // self.order.steps_per_epoch
        self.keeper.in_use.add(checkpoint.name)
        answer = self.context.beside(validate_checkpoint, self.config.to_dict(), str(checkpoint))
        self.validations.append(({"step": step, "epoch": epoch}, checkpoint.name, answer))

    def _collect(self, book: Logbook | None, wait: bool = False) -> None:
        """Writes down the validations that have come back; one that failed is no reason to end the training."""
        while self.validations and book is not None:
            where, name, answer = self.validations[0]
            try:
                scores = answer(wait)
            except Exception as error:
                scores = {}
                self.warnings.append(f"validation after step {where['step']} failed: {type(error).__name__}")
            if scores is None:
                return
            self.validations.pop(0)
            self.keeper.in_use.discard(name)
            if scores:
                self.scores = self.scores if wait else scores
                book.validation({**where, **scores})

    def _settle(self) -> None:
        """Waits for the last checkpoint; raises UserError on all workers when it could not be written."""
        self.keeper.wait()
        problem = self.keeper.problem()
        if sum_over_workers(torch.tensor(float(bool(problem)), device=self.context.device)):
            raise UserError(f"{problem or 'worker 0 cannot write its checkpoint'}; {self.keeper.last_good()}")

    def _restore(self) -> int:
        path, problems = self.keeper.agree(self.context.rank, self.context.device)
        self.warnings += [f"{problem}; went on from {path.name if path else 'the start'}" for problem in problems]
        if path is None:
            return 0
        position, extra = load_checkpoint(path, self.model, self.optimizer, self.ema and self.ema.module)
        self.scaler.load_state_dict(extra["scaler"])
        self.seconds, self.scores = extra["seconds"], extra["scores"]
        return position.step

    def _finish(self) -> dict[str, Any]:
        """Exports and writes result.json, whose presence means that the run is complete."""
        config = self.config
        result = {
            **self.scores,
            "steps": self.steps,
            "epochs": config.train.epochs,
            "train_seconds": self.seconds,
            "first_step_at": self.first_step_at,
            "notes": [*self.data.notes, *self.warnings, *filter(None, [average_note(config.train.ema, self.steps)])],
        }
        if self.context.rank == 0:
            run_dir = config.run_dir
            path, _ = self.keeper.newest()
            assert path is not None, "the last checkpoint has been written"
            write_export(path, run_dir / "export")
            # Last: its presence says that everything else is there.
            with new_file(run_dir / "result.json") as partial:
                partial.write_text(json.dumps(result, indent=2))
            for name in ("export", "metrics.jsonl", "tensorboard", "result.json"):
                self.keeper.push(run_dir / name)
        return result
