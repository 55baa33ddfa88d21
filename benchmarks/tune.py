"""Claim: a search takes little more than its trainings: at most 1.3 of them, shared among those that run at a time.

    python -m benchmarks.tune                      # 8 trials of one worker, as many at a time as there are CPUs
    python -m benchmarks.tune --trials 16 --set train.epochs 2

One command, as users give it: wall time of its trials, from the first one's start to the last one's end, over the sum
of their own training times (`train_seconds` of each run: steps, validations and checkpoints) divided by how many run
at a time. What is beyond that is what a trial costs besides: processes, opening data, building the model, the export,
Ray Tune's own turns. Ray's start and the embedding store come before the first trial and are told by themselves.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.step_cost import RESULTS
from tt_ray.terminal.errors import UserError
from tt_ray.training.run_folder import read_result
from tt_ray.tune.journal import Journal
from tt_ray.tune.trial import run_name

_AIM = "<= 1.3"


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Runs the search in this process, and reads its times from what it leaves."""
    from tt_ray.tune.__main__ import main as tune
    from tt_ray.tune.runner import run_trials

    os.environ.setdefault("RAY_ADDRESS", "local")
    spans: list[tuple[float, float]] = []

    def timed(*arguments: Any) -> None:
        start = time.perf_counter()
        run_trials(*arguments)
        spans.append((start, time.perf_counter()))

    import tt_ray.tune.runner

    tt_ray.tune.runner.run_trials = timed
    began = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="tt-ray-benchmark-") as name:
            folder = Path(name)
            fields = [word for path, value in given.set for word in (f"--{path}", value)]
            options = ["--num-samples", str(given.trials), "--max-concurrent", str(given.concurrent), "--final-seeds"]
            where = ["--out", str(folder / "out"), "--run.storage", str(folder / "runs")]
            tune([given.space, "--base", given.base, *options, *where, *fields])
            records = Journal(folder / "out").of("search")
            failed = [record.reason for record in records if record.status != "done"]
            if failed:
                raise RuntimeError(f"{len(failed)} trials did not come to their end: {failed[0]}")
            runs = [folder / "out" / "trials" / run_name(record.name, record.seeds[0]) for record in records]
            seconds = [read_result(run)["train_seconds"] for run in runs]
    finally:
        tt_ray.tune.runner.run_trials = run_trials
    (start, end) = spans[0]
    return summary(end - start, seconds, given.concurrent) | {"seconds_before": start - began}


def summary(wall: float, seconds: Sequence[float], concurrent: int) -> dict[str, Any]:
    """The ratio, and what each trial costs besides its training."""
    ideal = sum(seconds) / concurrent
    return {
        "ratio": wall / ideal,
        "wall_s": wall,
        "trials": len(seconds),
        "concurrent": concurrent,
        "training_s": list(seconds),
        "overhead_s_per_trial": (wall - ideal) * concurrent / len(seconds),
    }


def report(result: dict[str, Any], out: Path) -> None:
    """Prints the table and writes it to `out`."""
    training = sum(result["training_s"])
    print("| trials (at a time) | wall time | sum of trainings | ratio | aim | overhead per trial | before the first |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    cells = [f"{result['trials']} ({result['concurrent']})", f"{result['wall_s']:.1f} s", f"{training:.1f} s"]
    cells += [f"{result['ratio']:.2f}", _AIM, f"{result['overhead_s_per_trial']:.1f} s"]
    print(f"| {' | '.join(cells)} | {result['seconds_before']:.1f} s |")
    print(f"\nload of the machine {result['machine']['load_1min']:.1f}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"aim": {"ratio": _AIM}, **result}, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="loss_weight")
    parser.add_argument("--base", default="shapes_textteacher", help="recipe or YAML file")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("PATH", "VALUE"), help="any field")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--concurrent", type=int, default=os.cpu_count() or 1, help="trials at a time, a thread each")
    parser.add_argument("--out", type=Path, default=RESULTS / "tune.json")
    given = parser.parse_args(arguments)
    given.set = given.set or [["train.epochs", "2"]]
    try:
        result = measure(given)
    except (UserError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None
    import torch

    settings = {key: value for key, value in vars(given).items() if key != "out"}
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "python": sys.version.split()[0]}
    machine |= {"torch": torch.__version__, "load_1min": os.getloadavg()[0]}
    report({**result, "settings": settings, "machine": machine}, given.out)


if __name__ == "__main__":
    main()
