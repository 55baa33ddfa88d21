"""Claim: Ray Train costs the loop nothing: steps per second are at least 0.98 of those under torchrun (aim).

    python -m benchmarks.ray_overhead --workers 1
    python -m benchmarks.ray_overhead --workers 2

Both sides are the commands that users give, `python -m tt_ray.train` and `torchrun -m tt_ray.train`, by turns, on CPU
with gloo and the same number of threads per worker. Steps per second are the median over the windows of
`run.log_every` steps in metrics.jsonl, the first window left out; no validation or checkpoint falls between them.
Embeddings are random, which costs the same.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.loop_efficiency import random_store
from benchmarks.step_cost import RESULTS, Side, compare, report
from tt_ray.cli import read_config
from tt_ray.config import Config
from tt_ray.data.prepare import open_images
from tt_ray.terminal.errors import UserError
from tt_ray.training.metrics_log import read_rows

_SIDES = ("Ray Train", "torchrun")
_NEVER = "1000000000"


def options(given: argparse.Namespace, folder: Path) -> list[str]:
    """What follows `tt_ray.train` on both sides: recipe and fields, whole windows of steps in an epoch."""
    chosen = {"--data.shapes.val_size": "64"} | {f"--{path}": value for path, value in given.set}
    chosen |= {"--run.num_workers": str(given.workers), "--run.cpus_per_worker": str(given.threads)}
    chosen |= {"--train.eval_every": _NEVER, "--run.checkpoint_every": _NEVER, "--run.storage": str(folder)}
    arguments = [given.recipe, *(word for pair in chosen.items() for word in pair)]
    config = read_config(arguments, "benchmark")
    epochs = -(-given.steps // steps_per_epoch(config))
    arguments += ["--train.epochs", str(epochs)]
    if config.teaches and not config.text.embeddings:
        store = random_store(open_images(config)[0], given.embedding_dim, folder / "store")
        arguments += ["--text.embeddings", str(store.path)]
    return arguments


def steps_per_epoch(config: Config) -> int:
    """Of the recipe's training split."""
    return max(len(open_images(config)[0]) // config.train.batch_size, 1)


def run(side: str, name: str, given: argparse.Namespace, arguments: list[str], folder: Path) -> float:
    """Trains once; gives the median of its windows' steps per second. Raises RuntimeError when the command fails."""
    start = [sys.executable, "-m"]
    if side == "torchrun":
        start += ["torch.distributed.run", "--nproc-per-node", str(given.workers), "-m"]
    # A Ray of its own, whatever else runs here; torchrun's default would be one thread.
    environment = os.environ | {"RAY_ADDRESS": "local", "OMP_NUM_THREADS": str(given.threads)}
    command = [*start, "tt_ray.train", *arguments, "--run.name", name]
    log = folder / f"{name}.log"
    with log.open("w") as file:
        done = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=given.timeout)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    config = Config.from_yaml(folder / name / "config.yaml")
    return median(window_rates(read_rows(folder / name / "metrics.jsonl"), config))


def window_rates(rows: list[dict[str, Any]], config: Config) -> list[float]:
    """Steps per second of each full window but the first."""
    ends = [row for row in rows if "images_per_s" in row]
    full = [row for last, row in itertools.pairwise(ends) if row["step"] - last["step"] == config.run.log_every]
    if not full:
        raise RuntimeError(f"{len(ends)} windows of {config.run.log_every} steps are too few: raise --steps")
    return [row["images_per_s"] / config.train.batch_size for row in full]


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Both sides by turns."""
    rates: dict[str, list[float]] = {side: [] for side in _SIDES}
    with tempfile.TemporaryDirectory(prefix="tt-ray-benchmark-") as name:
        folder = Path(name)
        arguments = options(given, folder)
        for number in range(-given.warm_up, given.repeats):
            for side in _SIDES:
                rate = run(side, f"{side.split()[0].lower()}-{number + given.warm_up}", given, arguments, folder)
                print(f"{side}: {rate:.3f} steps per s{' (warm-up)' * (number < 0)}", file=sys.stderr, flush=True)
                if number >= 0:
                    rates[side].append(rate)
    result = compare(*(Side(side, rates[side]) for side in _SIDES), unit="steps per s")
    settings = {key: value for key, value in vars(given).items() if key != "out"}
    return {**result, "settings": settings}


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="shapes_textteacher", help="recipe or YAML file")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("PATH", "VALUE"), help="any field")
    parser.add_argument("--embedding-dim", type=int, default=384, help="length of the text targets")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="CPUs and threads per worker; 0 shares all of them")
    parser.add_argument("--steps", type=int, default=384, help="steps of a run, rounded up to epochs")
    parser.add_argument("--repeats", type=int, default=5, help="runs of either side")
    parser.add_argument("--warm-up", type=int, default=1, help="runs of either side before those that count")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds that a run may take")
    parser.add_argument("--out", type=Path, help="default benchmarks/results/ray_overhead_WORKERS.json")
    given = parser.parse_args(arguments)
    given.threads = given.threads or max((os.cpu_count() or 1) // given.workers, 1)
    given.out = given.out or RESULTS / f"ray_overhead_{given.workers}.json"
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = read_arguments(arguments)
    try:
        report(measure(given), ">= 0.98", given.out)
    except (UserError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
