"""Runs of a comparison: trained where they are missing, and read."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from tt_ray.compare.arms import Arm, configure
from tt_ray.compare.table import FinishedRun
from tt_ray.config import Config
from tt_ray.terminal.errors import UserError
from tt_ray.training.run_folder import differences, read_result
from tt_ray.training.same_data import check_data, open_record


def train_arms(
    arms: Sequence[Arm],
    seeds: Sequence[int],
    epochs: Mapping[str, int],
    out: Path,
    train: "Callable[[Config], object] | None" = None,
) -> list[FinishedRun]:
    """Every arm with every seed for its epochs; those that are finished are kept. Their figures, in that order."""
    found: list[FinishedRun] = []
    pairs = [(seed, arm) for seed in seeds for arm in arms]
    for number, (seed, arm) in enumerate(pairs, 1):
        config = configure(arm, seed, epochs[arm.name], out)
        if not _finished(config):
            what = f"{arm.name}, seed {seed}, {epochs[arm.name]} epochs"
            print(f"run {number} of {len(pairs)}: {what}", file=sys.stderr, flush=True)
            (train or _train)(config)
        found.append(read_run(arm.name, seed, config, out))
    return found


def _finished(config: Config) -> bool:
    """Raises UserError where the run of that name was of another configuration, or trained on other data."""
    if not (config.run_dir / "result.json").exists():
        return False
    if changed := differences(Config.from_yaml(config.run_dir / "config.yaml"), config):
        raise UserError(f"finished run {config.run_dir} was trained with {changed}: choose another --out")
    # Runs of one table are trained one after the other, perhaps by several commands: all of them on the same data.
    check_data(config.run_dir, open_record(config), config.run.accept_changed_data)
    return True


def _train(config: Config) -> None:
    """Trains as `python -m tt_ray.train` does, in this process, which keeps Ray between runs."""
    from tt_ray.cluster.run import train_run

    train_run(config)


def read_run(arm: str, seed: int, config: Config, out: Path) -> FinishedRun:
    """Figures of a finished run below `out`."""
    result = read_result(config.run_dir)
    folder = str(config.run_dir.relative_to(out.absolute()))
    seconds = step_seconds(config.run_dir / "metrics.jsonl", config.train.batch_size)
    count, spent = (config.train.epochs, result["steps"]), result["train_seconds"]
    return FinishedRun(arm, seed, *count, result["top1"], seconds, spent, folder)


def step_seconds(metrics: Path, batch_size: int) -> float:
    """Median seconds of a step over the readings of metrics.jsonl, the first of which has the start in it.

    Steps of epochs with a teacher and of those without, where text.schedule has both, have a median of their own, and
    count by their number.
    """
    from tt_ray.training.metrics_log import read_rows  # brings torch, which takes seconds

    rows = [row for row in read_rows(metrics) if row["kind"] == "step"]
    taught = [row.get("text_weight", 0) > 0 for row in rows]
    rates = [(row["images_per_s"], kind) for row, kind in zip(rows, taught, strict=True) if "images_per_s" in row]
    if not rates:
        raise UserError(f"{metrics} has no images_per_s")
    rates = rates[1:] or rates
    medians = {kind: median(rate for rate, own in rates if own is kind) for kind in {own for _, own in rates}}
    counts = {kind: taught.count(kind) for kind in medians}
    return sum(batch_size / rate * counts[kind] for kind, rate in medians.items()) / sum(counts.values())
