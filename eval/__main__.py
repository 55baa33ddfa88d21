"""Batch transfer benchmarks: `python -m eval --models NAME=MODEL ... --tasks ... --protocols ... --out DIR`."""

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tt_ray.io.one_writer import inside, one_writer
from tt_ray.io.storage import is_uri
from tt_ray.terminal.command import program, read_arguments, run_command
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.progress import Display

if TYPE_CHECKING:  # it imports much
    from eval.jobs.evaluation import Evaluation


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Models x tasks x protocols x seeds, in parallel on Ray. The same command again runs only the missing jobs."""

    out: Path
    """Folder of results; `python -m eval.report OUT` makes a report of it."""
    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=MODEL ...")] = ()
    """Models to compare: a run's folder, an export, a checkpoint, timm:NAME (pretrained), random:NAME (a control)."""
    tasks: tuple[str, ...] = ("builtin",)
    """Tasks or suites: all, paper, vtab-natural, builtin; or names of your own (--task-root, --task-file)."""
    protocols: tuple[str, ...] = ("linear", "knn", "few_shot")
    """linear, linear_sgd, knn, few_shot, finetune, classifier (the model's own, nothing is trained), or a module of
    your own, such as my.protocol."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of validation images (where a task has none of its own), of few-shot draws, of fine-tuning."""
    set: tuple[str, ...] = ()
    """Changes of protocols: PROTOCOL.FIELD=VALUE, such as finetune.steps=100."""
    data_root: Path = Path("data")
    """Folder in which the files of tasks are looked for."""
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
    """Folder of extracted features; the default is OUT/features."""
    check: bool = False
    """Only check protocols, tasks and models (--models may be left out), and run nothing."""


def main(arguments: list[str]) -> None:
    """The command. Exit status 1 when a job failed; 2 when all did by a mistake of the user's."""
    given = read_arguments(Arguments, arguments, program("eval"))
    check(given)
    if given.check:
        print(f"{len(open_evaluation(given).jobs)} jobs")
        return
    with one_writer(inside(given.out), f"results {given.out}"):
        _evaluate(given, shlex.join([*program("eval").split(), *arguments]))


def _evaluate(given: Arguments, command: str) -> None:
    from eval.contract import EvalConfig
    from eval.jobs.costs import keep_costs
    from eval.jobs.evaluation import failure, run_jobs, start_ray
    from eval.jobs.results import finished_keys
    from eval.jobs.scheduler import JobResources
    from eval.jobs.summary import print_summary

    resources = JobResources(given.cpus_per_job, given.gpus_per_job)
    with Display() as display:
        display.show("opening models and tasks", 0, 1)
        evaluation = open_evaluation(given)
        jobs = evaluation.jobs
        display.notes(note for task in evaluation.tasks.values() for note in task.left_out)
        done = finished_keys(given.out)
        missing = [job for job in jobs if job.key not in done]
        if len(missing) < len(jobs):
            display.say(f"{len(jobs) - len(missing)} of {len(jobs)} jobs are done already")
        if missing:
            place = start_ray(resources, display)
            display.say(f"{len(missing)} jobs on {place}, results in {given.out}")
        for weights, counts in evaluation.costs.items():
            keep_costs(given.out, weights, counts)
    device = "cuda" if given.gpus_per_job else "cpu"
    cache = (given.cache or given.out / "features").absolute()
    config = EvalConfig(None, cache, 0, device, given.cpus_per_job, given.batch_size, given.num_loaders)
    failures = run_jobs(given.out, missing, evaluation.tasks, config, resources, command)
    print_summary(given.out, jobs, evaluation.metrics)
    print(f"report: {shlex.join([*program('eval.report').split(), str(given.out)])}")
    if failures:
        raise failure(failures, len(jobs))


def check(given: Arguments) -> None:
    """Raises UserError on settings that are wrong whatever models and data hold."""
    if is_uri(str(given.out).replace(":/", "://", 1)):  # a Path has lost one of the two
        raise UserError(f"--out {given.out} must be a folder on this machine or on a file system that all nodes share")
    if given.out.exists() and not given.out.is_dir():
        raise UserError(f"--out {given.out} is a file: choose a folder")
    if given.cpus_per_job < 1 or given.gpus_per_job < 0 or given.batch_size < 1 or given.num_loaders < 0:
        raise UserError(
            "--cpus-per-job and --batch-size must be at least 1, --gpus-per-job and --num-loaders at least 0"
        )
    if given.gpus_per_job > 1:
        raise UserError(f"--gpus-per-job is {given.gpus_per_job}: a job computes on one GPU or a fraction of it")
    for name in ("models", "tasks", "protocols", "seeds"):
        values = getattr(given, name)
        if not values and not (name == "models" and given.check):
            raise UserError(f"--{name} is empty")
        if len(set(values)) < len(values):
            raise UserError(f"--{name} has something twice: {' '.join(map(str, values))}")


def open_evaluation(given: Arguments) -> "Evaluation":
    """Opens tasks, protocols and models, in this order, and plans the jobs.

    Raises:
        UserError: Something is missing or unknown, or there is nothing to do.
    """
    from eval.jobs.evaluation import plan_evaluation
    from eval.jobs.plan import read_options
    from eval.tasks.registry import load_tasks, tasks

    # Tasks first: protocols and models bring torch, which takes seconds, and a wrong name needs none.
    roots = dict(_pair(item) for item in given.task_root)
    own = load_tasks(given.task_file) if given.task_file else {}
    found = tasks(given.tasks, roots, given.data_root, own)
    options = read_options(given.protocols, given.set)
    from eval.features.backbone import parse_models

    return plan_evaluation(given.out, parse_models(given.models), found, options, given.seeds)


def _pair(item: str) -> tuple[str, str]:
    name, equals, folder = item.partition("=")
    if not (name and equals and folder):
        raise UserError(f"--task-root {item!r} must be NAME=DIR")
    return name, folder


if __name__ == "__main__":
    run_command(main)
