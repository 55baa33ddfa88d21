"""Transfer of a comparison's runs: linear probes by `python -m eval`, a process of its own, which imports tt_ray."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pyarrow.parquet as pq

from tt_ray.compare.table import FinishedRun
from tt_ray.terminal.errors import UserError


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
    models = {f"{run.arm}@{run.seed}": run for run in runs}
    specs = [f"{name}={out / run.folder}" for name, run in models.items()]
    folder = _folder(tasks, out)
    if subprocess.run([*_eval(tasks, out), "--models", *specs], stdout=subprocess.DEVNULL).returncode:
        raise RuntimeError(
            f"python -m eval has failed, see above; the same command continues (results so far: {folder})"
        )
    rows = [row for file in (folder / "rows").glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    for row in sorted(rows, key=lambda row: row["created"]):  # of a model that was trained again the last
        if row["status"] == "done" and row["metric"] == row["task_metric"] and row["model"] in found:
            found[row["model"]][row["task"]] = row["value"]
    return {(run.arm, run.seed): fmean(found[name].values()) for name, run in models.items()}
