"""Claim: `python -m tt_ray.train` takes its first step within 15 seconds (aim), with files in the disk cache.

    python -m benchmarks.start_up

From the start of the command to the end of the first training step (`first_step_at` in result.json), by turns without
an embedding store, so that the captions are embedded first, and with the store that the run before has made. Phases
are read off what a run leaves behind: the name of Ray's session folder, the times of config.yaml and of TensorBoard's
folder. Ray starts anew each time (RAY_ADDRESS=local).
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.step_cost import RESULTS, Side, compare, report

_SIDES = ("without a store", "with a store")
# Where each phase ends; see `moments`.
PHASES = ("arguments", "Ray, beside data and captions", "workers", "first step")
_IMPORTED = "tt_ray.train, tt_ray.data.prepare, tt_ray.models.classifier, tt_ray.cluster.launch, ray"


def run(given: argparse.Namespace, storage: Path, name: str) -> dict[str, float]:
    """Seconds of one command's phases, of their sum, `total`, and of the whole command."""
    fields = {"train.epochs": "1", **dict(given.set), "run.storage": str(storage), "run.name": name}
    options = [word for path, value in fields.items() for word in (f"--{path}", value)]
    began = time.time()
    job = start([sys.executable, "-m", "tt_ray.train", given.recipe, *options])
    ended = time.time()
    times = [began, *moments(storage / name, job)]
    seconds = {phase: after - before for phase, (before, after) in zip(PHASES, itertools.pairwise(times), strict=True)}
    return {**seconds, "total": times[-1] - began, "until the end": ended - began}


def imports() -> float:
    """Seconds of the driver's imports alone."""
    began = time.time()
    start([sys.executable, "-c", f"import {_IMPORTED}"])
    return time.time() - began


def start(command: list[str]) -> int:
    """Waits for a command; gives its process id. Raises RuntimeError when it fails."""
    job = subprocess.Popen(
        command, env=os.environ | {"RAY_ADDRESS": "local"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    _, errors = job.communicate()
    if job.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{errors[-2000:]}")
    return job.pid


def moments(run_dir: Path, pid: int) -> list[float]:
    """When the command called ray.init, Ray was up, the worker had built the model, and the first step was done."""
    ray = [path.name for path in Path("/tmp/ray").glob(f"session_*_{pid}")]
    # session_2026-11-23_21-57-37_123456_PID, in local time.
    stamps = [datetime.strptime("_".join(name.split("_")[1:4]), "%Y-%m-%d_%H-%M-%S_%f").timestamp() for name in ray]
    if not stamps:
        raise RuntimeError(f"Ray has no session folder of process {pid} in /tmp/ray")
    first_step_at = json.loads((run_dir / "result.json").read_text())["first_step_at"]
    files = [(run_dir / name).stat().st_mtime for name in ("config.yaml", "tensorboard")]
    return [max(stamps), *files, first_step_at]


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Commands by turns without and with a store; those of the first rounds warm the disk cache."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in _SIDES}
    for number in range(-given.warm_up, given.repeats):
        alone = imports()
        with tempfile.TemporaryDirectory(prefix="tt-ray-benchmark-") as storage:
            for side in _SIDES:
                seconds = {**run(given, Path(storage), side.replace(" ", "-")), "(the driver's imports alone)": alone}
                shown = ", ".join(f"{phase} {value:.1f}" for phase, value in seconds.items())
                print(f"{side}: {shown}{' (warm-up)' * (number < 0)}", file=sys.stderr, flush=True)
                if number >= 0:
                    runs[side].append(seconds)
    totals = [Side(side, [seconds["total"] for seconds in runs[side]]) for side in _SIDES]
    phases = {
        side: {phase: median(seconds[phase] for seconds in found) for phase in found[0]} for side, found in runs.items()
    }
    settings = {key: value for key, value in vars(given).items() if key != "out"}
    return {**compare(totals[1], totals[0], "s to the first step"), "phases": phases, "settings": settings}


def phase_table(phases: dict[str, dict[str, float]]) -> str:
    """Medians of the phases, in seconds, as Markdown."""
    lines = ["| s | " + " | ".join(phases) + " |", "| --- |" + " --- |" * len(phases)]
    for phase in next(iter(phases.values())):
        lines.append(f"| {phase} | " + " | ".join(f"{seconds[phase]:.2f}" for seconds in phases.values()) + " |")
    return "\n".join(lines)


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="shapes_textteacher", help="recipe or YAML file")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("PATH", "VALUE"), help="any field")
    parser.add_argument("--repeats", type=int, default=5, help="commands of either kind")
    parser.add_argument("--warm-up", type=int, default=1, help="commands of either kind before those that count")
    parser.add_argument("--out", type=Path, default=RESULTS / "start_up.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = read_arguments(arguments)
    try:
        result = measure(given)
    except RuntimeError as error:
        raise SystemExit(f"error: {error}") from None
    print(phase_table(result["phases"]) + "\n")
    report(result, "<= 15 s", given.out, of=_SIDES[1])


if __name__ == "__main__":
    main()
