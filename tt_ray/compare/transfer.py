"""Transfer of a comparison's runs: linear probes by `python -m eval`, a process of its own, which imports tt_ray."""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tt_ray.bootstrap import METRICS, Ints, Paired, Shares, average_interval, metric_of, share_right
from tt_ray.compare.table import FinishedRun
from tt_ray.terminal.errors import UserError

_TOLERANCE = 0.005
"""Points of per cent by which a stored value may differ from that of the stored predictions."""


def check_tasks(tasks: Sequence[str], out: Path) -> None:
    """Checks the tasks' names by `python -m eval --check`, before hours go into the trainings.

    Raises:
        UserError: A name is refused, in the words of `python -m eval`.
    """
    done = subprocess.run([*_eval(tasks, out), "--check"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise UserError(last.removeprefix("error: ") or "python -m eval --check has failed")


def _eval(tasks: Sequence[str], out: Path) -> list[str]:
    options = ["--tasks", *tasks, "--protocols", "linear", "--out", str(_folder(tasks, out))]
    # By way of tt_ray: in a user's folder with an eval/ of its own, `-m eval` would run that one.
    return [sys.executable, "-m", "tt_ray", "eval", *options]


def _folder(tasks: Sequence[str], out: Path) -> Path:
    return out / "transfer" / "-".join(tasks)


def transfer_averages(runs: Sequence[FinishedRun], out: Path, tasks: Sequence[str]) -> dict[tuple[str, int], float]:
    """Average of linear probes over tasks, by arm and seed: a process of `python -m eval`, which imports tt_ray."""
    if (ray := sys.modules.get("ray")) is not None:
        ray.shutdown()  # where this process has started Ray, its memory is needed
    models = {_model(run): run for run in runs}
    specs = [f"{name}={out / run.folder}" for name, run in models.items()]
    folder = _folder(tasks, out)
    if subprocess.run([*_eval(tasks, out), "--models", *specs], stdout=subprocess.DEVNULL).returncode:
        raise RuntimeError(
            f"python -m eval has failed, see above; the same command continues (results so far: {folder})"
        )
    rows = _rows(folder)
    return {
        (run.arm, run.seed): fmean(row["value"] for (model, _), row in rows.items() if model == name)
        for name, run in models.items()
    }


def _model(run: FinishedRun) -> str:
    return f"{run.arm}@{run.seed}"


def _rows(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of the tasks' own metric, by model and task; of a model that was trained again the last."""
    rows = [row for file in (folder / "rows").glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    return {
        (row["model"], row["task"]): row
        for row in sorted(rows, key=lambda row: row["created"])
        if row["status"] == "done" and row["metric"] == row["task_metric"]
    }


def image_intervals(runs: Sequence[FinishedRun], out: Path, tasks: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals of each arm's difference to the baseline in transfer, over test images and seeds, by arm.

    From the predictions that `python -m eval` keeps; arms with a task that has none, or none that make its value, are
    left out.
    """
    folder, baseline = _folder(tasks, out), runs[0].arm
    rows = _rows(folder)
    seeds = list(dict.fromkeys(run.seed for run in runs))
    found: dict[str, tuple[float, float]] = {}
    for arm in dict.fromkeys(run.arm for run in runs if run.arm != baseline):
        own = sorted({task for model, task in rows if model == f"{arm}@{seeds[0]}"})
        sides = [[[rows.get((f"{side}@{seed}", task)) for seed in seeds] for side in (arm, baseline)] for task in own]
        paired = [_paired(folder, *each) for each in sides]
        known = [each for each in paired if each is not None]
        if known and len(known) == len(paired):
            seed = int.from_bytes(hashlib.sha256(f"{baseline}\0{arm}".encode()).digest()[:8])
            found[arm] = average_interval(known, seed)
    return found


def _paired(
    folder: Path, arm: Sequence[dict[str, Any] | None], baseline: Sequence[dict[str, Any] | None]
) -> Paired | None:
    """One task's jobs of both sides, seed by seed; None where something of it is not known."""
    found = [_shares(folder, row) for row in (*arm, *baseline)]
    known = [each for each in found if each is not None]
    if len(known) < len(found) or arm[0] is None:
        return None
    labels = known[0][0]
    if not all(np.array_equal(labels, own) for own, _ in known):
        return None
    shares = np.stack([own for _, own in known])
    return Paired(arm[0]["metric"], labels, shares[: len(arm)] - shares[len(arm) :])


def _shares(folder: Path, row: dict[str, Any] | None) -> tuple[Ints, Shares] | None:
    """True classes of the test images of a job, and how often each was named right; None where that is not known."""
    file = folder / "predictions" / f"{'' if row is None else row['job']}.npy"
    if row is None or row["metric"] not in METRICS or not file.exists():
        return None
    stacked = np.load(file, allow_pickle=False)
    labels, shares = stacked[0], share_right(stacked[0], stacked[1:])
    return (labels, shares) if abs(metric_of(row["metric"], labels, shares) - row["value"]) < _TOLERANCE else None
