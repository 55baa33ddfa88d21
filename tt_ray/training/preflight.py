"""Checks and preparations before workers start: data, embedding store, model; imports no torch unless it must."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from tt_ray.config import Config
from tt_ray.config.idle import note_on_warm_up, notes_on_idle_fields
from tt_ray.io.storage import Storage
from tt_ray.terminal.progress import Display
from tt_ray.training.run_folder import has_checkpoint, start_run, starts_over
from tt_ray.training.same_data import check_data, keep_data, record_data
from tt_ray.training.tracker import check_tracker
from tt_ray.training.weight_average import average_note

if TYPE_CHECKING:  # it imports Arrow's Parquet, which not every command needs
    from tt_ray.embeddings.ensure import Embed


@dataclass(frozen=True)
class Prepared:
    """A run's data, as far as the driver knows them before workers start."""

    classes: int
    store: Path | None
    record: pa.Table
    """The record of the run's data, as `record_data` returns it."""
    notes: list[str]
    """Notes for the start, once nothing more can be refused: fields and data that do nothing, what is too short."""

    def check(self, config: Config, resumes: bool) -> list[str]:
        """Compares the data with those that a resumed run was begun on.

        Returns:
            Notes for the summary.

        Raises:
            UserError: The data differ, and run.accept_changed_data is false.
        """
        # Without a checkpoint nothing has been learned from the earlier data.
        if not (resumes and has_checkpoint(config)):
            return []
        return check_data(config.run_dir, self.record, config.run.accept_changed_data)

    def keep(self, config: Config, notes: list[str]) -> None:
        """Writes the record into the run folder."""
        keep_data(config.run_dir, self.record, notes, Storage.open(config.run.storage))


def prepare(config: Config, display: Display | None = None, embed: "Embed | None" = None) -> Prepared:
    """Checks the data as far as possible before workers start, and makes the embedding store if it is missing.

    Args:
        config: The run.
        display: Shows the progress.
        embed: Embeds captions, as `ensure_store` takes it; None does so in this process.

    Raises:
        UserError: Images, labels, captions or embeddings cannot be read or do not fit the configuration, or the tracker
            of run.logger is not installed.
    """
    from tt_ray.data.prepare import check_images, find_store, join, left_out, open_images
    from tt_ray.data.sampling import train_order
    from tt_ray.embeddings.store import open_store

    check_tracker(config.run.logger)
    show = None if display is None else display.show
    train, val, notes = open_images(config, show)
    train_order(config, len(train), 0, config.workers[1])
    check_images(config, train, val, show)
    # Before captions are embedded, which can take hours: what the model cannot train on is refused by then.
    before = partial(try_model, config, len(train.classes))
    store = find_store(config, train, show, before, None if display is None else display.say, embed)
    data = join(config, train, val, None if store is None else open_store(store), notes)
    order = train_order(config, len(data.train), 0, config.workers[1])
    said = [*notes_on_idle_fields(config), *left_out(config, train, val)]
    short = (note_on_warm_up(config), average_note(config.train.ema, config.train.epochs * order.steps_per_epoch))
    said += [note for note in short if note]
    return Prepared(len(train.classes), store, record_data(config, data), said)


def try_model(config: Config, classes: int) -> None:
    """`check_model`, which is imported only now: torch and timm take seconds.

    Raises:
        UserError: The model cannot be trained with this configuration.
    """
    from tt_ray.training.trainable import check_model

    check_model(config, classes)


def opening(config: Config, resumes: bool, where: str = "") -> str:
    """The line that announces a run. Wrong labels are announced here: the summary would be too late."""
    noise = f"; {config.data.label_noise:.4g} of its training labels are made wrong (data.label_noise)"
    run = f"{'resuming' if resumes else 'starting'} run {config.run_place}{where}"
    if not resumes and not config.run.overwrite and starts_over(config):
        run += " again: with other settings it had written no checkpoint"
    return run + noise * bool(config.data.label_noise)


def begin_run(config: Config, prepared: Prepared, resumes: bool, display: Display, where: str = "") -> list[str]:
    """Says what is about to happen and begins the run folder; returns notes on changed data for the summary.

    Raises:
        UserError: A run would resume on other data, or the folder cannot be written.
    """
    notes = prepared.check(config, resumes)  # before start_run, which writes
    display.notes([*prepared.notes, *notes])
    display.say(opening(config, resumes, where))
    start_run(config)
    prepared.keep(config, notes)
    return notes
