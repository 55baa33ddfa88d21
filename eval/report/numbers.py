"""Makes a report's numbers from rows and predictions: means, spreads, differences with intervals, ranks."""

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar, cast

import numpy as np

from eval.jobs.costs import Costs, read_costs
from eval.jobs.results import ResultRow, Table, read_predictions
from eval.protocols.registry import PROTOCOLS
from eval.report.content import Cell, CellKey, Counted, Difference, Failure, ModelOrigin, Report, Section
from eval.report.examples import Examples, read_examples
from eval.report.kept import Key
from tt_ray.bootstrap import METRICS, Ints, Shares, metric_of, paired_interval, share_right
from tt_ray.statistics import paired_differences, spread
from tt_ray.terminal.errors import UserError, nearest, some

BASELINES = ("baseline", "base")
# Points of per cent by which the stored metric may differ from the one of the stored predictions.
_TOLERANCE = 0.005
Progress = Callable[[str, int, int], None]
V = TypeVar("V", bound=Hashable)
Measured = tuple[Ints, Shares]
"""True classes of a task's test images, and how often a model was right on each, over seeds and draws, both (n,)."""


@dataclass
class _Index:
    """Rows, and what a report calls the things they are about."""

    models: dict[tuple[str, str], str]
    """Label by name and weights."""
    tasks: dict[tuple[str, int], str]
    """Label by name and version."""
    sections: dict[tuple[str, str], str]
    """Label by protocol and hash."""
    rows: list[ResultRow]
    """Rows of jobs that are done, the last one for each metric."""
    failed: list[ResultRow]
    """Jobs without a result."""
    notes: list[str] = field(default_factory=list[str])

    def model(self, row: ResultRow) -> str:
        return self.models[row.model, row.weights]

    def task(self, row: ResultRow) -> str:
        return self.tasks[row.task, row.task_version]

    def section(self, row: ResultRow) -> str:
        return self.sections[row.protocol, row.protocol_hash]


def build_report(out: Path, table: Table, baseline: str | None, progress: Progress) -> Report:
    """Makes the report's numbers of all results.

    Args:
        out: Folder of results, whose predictions are read.
        table: Rows of the folder.
        baseline: Model to compare the others with; None takes one of `BASELINES`, or else the first.
        progress: Called with a section's label, tasks done, and their number.

    Raises:
        UserError: `out` has no results, or the baseline is none of its models.
    """
    rows = [ResultRow(**row) for row in table.rows.to_pylist()]
    if not rows:
        hint = f" but {len(table.damaged)} damaged files, the first: {table.damaged[0]}" if table.damaged else ""
        raise UserError(f"{out} has no results{hint}; choose the folder that python -m eval wrote with --out")
    index = _index(rows)
    models = _order_models(index, baseline)
    sections = _sections(out, index, models, progress)  # adds to the notes of `index`
    examples = _examples(out, index, sections, models[0])  # so does this
    differences = [cell.difference for section in sections for cell in section.cells.values() if cell.difference]
    return Report(
        baseline=models[0],
        models=models,
        sections=sections,
        failures=tuple(_failure(row, index) for row in index.failed),
        damaged=tuple(table.damaged),
        notes=tuple(dict.fromkeys(index.notes)),
        sources=_origins(index, models),
        versions=_count(rows, lambda row: _flat(row.versions)),
        commands=_count(rows, lambda row: row.command),
        created=(min(row.created for row in rows), max(row.created for row in rows)),
        jobs=len({row.job for row in index.rows}),
        comparisons=sum(each.interval is not None for each in differences),
        marked=sum(each.mark != 0 for each in differences),
        costs=_costs(out, index, models),
        examples=examples,
    )


def _examples(out: Path, index: _Index, sections: Sequence[Section], baseline: str) -> Examples:
    rows: dict[Key, list[ResultRow]] = {
        (section.label, task, model): [] for section in sections for task in section.tasks for model in section.models
    }
    for row in sorted(index.rows, key=lambda row: (row.created, row.job)):
        rows[index.section(row), index.task(row), index.model(row)].append(row)
    return read_examples(out, rows, baseline, index.notes.append)


def _sections(out: Path, index: _Index, models: Sequence[str], progress: Progress) -> tuple[Section, ...]:
    """One section a protocol and recipe, with differences to the first model."""
    grouped: dict[str, list[ResultRow]] = defaultdict(list)
    for row in sorted(index.rows, key=_section_order):
        grouped[index.section(row)].append(row)
    sections: list[Section] = []
    for label, rows in grouped.items():
        section = _section(label, rows, index, models)
        sections.append(replace(section, cells=_compare(out, section, models[0], rows, index, progress)))
    return tuple(sections)


def _failure(row: ResultRow, index: _Index) -> Failure:
    return Failure(index.model(row), index.task(row), index.section(row), row.seed, row.reason, row.created)


def _index(rows: list[ResultRow]) -> _Index:
    """Labels are longer than names only where one name stands for several things; later results replace earlier."""
    done = [row for row in rows if row.status == "done"]
    last = {(*_work(row), row.metric): row for row in sorted(done, key=lambda row: (row.created, row.job))}
    finished = {_work(row) for row in done} | {_work(replace(row, weights="")) for row in done}
    failed = {_work(row): row for row in rows if row.status == "failed" and _work(row) not in finished}
    shown = [*last.values(), *failed.values()]
    models = _labels(((row.model, row.weights) for row in shown if row.weights), lambda weights: weights[:8])
    kept = [row for row in last.values() if math.isfinite(row.value)]
    notes = (
        [f"{len(done) - len(last)} values were computed again; the last ones count."] if len(last) < len(done) else []
    )
    unknown = sorted({f"{row.protocol}, {row.task}" for row in last.values() if not math.isfinite(row.value)})
    notes += [f"{place}: some metrics are no numbers; they are left out." for place in unknown]
    notes += doubts(kept)
    return _Index(
        {(row.model, ""): row.model for row in shown} | models,
        _labels(((row.task, row.task_version) for row in shown), lambda version: f"version {version}"),
        _labels(((row.protocol, row.protocol_hash) for row in shown), lambda digest: digest[:8]),
        kept,
        sorted(failed.values(), key=lambda row: (*_section_order(row), row.task, row.model, row.seed)),
        notes,
    )


def doubts(rows: Iterable[ResultRow]) -> list[str]:
    """Notes on how jobs ended: fits that did not converge, choices at the edge of their grid."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in {row.job: row for row in rows}.values():
        chosen = _object(row.chosen)
        path = chosen.get("path") or [[None]]
        if chosen.get("converged") is False:
            found[f"{row.protocol}: not all fits converged (raise max_iterations)"].append(
                f"{row.task} {row.model} seed {row.seed} (gradient {chosen.get('gradient', math.nan):.1e})"
            )
        if chosen.get("at_edge"):
            text = f"{row.task} {row.model} seed {row.seed} ({chosen.get('lr'):g})"
            found[f"{row.protocol}: the best rate is the lowest or highest (try more rates)"].append(text)
        if len(path) > 1 and chosen.get("C") in (path[0][0], path[-1][0]):
            text = f"{row.task} {row.model} seed {row.seed} (C {chosen['C']:.3g})"
            found[f"{row.protocol}: the best C is the lowest or highest (try more strengths)"].append(text)
    return [f"{what}: {some(sorted(where))}." for what, where in sorted(found.items())]


def _object(text: str) -> dict[str, Any]:
    """A JSON object; empty where it is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def _work(row: ResultRow) -> tuple[Any, ...]:
    """The work of a job, whatever its key."""
    return row.model, row.weights, row.task, row.task_version, row.protocol, row.protocol_hash, row.seed


def _labels(pairs: Iterable[tuple[str, V]], show: Callable[[V], str]) -> dict[tuple[str, V], str]:
    distinct = set(pairs)
    times = Counter(name for name, _ in distinct)
    return {(name, what): f"{name} ({show(what)})" if times[name] > 1 else name for name, what in distinct}


def _section_order(row: ResultRow) -> tuple[int, str, str]:
    known = list(PROTOCOLS)
    return (known.index(row.protocol) if row.protocol in known else len(known)), row.protocol, row.protocol_hash


def _order_models(index: _Index, baseline: str | None) -> tuple[str, ...]:
    """The baseline, then the others in the order in which commands name them. Raises UserError on unknown names."""
    rows = sorted([*index.rows, *index.failed], key=lambda row: (row.created, row.job))
    commands = list(dict.fromkeys(row.command for row in rows))
    names: dict[str, tuple[int, int, str]] = {}
    of = {index.model(row): row.model for row in rows}
    for label, name in of.items():
        places = [(number, command.find(f" {name}=")) for number, command in enumerate(commands)]
        first = min((place for place in places if place[1] >= 0), default=(len(commands), 0))
        names[label] = (first[0], first[1], label)
    ordered = sorted(names, key=lambda label: names[label])
    known = (label for name in BASELINES for label in ordered if of[label] == name)
    wanted = next(known, ordered[0]) if baseline is None else baseline
    if len(same := [label for label in ordered if of[label] == wanted]) > 1 and wanted not in ordered:
        raise UserError(
            f"{wanted!r} is the name of {len(same)} models, whose weights differ: choose {' or '.join(same)}"
        )
    if wanted not in ordered:
        raise UserError(f"no results of a model {wanted!r} to compare with; {nearest(wanted, ordered)}")
    return (wanted, *(label for label in ordered if label != wanted))


def _section(label: str, rows: Sequence[ResultRow], index: _Index, models: Sequence[str]) -> Section:
    """A section without differences."""
    grouped: dict[tuple[str, str, str], list[ResultRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.seed):
        grouped[index.task(row), index.model(row), row.metric].append(row)
    tasks = tuple(sorted({task for task, _, _ in grouped}))
    shown = tuple(model for model in models if any(model == other for _, other, _ in grouped))
    metrics = {task: _own_metric([row for row in rows if index.task(row) == task]) for task in tasks}
    cells: dict[CellKey, Cell] = {}
    others: dict[str, dict[CellKey, Cell]] = defaultdict(dict)
    for (task, model, metric), group in sorted(grouped.items()):
        place = cells if metric == metrics[task] else others[metric]
        values = [row.value for row in group]
        seeds = tuple(row.seed for row in group)
        place[task, model] = Cell(metric, fmean(values), spread(values), seeds, group[0].n)
    common = tuple(task for task in tasks if all((task, model) in cells for model in shown))
    for task in common:
        for model, rank in _ranks({model: cells[task, model].mean for model in shown}).items():
            cells[task, model] = replace(cells[task, model], rank=rank)
    first = rows[0]
    versions = {index.task(row): row.task_version for row in rows}
    return Section(first.protocol, first.protocol_hash, label, shown, tasks, versions, cells, dict(others), common)


def _own_metric(rows: Sequence[ResultRow]) -> str:
    """The metric that the task's authors define, where the protocol reports it."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    wanted = [row.task_metric for row in rows if row.task_metric in metrics]
    return wanted[0] if wanted else "top1" if "top1" in metrics else metrics[0]


def _ranks(means: dict[str, float]) -> dict[str, float]:
    """1 for the highest; equal means share the average of their ranks."""
    values = list(means.values())
    return {
        model: 1 + sum(other > mean for other in values) + (values.count(mean) - 1) / 2 for model, mean in means.items()
    }


def _compare(
    out: Path, section: Section, baseline: str, rows: Sequence[ResultRow], index: _Index, progress: Progress
) -> dict[CellKey, Cell]:
    """The section's cells with their differences to the baseline."""
    cells = dict(section.cells)
    for number, task in enumerate(section.tasks):
        progress(section.label, number, len(section.tasks))
        own = [row for row in rows if index.task(row) == task and row.metric == section.metric(task)]
        of = {model: [row for row in own if index.model(row) == model] for model in section.models}
        references: dict[tuple[int, ...], Measured | str] = {}
        for model in section.models:
            if model == baseline or (task, model) not in cells or (task, baseline) not in cells:
                continue
            second, place = cells[task, model], f"{section.label}, {task}"
            both = tuple(seed for seed in second.seeds if seed in cells[task, baseline].seeds)
            if both != second.seeds or both != cells[task, baseline].seeds:
                seeds = f"{_list(second.seeds)} against {_list(cells[task, baseline].seeds)} of {baseline}"
                what = f"the difference is over {_list(both)}" if both else "there is no difference"
                index.notes.append(f"{place}: {model} has seeds {seeds}; {what}.")
            if not both:
                continue
            reference, found = ([row for row in of[each] if row.seed in both] for each in (baseline, model))
            if both not in references:
                references[both] = _measure(out, reference)
            values, others = ({row.seed: row.value for row in side} for side in (found, reference))
            key = "\0".join([section.protocol, section.hash, task, baseline, model])
            difference = _difference(
                fmean(paired_differences(values, others)), second.metric, references[both], _measure(out, found), key
            )
            if difference.why:
                index.notes.append(f"{place}: no interval for {model}: {difference.why}.")
            cells[task, model] = replace(second, difference=difference)
    return cells


def _difference(value: float, metric: str, first: Measured | str, second: Measured | str, key: str) -> Difference:
    if isinstance(first, str):
        return Difference(value, None, first)
    if isinstance(second, str):
        return Difference(value, None, second)
    (labels, reference), (own_labels, shares) = first, second
    if not np.array_equal(labels, own_labels):
        return Difference(value, None, "the two were tested on different images")
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])
    return Difference(value, paired_interval(metric, labels, reference, shares, seed))


def _measure(out: Path, rows: Sequence[ResultRow]) -> Measured | str:
    """How often the jobs' predictions are right on each image, or why that is not known."""
    labels, shares = None, []
    for row in rows:
        if row.metric not in METRICS:
            return f"{row.metric} is not an average over images"
        try:
            found = read_predictions(out, row.job)
        except UserError as error:
            return str(error)
        if found is None:
            return f"job {row.job} kept no predictions"
        if labels is not None and not np.array_equal(labels, found.labels):
            return "its seeds were tested on different images"
        labels = found.labels
        shares.append(share_right(*found))
        if not abs(metric_of(row.metric, labels, shares[-1]) - row.value) < _TOLERANCE:
            return f"the predictions of job {row.job} do not reproduce its {row.metric}"
    return "it has no result" if labels is None else (labels, np.mean(shares, 0))


def _origins(index: _Index, models: Sequence[str]) -> tuple[ModelOrigin, ...]:
    """One a model and folder, in the order of the models."""
    rows = {row.job: row for row in [*index.rows, *index.failed]}.values()
    seconds: dict[tuple[str, str, str], float] = defaultdict(float)
    for row in rows:
        seconds[index.model(row), row.model_spec, row.weights] += row.seconds if row.seconds > 0 else 0
    return tuple(
        ModelOrigin(*key, value) for key, value in sorted(seconds.items(), key=lambda x: (models.index(x[0][0]), x))
    )


def _costs(out: Path, index: _Index, models: Sequence[str]) -> tuple[tuple[str, Costs], ...]:
    """Costs of each model that has some, in the models' order."""
    weights = {index.model(row): row.weights for row in [*index.rows, *index.failed] if row.weights}
    found = [(model, read_costs(out, weights[model])) for model in models if model in weights]
    return tuple((model, costs) for model, costs in found if costs is not None)


def _count(rows: Iterable[ResultRow], text: Callable[[ResultRow], str]) -> tuple[Counted, ...]:
    """Distinct texts with the number of jobs, the most frequent first."""
    jobs = {row.job: text(row) for row in rows}
    return tuple(Counted(*pair) for pair in sorted(Counter(jobs.values()).items(), key=lambda x: (-x[1], x[0])))


def _flat(versions: str) -> str:
    """JSON of packages and versions on one line, as people read it."""
    found = _object(versions)
    return ", ".join(f"{name} {found[name]}" for name in sorted(found)) or versions


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
