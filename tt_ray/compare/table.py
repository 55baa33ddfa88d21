"""A comparison's table as Markdown, CSV and JSON."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from tt_ray.io.files import new_file
from tt_ray.statistics import Figure, figure

_PAPER = (
    "The paper's time per epoch over its baseline's: 1.03 for TextTeacher, 1.55 for online distillation from DINOv2-L "
    "(ImageNet, arXiv 2605.22098)."
)
_HOW = (
    "Mean ± sample standard deviation over seeds; in brackets the difference to {baseline}, paired by seed, and its "
    "95 % t interval. p values are of the paired t test, corrected over the arms of a column (Holm, Scandinavian "
    "Journal of Statistics 6, 1979). Time per epoch: median and quartiles of ratios to {baseline}. Same time: whole "
    "epochs, at least one, that fit in the time of {baseline}'s, with a schedule of that length."
)


@dataclass(frozen=True)
class FinishedRun:
    """Figures of one finished run."""

    arm: str
    seed: int
    epochs: int
    steps: int
    """In all: arms whose epochs are of more or fewer images have more or fewer of them."""
    top1: float
    """Per cent, on all validation images."""
    step_seconds: float
    """Median."""
    train_seconds: float
    """Wall-clock time, validations included."""
    folder: str
    """Run folder, relative to the comparison's."""

    @property
    def epoch_seconds(self) -> float:
        """Seconds of an epoch's steps."""
        return self.step_seconds * self.steps / self.epochs


class Line(NamedTuple):
    """One arm."""

    arm: str
    epochs: int
    top1: Figure
    time: float
    """Time per epoch over the baseline's."""
    times: tuple[float, ...]
    """The ratios of which `time` is the median."""
    epochs_same_time: int
    top1_same_time: Figure | None
    transfer: Figure | None


def summarise(
    same: Sequence[FinishedRun],
    timed: Sequence[FinishedRun],
    times: Mapping[str, Sequence[float]],
    epochs: Mapping[str, int],
    transfer: Mapping[tuple[str, int], float],
) -> list[Line]:
    """One line an arm, the baseline first.

    Args:
        same: runs of the same epochs, seeds outermost.
        timed: runs of the same time; empty before they are trained.
        times: ratios of times per epoch to the baseline's, by arm.
        epochs: epochs within the baseline's time, by arm.
        transfer: averages over tasks, by arm and seed; empty where there are none.
    """
    top1 = {(run.arm, run.seed): run.top1 for run in same}
    late = {(run.arm, run.seed): run.top1 for run in timed}
    lines: list[Line] = []
    for arm in dict.fromkeys(run.arm for run in same):
        figures = (arm_figure(values, arm, same[0].arm) if values else None for values in (late, transfer))
        first = arm_figure(top1, arm, same[0].arm)
        lines.append(Line(arm, same[0].epochs, first, median(times[arm]), tuple(times[arm]), epochs[arm], *figures))
    return lines


def steps_apart(runs: Sequence[FinishedRun]) -> list[str]:
    """A sentence for each arm that trains on more or fewer images than the first: `runs` are of the same epochs."""
    first, steps = runs[0].arm, {run.arm: run.steps for run in runs}
    return [
        f"{arm} takes {count:,} steps in {runs[0].epochs} epochs and {first} {steps[first]:,}: they train on different "
        "numbers of images. Images without a label are left out without a teacher, those without a caption with text."
        for arm, count in steps.items()
        if count != steps[first]
    ]


def by_seed(values: Mapping[tuple[str, int], float], arm: str) -> dict[int, float]:
    """An arm's values by seed, of values by arm and seed."""
    return {seed: value for (name, seed), value in values.items() if name == arm}


def arm_figure(values: Mapping[tuple[str, int], float], arm: str, baseline: str) -> Figure:
    """Mean, spread and, but for the baseline itself, paired difference of an arm, of values by arm and seed."""
    return figure(by_seed(values, arm), None if arm == baseline else by_seed(values, baseline))


def write_table(
    out: Path,
    lines: Sequence[Line],
    said: Sequence[str],
    notes: Sequence[str],
    same: Sequence[FinishedRun],
    timed: Sequence[FinishedRun],
) -> str:
    """Writes compare.md, .csv and .json and returns the first; `said` is what the table allows to say."""
    text = to_markdown(lines, said, notes)
    tree = {
        "arms": [_tree(line) for line in lines],
        "claims": list(said),
        "notes": [*notes, _PAPER],
        "runs_same_epochs": [asdict(run) for run in same],
        "runs_same_time": [asdict(run) for run in timed],
    }
    files = {"compare.md": text, "compare.csv": to_csv(lines), "compare.json": json.dumps(tree, indent=2) + "\n"}
    for name, content in files.items():
        with new_file(out / name) as partial:
            partial.write_text(content, encoding="utf-8")
    return text


def to_markdown(lines: Sequence[Line], said: Sequence[str], notes: Sequence[str]) -> str:
    """The table, what it allows to say, how to read it, and in what arms differ."""
    head = ["arm", f"top-1, {lines[0].epochs} epochs", "time per epoch", "top-1, same time", "epochs", "transfer"]
    rows = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for line in lines:
        low, _, high = quantiles(line.times, method="inclusive") if len(line.times) > 1 else [line.time] * 3
        span = f" ({low:.2f} - {high:.2f})" if high > low else ""
        cells = [line.arm, show(line.top1), f"{line.time:.2f}{span}", show(line.top1_same_time)]
        rows.append(f"| {' | '.join([*cells, str(line.epochs_same_time), show(line.transfer)])} |")
    remarks = [f"- {note}" for note in [*notes, _PAPER]]
    allowed = [f"- {text}" for text in said]
    return "\n".join([*rows, "", *allowed, "", _HOW.format(baseline=lines[0].arm), "", *remarks, ""])


def show(value: Figure | None) -> str:
    """Mean, spread, and in brackets the paired difference with its interval; a dash for None."""
    if value is None:
        return "—"
    text = f"{value.mean:.1f}" + ("" if value.std is None else f" ± {value.std:.1f}")
    if value.difference is None:
        return text
    if value.difference_low is None or value.difference_high is None:
        return f"{text} ({value.difference:+.1f})"
    return f"{text} ({value.difference:+.1f}, {value.difference_low:+.1f} to {value.difference_high:+.1f})"


def to_csv(lines: Sequence[Line]) -> str:
    """One line an arm, numbers in full."""
    stream = io.StringIO()
    trees = [{key: " ".join(map(str, v)) if isinstance(v, list) else v for key, v in _tree(l).items()} for l in lines]  # noqa: E741
    writer = csv.DictWriter(stream, list(trees[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(trees)
    return stream.getvalue()


def _tree(line: Line) -> dict[str, object]:
    """A flat dictionary: a figure's parts have its name in front."""
    tree: dict[str, object] = {"arm": line.arm, "epochs": line.epochs, "epochs_same_time": line.epochs_same_time}
    tree |= {"time_per_epoch": line.time, "time_per_epoch_ratios": list(line.times)}
    for name in ("top1", "top1_same_time", "transfer"):
        value: Figure | None = getattr(line, name)
        for part in Figure._fields:
            tree[f"{name}_{part}"] = None if value is None else getattr(value, part)
    return tree
