"""The comparison itself: trainings of the same epochs, of the same time, transfer, and the table after each part."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tt_ray.compare.arms import Arm
from tt_ray.compare.claims import claims
from tt_ray.compare.epoch_times import epochs_in_time, ratios_of_runs, ratios_of_turns, unsteady
from tt_ray.compare.runs import train_arms
from tt_ray.compare.table import steps_apart, summarise, write_table
from tt_ray.compare.transfer import image_intervals, transfer_averages
from tt_ray.config import Config
from tt_ray.training.run_folder import changed_paths


def compare(
    arms: Sequence[Arm],
    seeds: Sequence[int],
    out: Path,
    tasks: Sequence[str] = (),
    interleave: int = 0,
    train: "Callable[[Config], object] | None" = None,
) -> str:
    """Trains what is missing and writes the table after each part; returns it as Markdown. `train` runs one run."""
    epochs = arms[0].config.train.epochs
    same = train_arms(arms, seeds, {arm.name: epochs for arm in arms}, out, train)
    times = ratios_of_turns(arms, out, interleave, same) if interleave else ratios_of_runs(same)
    equal = {arm: epochs_in_time(epochs, median(ratios)) for arm, ratios in times.items()}
    notes = [*_notes(arms), *steps_apart(same), *([] if interleave else unsteady(times))]
    lines = summarise(same, [], times, equal, {})
    write_table(out, lines, claims(lines, {}), notes, same, [])
    timed = train_arms(arms, seeds, equal, out, train)
    transfer = transfer_averages(same, out, tasks) if tasks else {}
    lines = summarise(same, timed, times, equal, transfer)
    said = claims(lines, image_intervals(same, out, tasks) if tasks else {})
    return write_table(out, lines, said, notes, same, timed)


def _notes(arms: Sequence[Arm]) -> list[str]:
    """Notes on how each arm's configuration differs from the baseline's."""
    first, notes = arms[0], list[str]()
    for arm in arms[1:]:
        paths: list[str] = [path for path in changed_paths(first.config, arm.config) if path != "train.seed"]
        values = ", ".join(f"{path} {_show(arm.config.get(path))} ({_show(first.config.get(path))})" for path in paths)
        notes.append(f"{arm.name} differs from {first.name} in {values or 'nothing'}.")
    return notes


def _show(value: Any) -> str:
    return str(value) or "empty"
