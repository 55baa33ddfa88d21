"""Batch transfer benchmarks: `python -m eval --models NAME=MODEL ... --tasks ... --protocols ... --out DIR`."""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from eval.jobs.costs import Costs, keep_costs, missing_counts
from eval.jobs.live_table import Board
from eval.jobs.plan import Job, plan, read_options
from eval.jobs.results import Row, finished_keys, read_rows, write_result
from eval.jobs.scheduler import Resources, State, requests_for, schedule
from eval.jobs.worker import Answer, identity
from eval.protocols.base import EvalConfig
from tt_ray.io.one_writer import inside, one_writer
from tt_ray.io.storage import is_uri
from tt_ray.terminal.command import read_arguments, run_command
from tt_ray.terminal.errors import Stopped, UserError
from tt_ray.terminal.progress import Display
from tt_ray.terminal.signals import stop_on_signals

_PACKAGES = ("tt-ray", "torch", "torchvision", "timm", "numpy", "scikit-learn", "datasets", "ray", "pillow")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Models x tasks x protocols x seeds, in parallel on Ray. The same command again does only what is missing."""

    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=MODEL ...")]
    """What is compared: a run's folder, an export, a checkpoint, timm:NAME (pretrained), random:NAME (a control)."""
    out: Path
    """Folder of results; `python -m eval.report OUT` makes a report of it."""
    tasks: tuple[str, ...] = ("builtin",)
    """Tasks or suites: all, paper, vtab-natural, builtin; or names of your own (--task-root, --task-file)."""
    protocols: tuple[str, ...] = ("linear", "knn", "few_shot")
    """linear, linear_sgd, knn, few_shot, finetune, classifier (the model's own, nothing is trained)."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of validation images (where a task has none of its own), of few-shot draws, of fine-tuning."""
    set: tuple[str, ...] = ()
    """Changes of protocols: PROTOCOL.FIELD=VALUE, such as finetune.steps=100."""
    data_root: Path = Path("data")
    """Folder that tasks' files are looked for in."""
    task_root: tuple[str, ...] = ()
    """NAME=DIR: the folder of one task; a new name makes a task of your own (train/, test/, perhaps val/)."""
    task_file: Path | None = None
    """YAML file of tasks of your own."""
    cpus_per_job: int = 1
    """CPUs, and CPU threads, of each job."""
    gpus_per_job: float = 0.0
    """GPUs of each job; a fraction lets several share one. 0 computes on CPUs."""
    batch_size: int = 256
    """Images of a forward pass; halved and tried again when memory runs out."""
    num_loaders: int = 0
    """Processes of each job that decode images; 0 decodes in its threads."""
    cache: Path | None = None
    """Folder of extracted features; OUT/features unless given."""


def main(arguments: list[str]) -> None:
    """The command. Exit status 1 when a job failed; 2 when all did by a mistake of the user's."""
    given = read_arguments(Arguments, arguments, "python -m eval")
    check(given)
    with one_writer(inside(given.out), f"results {given.out}"):
        _evaluate(given, arguments)


def _evaluate(given: Arguments, arguments: list[str]) -> None:
    with Display() as display:
        display.show("opening models and tasks", 0, 1)
        jobs, tasks, costs = jobs_of(given)
        display.notes(note for task in tasks.values() for note in task.left_out)
        done = finished_keys(given.out)
        missing = [job for job in jobs if job.key not in done]
        if len(missing) < len(jobs):
            display.say(f"{len(jobs) - len(missing)} of {len(jobs)} jobs are done already")
        if missing:
            start(given, missing, display)
        for weights, counts in costs.items():
            keep_costs(given.out, weights, counts)
    failures = run(given, missing, tasks, shlex.join(["python", "-m", "eval", *arguments]))
    print_summary(given.out, jobs, {name: task.metric for name, task in tasks.items()})
    print(f"report: {shlex.join(['python', '-m', 'eval.report', str(given.out)])}")
    if failures:
        raise failed(failures, len(jobs))


def check(given: Arguments) -> None:
    """Raises UserError on what needs no model or data to see."""
    if is_uri(str(given.out).replace(":/", "://", 1)):  # a Path has lost one of the two
        raise UserError(f"--out {given.out} must be a folder on this machine or on a file system that all nodes share")
    if given.out.exists() and not given.out.is_dir():
        raise UserError(f"--out {given.out} is a file: give a folder")
    if given.cpus_per_job < 1 or given.gpus_per_job < 0 or given.batch_size < 1 or given.num_loaders < 0:
        raise UserError(
            "--cpus-per-job and --batch-size must be at least 1, --gpus-per-job and --num-loaders at least 0"
        )
    if given.gpus_per_job > 1:
        raise UserError(f"--gpus-per-job is {given.gpus_per_job}: a job computes on one GPU or a fraction of it")
    for name in ("models", "tasks", "protocols", "seeds"):
        values = getattr(given, name)
        if not values:
            raise UserError(f"--{name} is empty")
        if len(set(values)) < len(values):
            raise UserError(f"--{name} has something twice: {' '.join(map(str, values))}")


def jobs_of(given: Arguments) -> tuple[list[Job], dict[str, Any], dict[str, Costs]]:
    """All jobs of the command, its tasks, and what models cost that OUT does not know yet, by their weights.

    Raises UserError on anything that is not there or unknown.
    """
    options = read_options(given.protocols, given.set)
    from eval.features.backbone import open_backbone, parse_models
    from eval.tasks.registry import load_tasks, tasks

    specs = parse_models(given.models)
    roots = dict(_pair(item) for item in given.task_root)
    own = load_tasks(given.task_file) if given.task_file else {}
    found = tasks(given.tasks, roots, given.data_root, own)
    models: dict[str, tuple[str, str]] = {}
    counted: dict[str, Costs] = {}
    for name, spec in specs.items():  # one in memory at a time
        backbone = open_backbone(name, spec)
        models[name] = spec, identity(backbone)
        if (counts := missing_counts(given.out, backbone)) is not None:
            counted[identity(backbone)] = counts
    jobs = plan(models, found, options, given.seeds)
    if not jobs:
        raise UserError("nothing to do: these tasks have no training images, give --protocols classifier")
    return jobs, found, counted


def _pair(item: str) -> tuple[str, str]:
    name, equals, folder = item.partition("=")
    if not (name and equals and folder):
        raise UserError(f"--task-root {item!r} must be NAME=DIR")
    return name, folder


def start(given: Arguments, jobs: Sequence[Job], display: Display) -> None:
    """Joins or starts Ray; raises UserError when no node can ever hold a job."""
    from tt_ray.cluster.connect import cluster_address, join_ray

    display.show("starting Ray", 0, 1)
    joined = join_ray(display.say)
    _check_cluster(given)
    place = f"the Ray cluster at {cluster_address()}" if joined else "this machine"
    display.say(f"{len(jobs)} jobs on {place}, results in {given.out}")


def run(given: Arguments, jobs: Sequence[Job], tasks: dict[str, Any], command: str) -> list[Answer]:
    """Runs the jobs and writes each one's result as it ends; returns the answers of those that failed."""
    if not jobs:
        return []
    device = "cuda" if given.gpus_per_job else "cpu"
    cache = (given.cache or given.out / "features").absolute()
    base = EvalConfig(None, cache, 0, device, given.cpus_per_job, given.batch_size, given.num_loaders)
    about: dict[str, str] = {"versions": json.dumps(_versions()), "command": command}
    failures: list[Answer] = []
    with Board(list(jobs), Display()) as board, stop_on_signals(lambda: None, signal.SIGINT, signal.SIGTERM) as came:

        def ended(job: Job, answer: Answer) -> None:
            metric = tasks[job.task].metric
            write(given.out, job, metric, answer, about)
            board.ended(job, answer, metric)
            if answer.kind:
                failures.append(answer)

        def looked(state: State) -> None:
            board.looked(state)
            if came:  # an exception out of the handler could strike anywhere in Ray
                text = f"stopped with {board.done} of {board.of} jobs done; the same command goes on with the rest"
                raise Stopped(text, 128 + came[0])

        resources = Resources(given.cpus_per_job, given.gpus_per_job)
        schedule(requests_for(jobs, tasks, base), resources, ended, looked)
    return failures


def _check_cluster(given: Arguments) -> None:
    """Ray would wait for ever for a node that can hold a job."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": given.cpus_per_job, "GPU": given.gpus_per_job}
    if not any(all(node.get(kind, 0) >= number for kind, number in wanted.items()) for node in nodes):
        most = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in wanted}
        raise UserError(
            f"a job wants {given.cpus_per_job} CPUs and {given.gpus_per_job:g} GPUs, but the largest node has "
            f"{most['CPU']:g} CPUs and {most['GPU']:g} GPUs: give lower --cpus-per-job or --gpus-per-job"
        )


def write(out: Path, job: Job, metric: str, answer: Answer, about: dict[str, str]) -> None:
    """Keeps a job's result, or why there is none; raises UserError when the disk is full."""
    row = Row(
        model=job.model,
        model_spec=job.spec,
        weights=job.weights,
        task=job.task,
        task_version=job.task_version,
        protocol=job.protocol,
        protocol_hash=job.protocol_hash,
        seed=job.seed,
        seconds=answer.seconds,
        status="failed" if answer.kind else "done",
        reason=answer.problem,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        task_metric=metric,
        versions=about["versions"],
        command=about["command"],
    )
    result = answer.result
    try:
        if result is None:
            write_result(out, job.key, [row])
            return
        chosen = result.chosen | {"options": dataclasses.asdict(job.options)}
        row = dataclasses.replace(row, n=result.n, chosen=json.dumps(chosen, default=str))
        rows = [dataclasses.replace(row, metric=name, value=float(value)) for name, value in result.metrics.items()]
        write_result(out, job.key, rows, result.predictions, result.labels)
    except OSError as error:
        raise UserError(f"cannot write results to {out}: {os.strerror(error.errno or 0)}: give another --out") from None


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return found | _commit(Path(__file__).parent.parent)


def _commit(root: Path) -> dict[str, str]:
    """The checkout's git commit, with a + where its files differ; nothing where `root` is none."""
    if not (root / ".git").exists():
        return {}
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return {"commit": answer.stdout.strip()}
    except (OSError, subprocess.SubprocessError):  # no git, or a folder of another user's
        return {}


def print_summary(out: Path, jobs: Sequence[Job], metrics: dict[str, str]) -> None:
    """A table for each protocol: tasks by models, mean and spread over seeds."""
    keys = {job.key for job in jobs}
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in read_rows(out):
        if row.job in keys and row.status == "done" and row.metric == metrics[row.task]:
            values[row.protocol, row.task, row.model].append(row.value)
    models = list(dict.fromkeys(job.model for job in sorted(jobs, key=lambda job: job.model)))
    console = Console()
    for protocol in dict.fromkeys(job.protocol for job in jobs):
        grid = Grid(f"{protocol} (%)", *models, box=None, pad_edge=False)
        for task in metrics:
            cells = [values.get((protocol, task, model), []) for model in models]
            if any(cells):
                grid.add_row(Text(task), *map(_cell, cells))
        console.print(grid)


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def failed(answers: Sequence[Answer], of: int) -> Exception:
    """What the command ends with when jobs failed."""
    reasons = dict.fromkeys(answer.problem for answer in answers)
    text = f"{len(answers)} of {of} jobs failed: {'; '.join(list(reasons)[:3])}"
    if len(reasons) > 3:
        text += f"; and {len(reasons) - 3} more reasons, see the report"
    mistake = len(answers) == of and all(answer.kind == "mistake" for answer in answers)
    return UserError(text) if mistake else RuntimeError(f"{text}; the same command tries them again")


if __name__ == "__main__":
    run_command(main)
