"""Results of a search: results.parquet, best.yaml, plots, and a summary in Markdown."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tt_ray.config import Config
from tt_ray.io.files import new_file
from tt_ray.statistics import noise_of_best, plus_minus, t_interval
from tt_ray.statistics import spread as deviation
from tt_ray.tune.journal import Journal, Record
from tt_ray.tune.live_table import best_first, value_text
from tt_ray.tune.space import METRICS, Space, apply, identity

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

    def sentence(self) -> str:
        """Whether the margin is more than noise, in words."""
        gain = mean(self.gains)
        if not math.isfinite(gain):
            return f"There is no margin: a final training ended with {self.space.metric} that is no finite number."
        of = f"The margin (base - best, as lower {self.space.metric} is better)"
        of = "The margin" if self.space.mode == "max" else of
        if (ends := t_interval(self.gains)) is None:
            which = "one seed" if len(self.gains) < 2 else f"each of {len(self.gains)} seeds"
            return (
                f"{of} is {self._signed(gain)} with {which}, which says nothing about noise: pass more --final-seeds."
            )
        low, high = ends
        interval = f"95 % interval {self._signed(low)} to {self._signed(high)}, {len(self.gains)} seeds"
        text = f"{self._signed(gain)} ± {self.space.shown(deviation(self.gains) or 0.0)} ({interval})"
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
        values = [value_text(row["values"].get(path, "")) for path in space.domains]
        lines.append(f"| {row['epoch']} | {' | '.join(values)} |")
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
        values += [str(record.epoch), spread(_seeds(record, space), space)]
        lines.append(f"| {record.name} | {' | '.join(values)} |")
    return lines


class NoWorse(NamedTuple):
    """Finished configurations that cannot be called worse than the best one."""

    trials: list[Record]
    """The best one first."""
    worse: list[Record]
    """Those that can."""
    distance: float
    """What lies nearer to the best than this may be as good (of the most seeds, where their numbers differ)."""
    among: int
    """Configurations that were tried, those that have ended early included."""

    def told(self) -> str:
        of = len(self.trials) + len(self.worse)
        if of == 1:
            return "one trial alone has finished: there is nothing to compare it with"
        if not self.worse:
            return f"no trial of {of} can be called worse than the best"
        verb = "is" if len(self.worse) == 1 else "are"
        return f"{len(self.worse)} of {of} trials {verb} worse than the best, {len(self.trials) - 1} may be as good"


def no_worse(records: Sequence[Record], space: Space) -> NoWorse | None:
    """Which trials may be as good as the best; None where nothing shows the noise: one seed each, or all seeds alike.

    Only finished trials are compared, as others have trained for less, but what is noise depends on the number of all
    configurations that were tried: see `noise_of_best`. A configuration that was trained twice counts once.
    """
    tried: dict[str, Record] = {}
    for record in best_first(list(records), space):
        tried.setdefault(identity(space.without_idle(record.job()["values"])), record)
    done = [record for record in tried.values() if record.status == "done" and math.isfinite(_value(record, space))]
    distances = noise_of_best([_seeds(record, space) for record in done], len(tried))
    if distances is None:
        return None
    best = space.better(_value(done[0], space))
    near = [best - space.better(_value(each, space)) <= noise for each, noise in zip(done, distances, strict=True)]
    trials = [record for record, is_near in zip(done, near, strict=True) if is_near]
    worse = [record for record, is_near in zip(done, near, strict=True) if not is_near]
    return NoWorse(trials, worse, min(distances), len(tried))


def _value(record: Record, space: Space) -> float:
    return record.reports[-1][space.metric]


def _seeds(record: Record, space: Space) -> list[float]:
    return [row[space.metric] for row in record.reports[-1]["seeds"].values()]


def which_are_worse(records: Sequence[Record], space: Space) -> str:
    """What the search allows to say about its trials, in one sentence."""
    found = no_worse(records, space)
    if found is not None:
        return found.told()
    nothing = "nothing can be said about which trials differ"
    if all(len(record.seeds) < 2 for record in records):
        return (
            f"{nothing}: with one seed each, nothing shows how far a configuration is from itself (pass at least two "
            "--seeds)"
        )
    if not any(
        record.status == "done" and math.isfinite(_value(record, space)) for record in best_first([*records], space)
    ):
        return f"{nothing} before one has finished"
    return f"{nothing}: all seeds of each are equal, which shows no noise (are there enough images to validate on?)"


def _range_lines(space: Space, records: Sequence[Record]) -> list[str]:
    found = no_worse(records, space)
    lines = ["## Which trials may be as good as the best", ""]
    told = which_are_worse(records, space)
    told = f"{told[0].upper()}{told[1:]}."
    if found is None or len(found.trials) + len(found.worse) == 1:
        return [*lines, told, ""]
    lines += [
        f"{told} Up to {space.shown(found.distance)} from the best is noise, by the "
        f"spread over seeds and the range of {found.among} trials (Tukey's and Kramer's test): were all equal, any of "
        "them would be called worse in at most 5 % of searches. What is not worse need not be as good: more --seeds "
        "show smaller differences. Among those that may be as good:",
        "",
    ]
    for path in space.domains:
        values = [values[path] for record in found.trials if path in (values := record.job()["values"])]
        if not values:
            told = "not drawn"
        elif all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
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
        lines.append(which_are_worse(journal.of("search"), space))
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
