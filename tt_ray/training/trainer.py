"""The only training loop. It knows no Ray: it talks to its runner through a Context."""

import json
import math
import time
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from tt_ray.config import Config
from tt_ray.data.loader import Batch, EvalBatches, TrainBatches, fits_in_memory, load, loader_processes
from tt_ray.data.loader_processes import start_server
from tt_ray.data.prepare import Data
from tt_ray.io.checkpoint_folder import checkpoint_name
from tt_ray.io.files import new_file
from tt_ray.io.provenance import versions
from tt_ray.io.storage import Storage
from tt_ray.models.device_profile import precision_note
from tt_ray.models.export import write_export
from tt_ray.terminal.errors import Interrupted, NonFiniteLoss
from tt_ray.terminal.progress import Standing
from tt_ray.training.async_validation import AsyncValidations
from tt_ray.training.checkpoint import Position, load_checkpoint
from tt_ray.training.checkpoint_manager import CheckpointManager
from tt_ray.training.collectives import buffers_from_worker_0, from_worker_0, sum_over_workers
from tt_ray.training.context import REQUESTS, Context
from tt_ray.training.interrupts import Interrupts
from tt_ray.training.metrics_log import LoaderWatch, MetricsLog, Reading, StepMetrics, timed
from tt_ray.training.optim import learning_rate
from tt_ray.training.prefetch import augments_on, finished_ahead
from tt_ray.training.samples import first_of, samples
from tt_ray.training.snapshot import HostMemory, snapshot
from tt_ray.training.step import Learner
from tt_ray.training.tracker import Tracker
from tt_ray.training.validation import validate
from tt_ray.training.weight_average import average_note


def train(config: Config, data: Data, context: Context, until: int = 0) -> dict[str, Any]:
    """Trains to the end from the newest intact checkpoint in the run folder, or from the start.

    Worker 0 writes metrics, checkpoints, the export and, last of all, result.json.

    Args:
        config: The run.
        data: Both splits and the text targets.
        context: The runner.
        until: Stop after so many epochs, where more are to come; 0 trains to the end.

    Returns:
        What result.json holds.

    Raises:
        Interrupted: A runner has asked for it, or `until` epochs are done; there is a checkpoint.
        NonFiniteLoss: A loss, gradient or weight is infinite or NaN.
        UserError: A checkpoint cannot be written, or does not fit the configuration.
    """
    return Trainer(config, data, context, until).run()


class Trainer(Learner):
    """One worker's run: its steps, and what happens between them."""

    def __init__(self, config: Config, data: Data, context: Context, until: int = 0) -> None:
        self.loaders = LoaderWatch(loader_processes(config.data.num_loaders, context.device.type == "cuda"))
        if self.loaders.processes and not fits_in_memory(data.train, config):
            start_server()  # its imports take seconds, while the model is built
        super().__init__(config, data, context)
        self.steps = config.train.epochs * self.order.steps_per_epoch
        self.stop = min(until * self.order.steps_per_epoch or self.steps, self.steps)
        self.seconds, self.scores, self.warnings = 0.0, dict[str, float](), list[str]()
        self.warnings += filter(None, [precision_note(context.device, config.train.precision)])
        self.first_step_at: float | None = None
        self.metrics = StepMetrics()
        self.checkpoints = CheckpointManager(
            config.run_dir, Storage.open(config.run.storage), config.run.keep_checkpoints
        )
        self.memory = HostMemory()
        self.validations = AsyncValidations(config, context, self.checkpoints, self.order.steps_per_epoch)

    def run(self) -> dict[str, Any]:
        """Trains from the newest intact checkpoint to result.json."""
        config, context = self.config, self.context
        start = self._restore()
        loaded_targets = None if self.text_teacher.held else self.data.targets
        on_device = augments_on(context.device, config.data)
        batches = TrainBatches(self.data.train, loaded_targets, self.order, config, on_device)
        held_out = EvalBatches(self.data.val, config, context.rank, context.world)
        loaded = load(batches, range(start, self.stop), config, context.device)
        loaded = finished_ahead(loaded, context.device, config.data)
        validated = load(held_out, range(len(held_out)), config, context.device, kept=True)
        with ExitStack() as files:
            log = tracker = None
            if context.rank == 0:
                tracker = files.enter_context(Tracker(config))
                log = files.enter_context(MetricsLog(config.run_dir, start, [context.measured, tracker.show]))
            if log is not None and start and not log.validated(start):
                # The checkpoint was written, but the command ended before its validation came back.
                self.validations.start(self.checkpoints.folder / checkpoint_name(start))
            self._steps(start, loaded, validated, log)
            if tracker is not None:
                tracker.summarise({**self.scores, "train_seconds": self.seconds})
        if tracker is not None and tracker.problem:
            self.warnings.append(tracker.problem)
        return self._finish()

    def _steps(self, start: int, loaded: Iterable[Batch], held_out: Iterable[Batch], log: MetricsLog | None) -> None:
        """All steps from `start` on. `log` is None on all workers but 0.

        Whatever is decided here is decided alike on all workers, from the step's number or from an exchange: each
        branch has collectives of its own, and a worker that took another one would wait forever.
        """
        run, per_epoch = self.config.run, self.order.steps_per_epoch
        began, interrupts = time.perf_counter() - self.seconds, Interrupts(self.context, start)
        self.model.train()
        for step, batch, waited in timed(loaded, start):
            if step == 0 and log is not None:  # once in a run, however often it is interrupted
                log.show_samples(partial(samples, self.config, self.data, first_of(batch)))
            self.metrics.add(step, self.step(batch, step), waited, self.order.batch_size)
            self.first_step_at = self.first_step_at or time.time()
            done = step + 1
            self.seconds = time.perf_counter() - began
            ends_epoch = done % per_epoch == 0
            saves = done % (run.checkpoint_every or per_epoch) == 0 or done == self.stop or self.validations.due(done)
            # 1. Metrics first: a loss that is not finite must end the run before it is validated or saved.
            reads = saves or ends_epoch or done % run.log_every == 0 or interrupts.look(done)
            request = self._read(log) if reads else ""
            # 2. Then the validation, so that the checkpoint holds its scores and its row is on disk before it.
            if ends_epoch:
                self._validate(held_out, done, log)
            # 3. Then the checkpoint, which a request needs whatever the step.
            if saves or request:
                self._checkpoint(done, log)
            # 4. The runner hears of scores last: it may end the run at once, and waits for the checkpoint if it does.
            if log is not None and log.validated(done):
                self.context.validated(done // per_epoch, self.scores, self.checkpoints.kept)
            if request and done < self.steps:
                self._settle()
                raise Interrupted(request, done)
        self._settle()
        if self.stop < self.steps:
            raise Interrupted("until", self.stop)
        self._collect(log, wait=True)
        if not self.scores:  # resumed after the last step, from a checkpoint without a validation
            self._validate(held_out, self.steps, log)

    def _read(self, log: MetricsLog | None) -> str:
        """Writes rows and shows progress.

        Returns:
            What a runner asks for, the same on all workers; empty where it is nothing.

        Raises:
            NonFiniteLoss: The loss or the gradient of a step is not finite, or a weight of the last checkpoint.
            UserError: A checkpoint could not be written.
        """
        requested, failed = self.context.requested(), self.checkpoints.failure() is not None
        reading = self.metrics.read([*(requested == request for request in REQUESTS), failed])
        if reading is None:
            return ""
        bad = reading.not_finite(self.scaler.is_enabled())
        if bad or reading.flags[-1]:
            raise self._end(bad or "")
        if log is not None:
            self._write(log, reading)
        return next((request for request, flag in zip(REQUESTS, reading.flags, strict=False) if flag), "")

    def _write(self, log: MetricsLog, reading: Reading) -> None:
        per_epoch, rows = self.order.steps_per_epoch, list[dict[str, float]]()
        for step, row in enumerate(reading.rows, reading.first):
            row = {
                "step": step,
                "epoch": step // per_epoch,
                "text_weight": self.text_teacher.weight(step // per_epoch),
            } | row
            rows.append({key: value for key, value in row.items() if math.isfinite(value)})
        rate = reading.images_per_s
        rows[-1] |= {"lr": learning_rate(self.optimizer), "images_per_s": rate}
        rows[-1] |= {"data_wait_share": reading.data_wait_share, "workers": self.context.world}
        log.steps(rows)
        done = reading.first + len(rows)
        eta = (self.steps - done) * self.order.batch_size / rate
        top1 = self.scores.get("top1")
        self.loaders.add(len(rows) * self.order.batch_size / rate, reading.data_wait_share)
        note = self.loaders.note
        self.context.progress(Standing(done, self.steps, done // per_epoch, rate, eta, rows[-1]["loss"], top1, note))
        self._collect(log)

    def _validate(self, held_out: Iterable[Batch], done: int, log: MetricsLog | None) -> None:
        epoch, last = done // self.order.steps_per_epoch, done == self.steps
        if (epoch % self.config.train.eval_every or self.validations.on) and not last:
            return
        start = time.perf_counter()
        model = self.model if self.ema is None else self.ema.module
        # Each worker's batch norms have seen its own images: scores are of the statistics that checkpoints hold.
        buffers_from_worker_0(model)
        self.scores = validate(model, held_out, self.config, self.context.device, self.autocast())
        if last and not math.isfinite(self.scores["val_loss"]):
            raise self._end(f"the validation loss is not finite after step {done - 1}")
        if log is not None:
            log.validation({"step": done, "epoch": epoch, **self.scores})
        self.metrics.watch.skip(time.perf_counter() - start)

    def _checkpoint(self, done: int, log: MetricsLog | None) -> None:
        """Copies the state; worker 0 writes it while training continues, and has it validated if that is due.

        Weights that the last update has made infinite are found by the thread that writes, before it does: training
        ends with the next reading, and has waited for nothing.
        """
        self.checkpoints.wait()  # one copy of the state in memory at a time
        state = snapshot(self.model, self.optimizer, self.ema and self.ema.module, self.memory)
        if log is None:
            return
        log.flush()  # the checkpoint must not know of steps whose rows are still in memory
        position = Position(done, done // self.order.steps_per_epoch, done * self.order.batch_size)
        extra = {
            "seconds": self.seconds,
            "scores": self.scores,
            "scaler": self.scaler.state_dict(),
            "precision": self.precision,
            "classes": self.data.train.classes,
        }
        self.checkpoints.save(position, state, extra, self.validations.start)

    def _collect(self, log: MetricsLog | None, wait: bool = False) -> None:
        """Takes over what validations elsewhere have found so far."""
        if log is None:
            return
        scores, warnings = self.validations.collect(log, wait)
        self.warnings += warnings
        # At the end the scores are those of the last step, which this worker has validated itself.
        self.scores = self.scores if wait else scores or self.scores

    def _settle(self) -> None:
        """Waits for the last checkpoint.

        Raises:
            NonFiniteLoss, UserError: It could not be written; on all workers.
        """
        self.checkpoints.wait()
        failed = self.checkpoints.failure() is not None
        if sum_over_workers(torch.tensor(float(failed), device=self.context.device)):
            raise self._end()

    def _end(self, cause: str = "") -> Exception:
        """The error to end with, as worker 0 knows it, on all workers, which must all call.

        Weights that were not finite at the last checkpoint come before what followed from them; `cause`, if there is
        one, before a disk that is full.
        """
        error: Exception | None = None
        if self.context.rank == 0:
            self.checkpoints.wait()
            failure = self.checkpoints.failure()
            if failure is None or (cause and not isinstance(failure, NonFiniteLoss)):
                failure = NonFiniteLoss(cause)
            error = type(failure)(f"{failure}; {self.checkpoints.last_good()}")
        error = from_worker_0(error)
        assert error is not None, "worker 0 has made it"
        return error

    def _restore(self) -> int:
        path, problems = self.checkpoints.agree(self.context.rank)
        self.warnings += [f"{problem}; resumed from {path.name if path else 'the start'}" for problem in problems]
        if path is None:
            return 0
        position, extra = load_checkpoint(path, self.model, self.optimizer, self.ema and self.ema.module)
        if (before := extra.get("precision", self.precision)) != self.precision:  # auto, on devices of another kind
            self.warnings.append(
                f"trained in {before} up to step {position.step}, and in {self.precision} from there on"
            )
        if extra["scaler"]:  # empty where losses were not scaled
            self.scaler.load_state_dict(extra["scaler"])
        self.seconds, self.scores = extra["seconds"], extra["scores"]
        return position.step

    def _finish(self) -> dict[str, Any]:
        """Exports and writes result.json, whose presence means that the run is complete."""
        config = self.config
        found = filter(None, [average_note(config.train.ema, self.steps), self.loaders.note])
        result = {
            **self.scores,
            "steps": self.steps,
            "epochs": config.train.epochs,
            "train_seconds": self.seconds,
            "precision": self.precision,
            "first_step_at": self.first_step_at,
            "versions": versions() if self.context.rank == 0 else {},
            "notes": [*self.data.notes, *self.warnings, *found],
        }
        if self.context.rank == 0:
            run_dir = config.run_dir
            path, _ = self.checkpoints.newest()
            assert path is not None, "the last checkpoint has been written"
            write_export(path, run_dir / "export")
            with new_file(run_dir / "result.json") as partial:
                partial.write_text(json.dumps(result, indent=2))
            # result.json last here too: a reader that finds it in the storage finds the rest.
            for name in ("export", "metrics.jsonl", "tensorboard", "result.json"):
                self.checkpoints.push(run_dir / name)
        return result
