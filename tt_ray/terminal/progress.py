"""The live line of a command: rich's bar on a terminal, a plain line every few seconds in a log."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_LOG_INTERVAL_S = 10.0


@dataclass(frozen=True)
class Standing:
    """The progress of a run; sent every few steps."""

    step: int
    steps: int
    epoch: int
    images_per_s: float
    eta_s: float
    loss: float
    top1: float | None
    note: str = ""
    """What is to be said once; it stays in all that is sent later, of which any may be the one that is read."""


class Display:
    """Shows one activity at a time: `show` as often as there is news."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task, self._what, self._began, self._logged = None, "", 0.0, 0.0
        self._noted = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, what: str, done: int, of: int, detail: str = "") -> None:
        """Shows `done` of `of`; without `detail`, the rate so far and the time left."""
        now = time.monotonic()
        if what != self._what:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=of, detail="")
            self._what, self._began, self._logged = what, now, now
        if not detail and done:
            rate = done / max(now - self._began, 1e-9)
            detail = f"{rate:.0f}/s, {(of - done) / rate:.0f} s left"
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=of, detail=detail)
        if not self.console.is_terminal and now - self._logged > _LOG_INTERVAL_S:
            self._logged = now
            self.say(f"{what}: {done} of {of}{', ' * bool(detail)}{detail}")

    def hide(self) -> None:
        """Removes the line, for a table in its place."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task, self._what = None, ""

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def notes(self, sentences: Iterable[str]) -> None:
        """Prints a line for each note."""
        for sentence in sentences:
            self.say(f"note: {sentence}")

    def training(self, standing: Standing) -> None:
        """Shows the progress of a run."""
        top1 = "" if standing.top1 is None else f", top-1 {standing.top1:.1f} %"
        detail = f"{standing.images_per_s:.0f} images/s, {standing.eta_s:.0f} s left, loss {standing.loss:.3f}{top1}"
        if standing.note != self._noted:
            self._noted = standing.note
            self.notes([standing.note])
        self.show("training", standing.step, standing.steps, detail)


class LiveTable:
    """A table in the place of a display's line, while the body of the `with` statement runs; on terminals alone."""

    def __init__(self, display: Display) -> None:
        self.display = display
        self.live = Live(console=display.console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self.display.console.is_terminal:
            self.display.hide()
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()
