"""The live table of a search: the best trials so far, what runs, how much is left."""

import math
import time

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tt_ray.terminal.progress import Display, LiveTable
from tt_ray.tune.journal import Journal, Record
from tt_ray.tune.space import Space, Values

_SHOWN = 10


class SearchTable(LiveTable):
    """A table on a terminal, an occasional line in a log; shows what `tt_ray.tune.runner` reports."""

    def __init__(self, journal: Journal, phase: str, of: int, epochs: int, space: Space, display: Display) -> None:
        self.journal, self.phase, self.of, self.epochs, self.space = journal, phase, of, epochs, space
        super().__init__(display)
        self.started = time.monotonic()
        self.before = sum(record.epoch for record in journal.of(phase))
        self.running: dict[str, float] = {}

    def began(self, record: Record) -> None:
        """A trial has started or resumed."""
        self.running[record.name] = time.monotonic()

    def changed(self, record: Record) -> None:
        """A trial has reported or ended."""
        if record.status != "running":
            self.running.pop(record.name, None)
        if record.status in ("failed", "died"):
            self.display.say(f"trial {record.name} failed: {record.reason}")

    def looked(self) -> None:
        """Refreshes the display."""
        records = self.journal.of(self.phase)
        ended = sum(record.ended for record in records)
        failed = sum(record.status in ("failed", "died") for record in records)
        best = best_first(records, self.space)
        detail = f"{failed} failed, {len(self.running)} running{self._left(records)}"
        if not self.display.console.is_terminal:
            if record := winner(records, self.space):
                value = self.space.shown(record.reports[-1][self.space.metric])
                detail += f", best {record.name} {self.space.metric} {value} after {record.epoch} epochs"
            self.display.show("trials" if self.phase == "search" else "final trainings", ended, self.of, detail)
            return
        head = Text(f"{self.phase}: {ended} of {self.of} trials ended, {detail}", style="bold")
        without = [record for record in records if record.name in self.running and record not in best]
        self.live.update(Group(head, table([*best[:_SHOWN], *without], self.space)), refresh=True)

    def _left(self, records: list[Record]) -> str:
        """Time left at the rate of epochs so far, if trials keep being ended early as often as up to now."""
        done = sum(record.epoch for record in records) - self.before
        if done < 1:
            return ""
        ended = [record.epoch for record in records if record.ended]
        each = sum(ended) / len(ended) if ended else self.epochs
        missing = each * self.of - sum(record.epoch for record in records)
        seconds = max(missing, 0) * (time.monotonic() - self.started) / done
        return f", {seconds:.0f} s left" if seconds < 120 else f", {seconds / 60:.0f} min left"


def best_first(records: list[Record], space: Space) -> list[Record]:
    """Trials with a value, best first: finished ones before the others, NaN last."""
    found = [(record, record.last(space.metric)) for record in records if record.status != "failed"]
    valued = [(record, value) for record, value in found if value is not None]

    def merit(pair: tuple[Record, float]) -> tuple[bool, bool, float]:
        return math.isfinite(pair[1]), pair[0].status == "done", space.better(pair[1])

    return [record for record, _ in sorted(valued, key=merit, reverse=True)]


def winner(records: list[Record], space: Space) -> Record | None:
    """The best trial; None before one has a finite value."""
    found = best_first(records, space)[:1]
    return found[0] if found and math.isfinite(found[0].reports[-1][space.metric]) else None


def table(records: list[Record], space: Space) -> Table:
    """A row for each trial, dimensions as columns."""
    short = [path.rsplit(".", 1)[-1] for path in space.domains]
    grid = Table("trial", *short, "epochs", space.heading, "", box=None, pad_edge=False)
    for record in records:
        value = record.last(space.metric)
        values: Values = record.job()["values"]
        cells = [value_text(values.get(path, "")) for path in space.domains]
        grid.add_row(record.name, *cells, str(record.epoch), "" if value is None else space.shown(value), record.status)
    return grid


def value_text(value: object) -> str:
    """A value of a configuration, as people read it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
