"""An evaluation as its command and the library ask for it: checked, opened, run, and returned as a table."""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from tt_ray.io.one_writer import inside, one_writer
from tt_ray.io.storage import is_uri
from tt_ray.terminal.command import program
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.progress import Display
from tt_ray.terminal.python_calls import from_python

if TYPE_CHECKING:  # they import much
    import pyarrow as pa

    from eval.jobs.evaluation import Evaluation


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Models x tasks x protocols x seeds, in parallel on Ray. The same command again runs only the missing jobs."""

    out: Path
    """Folder of results; `python -m eval.report OUT` makes a report of it."""
    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=MODEL ...")] = ()
    """Models to compare: a run's folder, an export, a checkpoint, timm:NAME (pretrained), random:NAME (a control)."""
    tasks: tuple[str, ...] = ("builtin",)
    """Tasks or suites: all, paper, vtab, vtab-natural, builtin; or names of your own (--task-root, --task-file).
    vtab1k:NAME has 1,000 training images of a task or of each of a suite; vtab1k alone is VTAB-1k, 19 tasks."""
    protocols: tuple[str, ...] = ("linear", "knn", "few_shot")
    """linear, linear_sgd, knn, few_shot, finetune, classifier (the model's own, nothing is trained), or a module of
    your own, such as my.protocol."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of validation images (where a task has none of its own), of few-shot draws, of fine-tuning."""
    set: tuple[str, ...] = ()
    """Changes of protocols: PROTOCOL.FIELD=VALUE, such as finetune.steps=100."""
    corruptions: tuple[str, ...] = ()
    """Test on corrupted images: all, or kinds such as gaussian_noise fog jpeg. Results are those of protocols of their
    own, such as linear_corrupted, whose metrics also hold the score on images as they are."""
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Severities of --corruptions, 1 to 5; results are means over them."""
    data_root: Path = Path("data")
    """Folder that holds the files of tasks."""
    task_root: tuple[str, ...] = ()
    """NAME=DIR: the folder of one task; a new name makes a task of your own (train/, test/, perhaps val/). DIR may also
    be a folder, a pattern or a URI of WebDataset shards with such names, such as s3://bucket/train-{000..127}.tar."""
    task_file: Path | None = None
    """YAML file of tasks of your own."""
    local_cache: Path | None = None
    """Folder of copies of shards that lie in object storage; empty takes tt-ray/data in the user's cache (~/.cache)."""
    cpus_per_job: int = 0
    """CPUs, and CPU threads, of each job; 0 takes 1, and beside GPUs its node's CPUs in equal parts."""
    gpus_per_job: float = 0.0
    """GPUs of each job; a fraction lets several share one. 0 computes on CPUs."""
    batch_size: int = 256
    """Images of a forward pass; halved and tried again when memory runs out."""
    num_loaders: int = 0
    """Processes of each job that decode images; 0 decodes in its threads."""
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """Of forward passes; auto takes fp32 on CPUs and tf32 on GPUs. All but fp32 give a protocol a hash of its own."""
    cache: Path | None = None
    """Folder of extracted features; the default is OUT/features."""
    check: bool = False
    """Only check protocols, tasks and models (--models may be left out), and run nothing."""


@from_python({"task_root": "task_roots", "set": "options"})
def evaluate(
    models: Mapping[str, str | Path],
    tasks: str | Sequence[str] = ("builtin",),
    protocols: str | Sequence[str] = ("linear",),
    seeds: int | Sequence[int] = (0,),
    *,
    out: str | Path = "results",
    options: Mapping[str, Any] | None = None,
    corruptions: str | Sequence[str] = (),
    severities: int | Sequence[int] = (1, 2, 3, 4, 5),
    task_roots: Mapping[str, str | Path] | None = None,
    data_root: str | Path = "data",
    cpus_per_job: int = 0,
    gpus_per_job: float = 0.0,
    batch_size: int = 256,
    num_loaders: int = 0,
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto",
) -> "pa.Table":
    """Evaluates models as `python -m eval` does, in parallel on Ray; what `out` has is not run again.

    Args:
        models: A run's folder, an export, a checkpoint, timm:NAME (pretrained) or random:NAME, each by a name.
        tasks: Tasks or suites: all, paper, vtab, vtab-natural, builtin; vtab1k, and vtab1k:NAME of any of these.
        protocols: linear, linear_sgd, knn, few_shot, finetune, classifier, or a module of your own.
        seeds: Seeds of whatever a protocol draws.
        out: Folder of results, for `python -m eval.report`.
        options: Changes of protocols, such as {"finetune.steps": 100}.
        corruptions: Test on corrupted images: "all", or kinds such as "fog"; linear is then called linear_corrupted.
        severities: Severities of the corruptions, 1 to 5.
        task_roots: Folder of a task by its name; a new name makes a task of your own (train/, test/, perhaps val/).
        data_root: Folder that holds the files of other tasks.
        cpus_per_job: CPUs, and CPU threads, of each job; 0 takes 1, and beside GPUs its node's CPUs in equal parts.
        gpus_per_job: GPUs of each job; a fraction lets several share one.
        batch_size: Images of a forward pass; halved and tried again when memory runs out.
        num_loaders: Processes of each job that decode images; 0 decodes in its threads.
        precision: Of forward passes: fp32, tf32 or bf16; auto takes fp32 on CPUs and tf32 on GPUs.

    Returns:
        One row for each metric of each of these jobs: model, task, protocol, seed, metric, value, n, ... (all columns:
        `eval.jobs.results.ResultRow`; `.to_pandas()` makes a data frame of it).

    Raises:
        UserError: Something is missing or unknown, or all jobs failed by such a mistake.
        RuntimeError: A job failed; the results of the others are kept, and the same call tries it again.
    """
    given = Arguments(
        out=Path(out),
        models=_pairs(models),
        **_lists(tasks=tasks, protocols=protocols, seeds=seeds, corruptions=corruptions, severities=severities),
        set=_pairs({path: json.dumps(value) for path, value in (options or {}).items()}),
        data_root=Path(data_root),
        task_root=_pairs(task_roots or {}),
        cpus_per_job=cpus_per_job,
        gpus_per_job=gpus_per_job,
        batch_size=batch_size,
        num_loaders=num_loaders,
        precision=precision,
    )
    check(given)
    return _results(given.out, run_evaluation(given, "tt_ray.evaluate"))


def _results(out: Path, evaluation: "Evaluation") -> "pa.Table":
    """Rows of the evaluation's jobs."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from eval.jobs.results import read_table

    rows, keys = read_table(out).rows, pa.array([job.key for job in evaluation.jobs], pa.string())
    return rows.filter(pc.call_function("is_in", [rows["job"]], pc.SetLookupOptions(value_set=keys)))


def _lists(**given: Any) -> dict[str, Any]:
    """One name or number, or several, by the names of arguments."""
    return {name: (each,) if isinstance(each, str | int) else tuple(each) for name, each in given.items()}


def _pairs(given: Mapping[str, Any]) -> tuple[str, ...]:
    if not isinstance(given, Mapping):
        raise UserError(f"{given!r} must be a dictionary, such as {{'mine': 'runs/mine'}} for models")
    return tuple(f"{name}={value}" for name, value in given.items())


def run_evaluation(given: Arguments, command: str) -> "Evaluation":
    """Runs the jobs that are missing, and prints a summary; `given` has been checked.

    Args:
        given: What to evaluate.
        command: The command line, kept with the results.

    Raises:
        UserError, RuntimeError: As `evaluate` does.
        Stopped: A signal has ended it; results so far are written.
    """
    with one_writer(inside(given.out), f"results {given.out}"):
        return _run(given, command)


def _run(given: Arguments, command: str) -> "Evaluation":
    from eval.contract import EvalConfig
    from eval.jobs.costs import keep_costs
    from eval.jobs.evaluation import failure, run_jobs, start_ray
    from eval.jobs.results import finished_keys
    from eval.jobs.scheduler import JobResources
    from eval.jobs.summary import print_summary

    with Display() as display:
        display.show("opening models and tasks", 0, 1)
        evaluation = open_evaluation(given)
        jobs = evaluation.jobs
        display.notes(note for task in evaluation.tasks.values() for note in task.left_out)
        done = finished_keys(given.out)
        missing = [job for job in jobs if job.key not in done]
        if len(missing) < len(jobs):
            display.say(f"{len(jobs) - len(missing)} of {len(jobs)} jobs are done already")
        resources = JobResources()
        if missing:
            place, resources = start_ray(given.cpus_per_job, given.gpus_per_job, display)
            display.say(f"{len(missing)} jobs on {place}, results in {given.out}")
        for weights, counts in evaluation.costs.items():
            keep_costs(given.out, weights, counts)
    device = "cuda" if given.gpus_per_job else "cpu"
    cache = (given.cache or given.out / "features").absolute()
    config = EvalConfig(None, cache, 0, device, int(resources.cpus), given.batch_size, given.num_loaders)
    failures = run_jobs(given.out, missing, evaluation.tasks, config, resources, command)
    print_summary(given.out, jobs, evaluation.metrics)
    print(f"report: {shlex.join([*program('eval.report').split(), str(given.out)])}")
    if failures:
        raise failure(failures, len(jobs))
    return evaluation


def check(given: Arguments) -> None:
    """Raises UserError on settings that are wrong whatever models and data hold."""
    if is_uri(str(given.out).replace(":/", "://", 1)):  # a Path has lost one of the two
        raise UserError(f"--out {given.out} must be a folder on this machine or on a file system that all nodes share")
    if given.out.exists() and not given.out.is_dir():
        raise UserError(f"--out {given.out} is a file: choose a folder")
    if given.batch_size < 1 or min(given.cpus_per_job, given.num_loaders) < 0:
        raise UserError("--batch-size must be at least 1, --cpus-per-job and --num-loaders at least 0")
    if given.gpus_per_job:
        from tt_ray.cluster.actor_pool import check_share

        check_share("--gpus-per-job", given.gpus_per_job)
    elif given.precision == "tf32":
        raise UserError("--precision tf32 is for GPUs: set --gpus-per-job, or choose fp32 or bf16")
    for name in ("models", "tasks", "protocols", "seeds", "corruptions", "severities"):
        values = getattr(given, name)
        if not values and not (name == "models" and given.check) and name != "corruptions":
            raise UserError(f"--{name} is empty")
        if len(set(values)) < len(values):
            raise UserError(f"--{name} has something twice: {' '.join(map(str, values))}")
    if given.severities != Arguments.severities and not given.corruptions:
        raise UserError("--severities is about --corruptions: name kinds, or all")


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
    found = tasks(given.tasks, roots, given.data_root, own, str(given.local_cache or ""))
    options = read_options(given.protocols, given.set)
    from eval.features.backbone import parse_models
    from eval.features.corruptions import parse_corruptions
    from eval.protocols.corrupted import corrupted_options

    if given.corruptions:
        options = corrupted_options(options, parse_corruptions(given.corruptions, given.severities))
    precision = given.precision
    if precision == "auto":
        precision = "tf32" if given.gpus_per_job else "fp32"
    return plan_evaluation(given.out, parse_models(given.models), found, options, given.seeds, precision)


def _pair(item: str) -> tuple[str, str]:
    name, equals, folder = item.partition("=")
    if not (name and equals and folder):
        raise UserError(f"--task-root {item!r} must be NAME=DIR")
    return name, folder
