"""The arms of a comparison: read, checked, trained for the same epochs and the same time, and summed up."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from tt_ray.cli import read_config
from tt_ray.compare.table import Run, summarise, write_table
from tt_ray.config import Config
from tt_ray.io.files import new_file
from tt_ray.terminal.errors import UserError
from tt_ray.training.run_folder import changed_paths, read_result
from tt_ray.training.same_data import check_data, open_record

_NAME_SIGNS = "letters, digits, _, . and -"
_SAME = (
    *("train.epochs", "train.batch_size", "data.source", "data.root", "data.name", "data.val_split"),
    *("data.shapes.seed", "data.shapes.val_size"),
)
"""What must agree for a comparison to be one."""
_STEADY = 0.1
"""Difference of a time per epoch, as a ratio to the baseline's, that seeds may make."""
_SOME_CLASSES = 10
"""Classes that models are tried with before the data are open: their number makes no difference to that."""


# By way of tt_ray: in a user's folder with an eval/ of its own, `-m eval` would run that one.
_EVAL = (sys.executable, "-m", "tt_ray", "eval")


class Arm(NamedTuple):
    """One side of the comparison."""

    name: str
    config: Config


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
    times = ratios_of_turns(arms, out, interleave) if interleave else ratios_of_runs(same)
    equal = {arm: epochs_in_time(epochs, median(ratios)) for arm, ratios in times.items()}
    notes = [*_notes(arms), *([] if interleave else _unsteady(times))]
    write_table(out, summarise(same, [], times, equal, {}), notes, same, [])
    timed = train_arms(arms, seeds, equal, out, train)
    transfer = {} if list(tasks) in ([], ["none"]) else transfer_averages(same, out, tasks)
    return write_table(out, summarise(same, timed, times, equal, transfer), notes, same, timed)


def read_arms(texts: Sequence[str], common: Sequence[str] = ()) -> list[Arm]:
    """Arms with the changes of `common`; raises UserError on anything unknown in them."""
    arms: list[Arm] = []
    for text in texts:
        name, equals, rest = text.partition("=")
        if not (equals and rest and name.replace("_", "").replace("-", "").replace(".", "").isalnum()):
            raise UserError(f"--arms {text!r} must be NAME=RECIPE[+PATH=VALUE ...], NAME of {_NAME_SIGNS}")
        # A plus may be part of a value, as in text.encoder=MODEL+projection.
        base, *changes = _split_changes(rest)
        words = [word for change in [*common, *changes] for word in as_words(change)]
        arms.append(Arm(name, read_config([base, *words], f"--arms {name}")))
    return arms


def _split_changes(text: str) -> list[str]:
    parts: list[str] = []
    for part in text.split("+"):
        if parts and "=" not in part:
            parts[-1] += f"+{part}"
        else:
            parts.append(part)
    return parts


def as_words(change: str) -> list[str]:
    """PATH=VALUE as words of a command line; raises UserError when it is not of that form."""
    path, equals, value = change.partition("=")
    if not equals:
        raise UserError(f"{change!r} must be PATH=VALUE, such as train.epochs=10")
    return [f"--{path}", *(value.split() or [""])]


def check(arms: Sequence[Arm], seeds: Sequence[int]) -> None:
    """Raises UserError where the arms cannot be compared."""
    names = [arm.name for arm in arms]
    if len(arms) < 2:
        raise UserError("--arms needs at least two: the baseline first")
    for what, values in (("--arms", names), ("--seeds", list(seeds))):
        if not values or len(set(values)) < len(values):
            raise UserError(f"{what} is empty or has something twice: {' '.join(map(str, values))}")
    first = arms[0]
    for arm in arms[1:]:
        teacher = arm.config.teacher.model if arm.config.teaches else ""
        if teacher and not teacher.startswith(("timm:", "hf:")) and not Path(teacher).expanduser().exists():
            raise UserError(
                f"arm {arm.name} learns from {teacher}, which does not exist: train it first "
                f"(python -m tt_ray.train {shlex.quote(Path(teacher).name)}), or give +teacher.model=MODEL"
            )
        for path in _SAME:
            here, there = arm.config.get(path), first.config.get(path)
            if here != there:
                raise UserError(
                    f"arm {arm.name} has {path} {here}, but {first.name} has {there}: give --set {path}=VALUE for all"
                )


def check_tasks(tasks: Sequence[str]) -> None:
    """Raises UserError where `python -m eval`, which the transfer average is by, does not know a task."""
    with TemporaryDirectory() as folder:
        command = [*_EVAL, "--check", "--tasks", *tasks, "--out", folder]
        answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        raise UserError(answer.stderr.strip().rpartition("\n")[2].removeprefix("error: "))


def try_models(arms: Sequence[Arm]) -> None:
    """Raises UserError where an arm's model cannot be trained: told before hours have gone into the other arms."""
    from tt_ray.training.trainable import check_model  # takes seconds to import

    tried: list[Any] = []
    for arm in arms:
        config = arm.config
        what = (config.model, config.optim, config.train.batch_size, config.train.max_batch_per_worker, config.data)
        if what not in tried:
            tried.append(what)
            check_model(config, _SOME_CLASSES)


def train_arms(
    arms: Sequence[Arm],
    seeds: Sequence[int],
    epochs: Mapping[str, int],
    out: Path,
    train: "Callable[[Config], object] | None" = None,
) -> list[Run]:
    """Every arm with every seed for its epochs; those that are finished are kept. Their figures, in that order."""
    found: list[Run] = []
    pairs = [(seed, arm) for seed in seeds for arm in arms]
    for number, (seed, arm) in enumerate(pairs, 1):
        config = configure(arm, seed, epochs[arm.name], out)
        if not _finished(config):
            what = f"{arm.name}, seed {seed}, {epochs[arm.name]} epochs"
            print(f"run {number} of {len(pairs)}: {what}", file=sys.stderr, flush=True)
            (train or _train)(config)
        found.append(read_run(arm.name, seed, config, out))
    return found


def configure(arm: Arm, seed: int, epochs: int, out: Path) -> Config:
    """The configuration of one run: its name tells arm, epochs and seed."""
    config = arm.config
    settings = {
        "train.seed": seed,
        "train.epochs": epochs,
        "run.storage": str(out / "runs"),
        "run.name": f"{arm.name}-{epochs}-{seed}",
        "run.overwrite": False,
    }
    for path, value in settings.items():
        config = config.override(path, value)
    return config


def _finished(config: Config) -> bool:
    """Raises UserError where the run of that name was of another configuration, or trained on other data."""
    if not (config.run_dir / "result.json").exists():
        return False
    changed = changed_paths(Config.from_yaml(config.run_dir / "config.yaml"), config)
    if changed:
        raise UserError(f"finished run {config.run_dir} differs in {', '.join(changed[:5])}: give another --out")
    # Runs of one table are trained one after the other, perhaps by several commands: all of them on the same data.
    check_data(config.run_dir, open_record(config), config.run.accept_changed_data)
    return True


def _train(config: Config) -> None:
    """As `python -m tt_ray.train` does, in this process, which keeps Ray between runs."""
    from tt_ray.cluster.run import train_run

    train_run(config)


def read_run(arm: str, seed: int, config: Config, out: Path) -> Run:
    """Figures of a finished run below `out`."""
    result = read_result(config.run_dir)
    folder = str(config.run_dir.relative_to(out.absolute()))
    seconds = step_seconds(config.run_dir / "metrics.jsonl", config.train.batch_size)
    return Run(arm, seed, config.train.epochs, result["top1"], seconds, result["train_seconds"], folder)


def step_seconds(metrics: Path, batch_size: int) -> float:
    """Median seconds of a step over the readings of metrics.jsonl, the first of which has the start in it."""
    from tt_ray.training.metrics_log import read_rows  # it brings torch, which takes seconds

    rates = [row["images_per_s"] for row in read_rows(metrics) if "images_per_s" in row]
    if not rates:
        raise UserError(f"{metrics} tells no images_per_s")
    return batch_size / median(rates[1:] or rates)


def ratios_of_runs(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Each arm's time per epoch over the baseline's, by arm: of the two runs of each seed."""
    baseline = {run.seed: run.step_seconds for run in runs if run.arm == runs[0].arm}
    arms = dict.fromkeys(run.arm for run in runs)
    return {arm: [run.step_seconds / baseline[run.seed] for run in runs if run.arm == arm] for arm in arms}


def ratios_of_turns(arms: Sequence[Arm], out: Path, rounds: int) -> dict[str, list[float]]:
    """The same, of the two readings of each round in which the arms take turns; kept in OUT/times.json."""
    from tt_ray.compare.step_times import step_times

    file, names = out / "times.json", [arm.name for arm in arms]
    seconds: dict[str, list[float]] = json.loads(file.read_text()) if file.exists() else {}
    if list(seconds) != names or len(seconds[names[0]]) != rounds:
        print(f"measuring steps in {rounds} rounds", file=sys.stderr, flush=True)
        # Stores of embeddings are those of the runs.
        configs = {arm.name: arm.config.override("run.storage", str(out / "runs")) for arm in arms}
        seconds = step_times(configs, rounds)
        with new_file(file) as partial:
            partial.write_text(json.dumps(seconds))
    first = seconds[names[0]]
    return {arm: [a / b for a, b in zip(own, first, strict=True)] for arm, own in seconds.items()}


def epochs_in_time(epochs: int, relative: float) -> int:
    """Whole epochs, each `relative` times as long as the baseline's, that fit into its `epochs`; 1 at least."""
    return max(1, int(epochs / relative + 1e-9))


def transfer_averages(runs: Sequence[Run], out: Path, tasks: Sequence[str]) -> dict[tuple[str, int], float]:
    """Average of linear probes over tasks, by arm and seed: a process of `python -m eval`, which imports tt_ray."""
    if "ray" in sys.modules:
        import ray

        ray.shutdown()  # where this process has started Ray, its memory is needed
    models = {f"{run.arm}@{run.seed}": run for run in runs}
    specs = [f"{name}={out / run.folder}" for name, run in models.items()]
    folder = out / "transfer" / "-".join(tasks)
    command = [*_EVAL, "--models", *specs, "--tasks", *tasks]
    command += ["--protocols", "linear", "--out", str(folder)]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise RuntimeError(f"python -m eval has failed, see above; the same command goes on (results so far: {folder})")
    rows = [row for file in (folder / "rows").glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    for row in sorted(rows, key=lambda row: row["created"]):  # of a model that was trained again the last
        if row["status"] == "done" and row["metric"] == row["task_metric"] and row["model"] in found:
            found[row["model"]][row["task"]] = row["value"]
    return {(run.arm, run.seed): fmean(found[name].values()) for name, run in models.items()}


def _notes(arms: Sequence[Arm]) -> list[str]:
    """Where an arm's configuration is not the baseline's."""
    first, notes = arms[0], list[str]()
    for arm in arms[1:]:
        paths: list[str] = [path for path in changed_paths(first.config, arm.config) if path != "train.seed"]
        values = ", ".join(f"{path} {_show(arm.config.get(path))} ({_show(first.config.get(path))})" for path in paths)
        notes.append(f"{arm.name} differs from {first.name} in {values or 'nothing'}.")
    return notes


def _unsteady(times: Mapping[str, Sequence[float]]) -> list[str]:
    """What to do where the seeds' times per epoch lie further apart than a teacher's cost may be."""
    widest = max(max(ratios) - min(ratios) for ratios in times.values())
    if widest < _STEADY:
        return []
    return [f"Times per epoch differ by up to {widest:.2f} from seed to seed: --interleave 40 measures them in turns."]


def _show(value: Any) -> str:
    return str(value) or "empty"
