"""Validations of checkpoints elsewhere, while training continues (run.async_validation)."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tt_ray.config import Config
from tt_ray.io.checkpoint_folder import step_of
from tt_ray.training.checkpoint_manager import CheckpointManager
from tt_ray.training.context import Context
from tt_ray.training.metrics_log import MetricsLog
from tt_ray.training.validation import validate_checkpoint

Scores = dict[str, float]


class _Started(NamedTuple):
    step: int
    epoch: int
    checkpoint: str
    answer: Callable[[bool], Scores | None]


class AsyncValidations:
    """Starts a validation for each checkpoint at the end of an epoch that is due, and collects scores in order."""

    def __init__(self, config: Config, context: Context, checkpoints: CheckpointManager, steps_per_epoch: int) -> None:
        self.config, self.context, self.checkpoints, self.per_epoch = config, context, checkpoints, steps_per_epoch
        self.on = config.run.async_validation and context.has_others
        self._started: list[_Started] = []

    def due(self, done: int) -> bool:
        """Whether the state after `done` steps is validated elsewhere; that of the last step never is."""
        epoch, rest = divmod(done, self.per_epoch)
        last = done == self.config.train.epochs * self.per_epoch
        return self.on and not rest and epoch % self.config.train.eval_every == 0 and not last

    def start(self, checkpoint: Path) -> None:
        """Starts the validation of a complete checkpoint where it is due; called by the thread that writes it."""
        step = step_of(checkpoint)
        if not self.due(step):
            return
        # Before the task starts: it may run when the checkpoint is no longer among the newest, and must find it.
        self.checkpoints.in_use.add(checkpoint.name)
        answer = self.context.beside(validate_checkpoint, self.config.to_dict(), str(checkpoint), self.context.world)
        self._started.append(_Started(step, step // self.per_epoch, checkpoint.name, answer))

    def collect(self, log: MetricsLog, wait: bool = False) -> tuple[Scores, list[str]]:
        """Writes rows for the validations that have come back, or, with `wait`, for all.

        Returns:
            The newest scores (empty where none has come), and a warning for each validation that failed: that is no
            reason to end the training.
        """
        newest, warnings = Scores(), list[str]()
        while self._started:
            step, epoch, name, answer = self._started[0]
            try:
                scores = answer(wait)
            except Exception as error:
                scores = {}
                warnings.append(f"validation after step {step} failed: {type(error).__name__}")
            if scores is None:
                break
            self._started.pop(0)
            self.checkpoints.in_use.discard(name)
            if scores:
                newest = scores
                log.validation({"step": step, "epoch": epoch, **scores})
        return newest, warnings
