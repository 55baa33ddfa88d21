"""Tables that `python -m eval` prints at its end."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.jobs.plan import Job
from eval.jobs.results import read_rows
from eval.tasks.vtab import group_means
from tt_ray.statistics import plus_minus


def print_summary(out: Path, jobs: Sequence[Job], metrics: Mapping[str, str]) -> None:
    """Prints a table for each protocol: tasks by models, mean and spread over seeds, and means of VTAB-1k's groups.

    Args:
        out: Folder of results.
        jobs: Jobs whose results are shown.
        metrics: Each task's own metric, by its name, in the order of rows.
    """
    keys = {job.key for job in jobs}
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in read_rows(out):
        if row.job in keys and row.status == "done" and row.metric == metrics[row.task]:
            values[row.protocol, row.task, row.model].append(row.value)
    models = list(dict.fromkeys(job.model for job in sorted(jobs, key=lambda job: job.model)))
    console = Console()
    for protocol in dict.fromkeys(job.protocol for job in jobs):
        grid = Table(f"{protocol} (%)", *models, box=None, pad_edge=False)
        for task in metrics:
            cells = [values.get((protocol, task, model), []) for model in models]
            if any(cells):
                grid.add_row(Text(task), *(plus_minus(cell, ".2f") or "-" for cell in cells))
        means = {
            model: group_means({task: fmean(cell) for task in metrics if (cell := values.get((protocol, task, model)))})
            for model in models
        }
        for label in dict.fromkeys(label for each in means.values() for label in each):
            grid.add_row(label, *(f"{each[label]:.2f}" if label in each else "-" for each in means.values()))
        console.print(grid)
