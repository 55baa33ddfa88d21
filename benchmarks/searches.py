"""What the recorded searches allow to say: their summaries and plots, written again from the rows of their trials.

    python -m benchmarks.searches

For after a change of the statistics or of a space; nothing is trained. A dimension that did nothing in a trial is left
out of it, as the space says by now, and trials that are the same after that count once.
"""

import json
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from benchmarks.step_cost import RESULTS
from tt_ray.io.files import new_file
from tt_ray.tune.journal import Journal
from tt_ray.tune.live_table import winner
from tt_ray.tune.plots import write_plots
from tt_ray.tune.results import summary
from tt_ray.tune.space import METRICS, Space, Values, find_space, identity


class Recorded(NamedTuple):
    """A search as its results.parquet has it."""

    space: Space
    journal: Journal
    repeated: int
    """Trials of a configuration that another trial had already."""


def recorded(folder: Path) -> Recorded:
    """The search whose results are in `folder`, which is called by its data and its space."""
    space = find_space(folder.name.partition("-")[2])
    reports: dict[str, dict[tuple[int, int], list[dict[str, Any]]]] = {}
    for row in pq.read_table(folder / "results.parquet").to_pylist():
        reports.setdefault(row["trial"], {}).setdefault((row["generation"], row["epoch"]), []).append(row)
    lines: list[dict[str, Any]] = []
    known, repeated = set[str](), 0
    for name, epochs in reports.items():
        first = next(iter(epochs.values()))[0]
        drawn: Values = {path: first[path] for path in space.domains if first[path] is not None}
        values = space.without_idle(drawn)
        if first["phase"] == "search":
            if identity(values) in known:
                repeated += 1
                continue
            known.add(identity(values))
        seeds = [row["seed"] for row in next(iter(epochs.values()))]
        lines.append({"kind": "trial", "trial": name, "phase": first["phase"], "values": values, "seeds": seeds})
        for (generation, epoch), rows in sorted(epochs.items()):
            own = {str(row["seed"]): {metric: row[metric] for metric in METRICS} for row in rows}
            means = {metric: fmean(each[metric] for each in own.values()) for metric in METRICS}
            about = {"epoch": epoch, "generation": generation, "at": rows[0]["at"], "values": values}
            report = {**means, **about, "seeds": own, "seconds": rows[0]["trial_seconds"]}
            lines.append({"kind": "report", "trial": name, "row": report})
        lines.append({"kind": "end", "trial": name, "status": first["status"], "reason": ""})
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return Recorded(space, Journal(Path(scratch)), repeated)


def main() -> None:
    """Writes summary.md and the plots of every recorded search."""
    for folder in sorted((RESULTS / "tune").iterdir()):
        space, journal, repeated = recorded(folder)
        records = journal.of("search")
        notes = [f"{repeated} more trials had a configuration of these, and are left out"] if repeated else []
        text = summary(space, journal, winner(records, space), notes, write_plots(folder, space, records))
        with new_file(folder / "summary.md", durable=False) as partial:
            partial.write_text(text, encoding="utf-8")
        print(folder / "summary.md")


if __name__ == "__main__":
    main()
