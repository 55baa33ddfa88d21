"""The content of a report, whatever its format: cells, sections by protocol, failures, where the numbers come from."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from eval.jobs.costs import Costs
from eval.report.examples import Examples
from eval.tasks.vtab import group_means
from tt_ray.bootstrap import Interval

# A bootstrap of fewer images than this that differ gives intervals that are too narrow: four images that all speak for
# one model would pass for significant, where McNemar's exact test says p = 0.125.
MIN_DIFFERING = 10
CellKey = tuple[str, str]
"""Task and model, as they are labelled."""


@dataclass(frozen=True)
class Difference:
    """A model's metric less the baseline's, paired by seed."""

    value: float
    """Mean over the seeds that both have."""
    interval: Interval | None
    """95 % interval; None where predictions do not allow one."""
    why: str = ""
    """Why there is no interval."""

    @property
    def mark(self) -> int:
        """1: significantly better, -1: worse, 0: neither."""
        if self.interval is None or self.interval.differing < MIN_DIFFERING:
            return 0
        return int(self.interval.low > 0) - int(self.interval.high < 0)


@dataclass(frozen=True)
class Cell:
    """One model on one task under one protocol."""

    metric: str
    mean: float
    std: float | None
    """Sample standard deviation over seeds; None for one seed."""
    seeds: tuple[int, ...]
    n: int
    """Test images."""
    difference: Difference | None = None
    """None for the baseline, and where the two have no seed in common."""
    rank: float | None = None
    """1 is best; ties share the average; None where some model has no result on the task."""


@dataclass(frozen=True)
class Section:
    """All results of one protocol."""

    protocol: str
    hash: str
    label: str
    models: tuple[str, ...]
    """The baseline first; those without any result are left out."""
    tasks: tuple[str, ...]
    versions: dict[str, int]
    """Versions of the tasks."""
    cells: dict[CellKey, Cell]
    """Cells of each task's own metric."""
    others: dict[str, dict[CellKey, Cell]]
    """Cells of other metrics, by name."""
    common: tuple[str, ...]
    """Tasks on which every model has a result: what averages are about."""

    def shown_others(self) -> list[tuple[str, dict[CellKey, Cell]]]:
        """Other metrics, by name, without those that are spreads of another: these are for tables of all numbers."""
        return [(name, cells) for name, cells in sorted(self.others.items()) if not name.endswith("_std")]

    def metric(self, task: str) -> str:
        """The task's own metric, by which models are compared."""
        return next(cell.metric for (name, _), cell in self.cells.items() if name == task)

    def images(self, task: str) -> int:
        """Test images of the task."""
        return max(cell.n for (name, _), cell in self.cells.items() if name == task)

    def mean(self, model: str) -> float | None:
        """Mean over the common tasks."""
        return float(np.mean([self.cells[task, model].mean for task in self.common])) if self.common else None

    def rank(self, model: str) -> float | None:
        """Average rank over the common tasks."""
        ranks = [rank for task in self.common if (rank := self.cells[task, model].rank) is not None]
        return float(np.mean(ranks)) if ranks else None

    def group_means(self) -> dict[str, list[float]]:
        """Means over groups of VTAB-1k's tasks, as far as they are common ones, one for each model; by their labels."""
        found = [group_means({task: self.cells[task, model].mean for task in self.common}) for model in self.models]
        return {label: [each[label] for each in found] for label in found[0]}

    def marks(self, model: str) -> tuple[int, int] | None:
        """Numbers of tasks on which the model is significantly better and worse than the baseline.

        None where no task has an interval, as for the baseline itself, or beside a baseline without results.
        """
        own = [cell.difference for (_, name), cell in self.cells.items() if name == model and cell.difference]
        found = [difference.mark for difference in own if difference.interval is not None]
        return (found.count(1), found.count(-1)) if found else None

    def best(self, task: str) -> float | None:
        """The highest mean of the task."""
        means = [cell.mean for (name, _), cell in self.cells.items() if name == task]
        return max(means, default=None)


@dataclass(frozen=True)
class Failure:
    """A job without a result."""

    model: str
    task: str
    protocol: str
    seed: int
    reason: str
    created: str


class ModelOrigin(NamedTuple):
    """Where a model's numbers come from."""

    label: str
    spec: str
    weights: str
    seconds: float


class Counted(NamedTuple):
    text: str
    jobs: int


@dataclass(frozen=True)
class Report:
    """Everything that the formats show."""

    baseline: str
    models: tuple[str, ...]
    """Labels, the baseline first."""
    sections: tuple[Section, ...]
    failures: tuple[Failure, ...]
    damaged: tuple[str, ...]
    notes: tuple[str, ...]
    """Notes on single numbers: other seeds, no interval."""
    sources: tuple[ModelOrigin, ...]
    versions: tuple[Counted, ...]
    commands: tuple[Counted, ...]
    created: tuple[str, str]
    """Times of the first and the last job."""
    jobs: int = 0
    comparisons: int = 0
    """Number of differences with an interval."""
    marked: int = 0
    """Number of significant ones among these."""
    costs: tuple[tuple[str, Costs], ...] = ()
    """Labels and costs of the models whose costs have been counted."""
    examples: Examples = field(default_factory=Examples)
    """What is known of classes and single images."""

    @property
    def counts(self) -> list[tuple[int, str]]:
        """Numbers at the head of the page, and what they count."""
        tasks = {task for section in self.sections for task in section.tasks}
        things = {"models": self.models, "tasks": tasks, "protocols": self.sections}
        sizes = [(len(each), name) for name, each in things.items()]
        return [*sizes, (self.jobs, "jobs done"), (len(self.failures), "failed")]

    @property
    def dates(self) -> str:
        """When the first and the last job ended, to the minute."""
        return " to ".join(dict.fromkeys(time[:16].replace("T", " ") for time in self.created))

    @property
    def remarks(self) -> list[str]:
        """Notes on single numbers, and files that were left out."""
        return [*self.notes, *(f"Left out: {text}" for text in self.damaged)]

    @property
    def task_versions(self) -> list[str]:
        """Every task with its version."""
        return sorted({f"{task} {section.versions[task]}" for section in self.sections for task in section.tasks})
