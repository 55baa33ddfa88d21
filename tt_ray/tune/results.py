"""Results of a search: results.parquet, best.yaml, plots, and a summary in Markdown."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tt_ray.config import Config
from tt_ray.io.files import new_file
from tt_ray.statistics import plus_minus
from tt_ray.tune.journal import Journal, Record
from tt_ray.tune.live_table import best_first, value_text
from tt_ray.tune.space import METRICS, Space, apply

_SHOWN = 10


@dataclass(frozen=True)
class Margin:
    """The winner over the base recipe, on the split that the search has not seen, paired by seed."""

    best: list[float]
    base: list[float]
    space: Space

    @property
    def gains(self) -> list[float]:
        """Improvements, seed by seed: positive where the best configuration is better than the base."""
        sign = 1 if self.space.mode == "max" else -1
        return [sign * (best - base) for best, base in zip(self.best, self.base, strict=True)]

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % t interval of the mean gain; infinite with one seed."""
        if len(self.gains) < 2:
            return math.inf
        from scipy.stats import t

        return float(t.ppf(0.975, len(self.gains) - 1)) * stdev(self.gains) / math.sqrt(len(self.gains))

    def sentence(self) -> str:
        """Whether the margin is more than noise, in words."""
        gain = mean(self.gains)
        of = f"The margin (base - best, as lower {self.space.metric} is better)"
        of = "The margin" if self.space.mode == "max" else of
        if len(self.gains) < 2:
            text = self._signed(gain)
            return f"{of} is {text} with one seed, which says nothing about noise: pass more --final-seeds."
        low, high = gain - self.half_width, gain + self.half_width
        interval = f"95 % interval {self._signed(low)} to {self._signed(high)}, {len(self.gains)} seeds"
        text = f"{self._signed(gain)} ± {self.space.shown(stdev(self.gains))} ({interval})"
        if low <= 0 <= high:
            return f"{of} {text} is within noise: do not prefer the best configuration to the base recipe."
        if gain < 0:
            return f"{of} {text} is more than noise: the best configuration is worse than the base recipe."
        return f"{of} {text} is more than noise."

    def _signed(self, value: float) -> str:
        return ("+" if value >= 0 else "") + self.space.shown(value)


def margin(journal: Journal, space: Space, best: Record | None) -> Margin | None:
    """The margin so far; None until both sides of at least one seed have finished."""
    if best is None:
        return None
    pairs: list[tuple[float, float]] = []
    for record in journal.of("final"):
        name, _, seed = record.name.rpartition("-")
        base = journal.records.get(f"final-base-{seed}")
        if name != f"final-{best.name}" or base is None:
            continue
        values = [each.last(space.metric) if each.status == "done" else None for each in (record, base)]
        if values[0] is not None and values[1] is not None:
            pairs.append((values[0], values[1]))
    if not pairs:
        return None
    return Margin([pair[0] for pair in pairs], [pair[1] for pair in pairs], space)


def write_results(
    out: Path, space: Space, base: Config, journal: Journal, best: Record | None, notes: Sequence[str]
) -> str:
    """Writes all files, each whole or not at all; returns what the command prints."""
    with new_file(out / "results.parquet", durable=False) as partial:
        pq.write_table(results_table(journal, space), partial)
    plots: list[str] = []
    if best is not None:
        with new_file(out / "best.yaml", durable=False) as partial:
            best_config(base, space, best).to_yaml(partial)
        from tt_ray.tune.plots import write_plots

        plots = write_plots(out, space, journal.of("search"))
    with new_file(out / "summary.md", durable=False) as partial:
        partial.write_text(summary(space, journal, best, notes, plots))
    return _printed(out, space, journal, best, notes)


def results_table(journal: Journal, space: Space) -> pa.Table:
    """One row for each report of each seed, and one for each trial that failed, with its reason."""
    rows: list[dict[str, Any]] = []
    for record in journal.records.values():
        about = {"trial": record.name, "phase": record.phase, "status": record.status}
        for report in record.reports:
            common = {**about, "epoch": report["epoch"], "generation": report["generation"], "at": report["at"]}
            values = {path: report["values"].get(path) for path in space.domains}
            for seed, scores in report["seeds"].items():
                rows.append({**common, "seed": int(seed), "trial_seconds": report["seconds"], **scores, **values})
        if record.status in ("failed", "died"):
            values = {path: record.values.get(path) for path in space.domains}
            rows.append({**about, "epoch": record.epoch, "reason": record.reason, **values})
    names = ["trial", "phase", "status", "reason", "seed", "epoch", "generation", *METRICS, "trial_seconds", "at"]
    columns = {name: [row.get(name) for row in rows] for name in [*names, *space.domains]}
    types = {"trial": pa.string(), "phase": pa.string(), "status": pa.string(), "reason": pa.string()}
    types |= {"seed": pa.int64(), "epoch": pa.int64(), "generation": pa.int64()}
    types |= {name: pa.float64() for name in (*METRICS, "trial_seconds", "at")}
    arrays = {name: pa.array(_alike(values), types.get(name)) for name, values in columns.items()}
    return pa.table(arrays)


def _alike(values: list[Any]) -> list[Any]:
    """A column of one type: text where there are several."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or len(kinds) < 2:
        return [float(value) if kinds == {int, float} and value is not None else value for value in values]
    return [None if value is None else str(value) for value in values]


def best_config(base: Config, space: Space, best: Record) -> Config:
    """The content of best.yaml: trains on all training images, and validates on the recipe's own split."""
    config = apply(base, best.job()["values"])
    return config.override("data.val_share", 0.0).override("run.name", f"{space.name}_best")


def summary(space: Space, journal: Journal, best: Record | None, notes: Sequence[str], plots: Sequence[str]) -> str:
    """Markdown."""
    records = journal.of("search")
    counts = {status: sum(record.status == status for record in records) for status in _STATUS}
    told = ", ".join(f"{count} {_STATUS[status]}" for status, count in counts.items() if count)
    lines = [f"# Search: {space.name}", "", space.question, "", f"{len(records)} trials: {told or 'none'}.", ""]
    lines += [f"- {note}" for note in notes] + [""] * bool(notes)
    if best is not None:
        lines += ["## Best configuration", "", "| field | value |", "| --- | --- |"]
        lines += [f"| {path} | {value_text(value)} |" for path, value in best.job()["values"].items()]
        lines += ["", "`best.yaml` is this over the base recipe: `python -m tt_ray.train best.yaml`.", ""]
        lines += _schedule_lines(space, journal, best)
        lines += _final_lines(space, journal, best)
        lines += ["## Trials, on the selection split", "", *_trial_lines(space, best_first(records, space)), ""]
        lines += _range_lines(space, records)
    failed = [record for record in records if record.status in ("failed", "died")]
    if failed:
        lines += ["## Failed", "", *(f"- {record.name}: {record.reason} ({_values(record)})" for record in failed), ""]
    if plots:
        lines += ["## Plots", "", *(f"![{name}]({name})" for name in plots), ""]
    return "\n".join(lines)


def _schedule_lines(space: Space, journal: Journal, best: Record) -> list[str]:
    """The values that the best trial's weights were trained with, for population-based training."""
    rows = journal.lineage(best)
    if len({row["generation"] for row in best.reports}) < 2:
        return []
    lines = ["These are its last values. Its weights come from this schedule, which `best.yaml` does not repeat:", ""]
    lines += [f"| epoch | {' | '.join(space.domains)} |", "| --- " * (len(space.domains) + 1) + "|"]
    for row in rows:
        lines.append(f"| {row['epoch']} | {' | '.join(value_text(row['values'][path]) for path in space.domains)} |")
    return [*lines, ""]


_STATUS = {
    "done": "to their end",
    "stopped": "ended early by the scheduler",
    "failed": "failed",
    "died": "died",
    "running": "unfinished",
}


def _final_lines(space: Space, journal: Journal, best: Record) -> list[str]:
    found = margin(journal, space, best)
    lines = ["## Against the base recipe", ""]
    if found is None:
        return [*lines, "Not compared yet.", ""]
    lines += ["Trained on all training images, on the validation split that the search has not seen.", ""]
    lines += [f"| | {space.heading}, mean ± sd over seeds |", "| --- | --- |"]
    sides = (("base", found.base), (best.name, found.best))
    lines += [f"| {name} | {spread(values, space)} |" for name, values in sides]
    return [*lines, "", found.sentence(), ""]


def spread(values: Sequence[float], space: Space) -> str:
    """Mean and standard deviation."""
    return plus_minus(values, space.shown)


def _trial_lines(space: Space, records: Sequence[Record]) -> list[str]:
    lines = [f"| trial | {' | '.join(space.domains)} | epochs | {space.heading} |"]
    lines.append("| --- " * (len(space.domains) + 3) + "|")
    for record in records[:_SHOWN]:
        values = [value_text(record.job()["values"].get(path, "")) for path in space.domains]
        seeds = [row[space.metric] for row in record.reports[-1]["seeds"].values()]
        lines.append(f"| {record.name} | {' | '.join(values)} | {record.epoch} | {spread(seeds, space)} |")
    return lines


def noise(records: Sequence[Record], metric: str) -> float | None:
    """Standard deviation over seeds of a configuration's value, pooled over finished configurations."""
    variances: list[float] = []
    for record in records:
        seeds = [row[metric] for row in record.reports[-1]["seeds"].values()] if record.reports else []
        if record.status == "done" and len(seeds) > 1:
            variances.append(stdev(seeds) ** 2)
    return math.sqrt(mean(variances)) if variances else None


def good_trials(records: Sequence[Record], space: Space) -> tuple[list[Record], float] | None:
    """Trials whose mean is within noise of the best one's, and the distance that counts as noise.

    That is 2 standard errors of a difference of two means over seeds. None with one seed, which shows no noise.
    """
    sd = noise(records, space.metric)
    done = [record for record in best_first(list(records), space) if record.status == "done"]
    if sd is None or not done:
        return None
    distance = 2 * sd * math.sqrt(2 / len(done[0].seeds))
    values = [space.better(record.reports[-1][space.metric]) for record in done]
    return [record for record, value in zip(done, values, strict=True) if values[0] - value <= distance], distance


def _range_lines(space: Space, records: Sequence[Record]) -> list[str]:
    found = good_trials(records, space)
    if found is None:
        return []
    good, distance = found
    of = sum(record.status == "done" for record in records)
    lines = [f"## What does not matter: {len(good)} of {of} trials are within {space.shown(distance)} of the best", ""]
    lines += ["That is two standard errors of a difference, from the spread over seeds. Among them:", ""]
    for path in space.domains:
        values = [record.job()["values"][path] for record in good]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            told = f"{value_text(min(values))} to {value_text(max(values))}"
        else:
            told = ", ".join(dict.fromkeys(str(value) for value in values))
        lines.append(f"- {path}: {told}")
    return [*lines, ""]


def _values(record: Record) -> str:
    return ", ".join(f"{path} {value_text(value)}" for path, value in record.values.items())


def _printed(out: Path, space: Space, journal: Journal, best: Record | None, notes: Sequence[str]) -> str:
    lines = [*notes]
    if best is not None:
        value = space.shown(best.reports[-1][space.metric])
        values = ", ".join(f"{path} {value_text(each)}" for path, each in best.job()["values"].items())
        lines.append(f"best: {best.name} ({values}), {space.metric} {value} on the selection split")
        if unfinished := sum(not record.ended for record in journal.of("search")):
            lines.append(f"{unfinished} trials are unfinished: the best may still change")
        found = margin(journal, space, best)
        if found is not None:
            lines.append(f"base {spread(found.base, space)}, best {spread(found.best, space)} on the validation split")
            lines.append(found.sentence())
        lines.append(f"next: python -m tt_ray.train {shlex.quote(str(out / 'best.yaml'))}")
    failed = sum(record.status in ("failed", "died") for record in journal.of("search"))
    if failed:
        lines.append(f"{failed} trials failed, see the summary")
    return "\n".join([*lines, f"summary          {out / 'summary.md'}", f"all reports      {out / 'results.parquet'}"])
