"""An evaluation from start to end: its jobs are planned, run on Ray, and their results kept."""

import dataclasses
import json
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.contract import EvalConfig, Precision
from eval.jobs.costs import Costs, missing_counts
from eval.jobs.image_names import keep_names
from eval.jobs.live_table import JobTable
from eval.jobs.plan import Job, plan_jobs
from eval.jobs.results import ResultRow, write_result
from eval.jobs.scheduler import JobResources, State, requests_for, schedule
from eval.jobs.worker import Answer, work
from tt_ray.cluster.actor_pool import places_on
from tt_ray.cluster.messages import pulls_announced
from tt_ray.io.provenance import versions
from tt_ray.terminal.errors import Stopped, UserError, reason
from tt_ray.terminal.progress import Display
from tt_ray.terminal.signals import stop_on_signals

if TYPE_CHECKING:  # they import much
    from eval.tasks.registry import Task


@dataclass(frozen=True)
class Evaluation:
    """Everything that is known before the first job starts."""

    jobs: list[Job]
    """All jobs, those that are done included, the longest first."""
    tasks: Mapping[str, "Task"]
    costs: Mapping[str, Costs]
    """Costs of models that the folder of results lacks, by the hash of their weights."""

    @property
    def metrics(self) -> dict[str, str]:
        """Each task's own metric, by its name."""
        return {name: task.metric for name, task in self.tasks.items()}


def plan_evaluation(
    out: Path,
    specs: Mapping[str, str],
    tasks: Mapping[str, "Task"],
    options: Mapping[str, Any],
    seeds: Sequence[int],
    precision: Precision = "fp32",
) -> Evaluation:
    """Opens every model, one at a time, and plans the jobs.

    Args:
        out: Folder of results.
        specs: Models as the user wrote them, by name.
        tasks: Tasks by name.
        options: Each protocol's `Options`, by name.
        seeds: Seeds of whatever a protocol draws.
        precision: Of forward passes.

    Raises:
        UserError: A model cannot be opened, or there is nothing to do.
    """
    from eval.features.backbone import open_backbone

    models: dict[str, tuple[str, str]] = {}
    costs: dict[str, Costs] = {}
    for name, spec in specs.items():
        backbone = open_backbone(name, spec)
        models[name] = spec, backbone.identity
        if (counts := missing_counts(out, backbone)) is not None:
            costs[backbone.identity] = counts
    jobs = plan_jobs(models, tasks, options, seeds, precision)
    if not jobs and specs:
        raise UserError("nothing to do: these tasks have no training images, choose --protocols classifier")
    return Evaluation(jobs, tasks, costs)


def start_ray(cpus: int, gpus: float, display: Display) -> tuple[str, JobResources]:
    """Joins or starts Ray; returns a description of the place, and what each job takes of it.

    Args:
        cpus: CPUs of a job; 0 chooses, see `cpus_beside`.
        gpus: Its part of a GPU, or none.
        display: Shows the progress.

    Raises:
        UserError: No node can ever hold a job.
    """
    from tt_ray.cluster.connect import cluster_address, join_ray

    display.show("starting Ray", 0, 1)
    joined = join_ray(display.say)
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    resources = JobResources(cpus or cpus_beside(gpus, nodes), gpus)
    _check_nodes(resources, nodes)
    return f"the Ray cluster at {cluster_address()}" if joined else "this machine", resources


def cpus_beside(gpus: float, nodes: Sequence[Mapping[str, float]]) -> int:
    """CPUs of each job: one; beside GPUs, which wait for images, an equal part of all that its node has."""
    jobs_on = [(node.get("CPU", 0), places_on([node], 0, gpus)) for node in nodes] if gpus else []
    return max(1, min((int(cpus // jobs) for cpus, jobs in jobs_on if jobs), default=1))


def _check_nodes(resources: JobResources, nodes: Sequence[Mapping[str, float]]) -> None:
    """Raises UserError where no node can ever hold a job: Ray would wait for ever."""
    wanted = {"CPU": resources.cpus, "GPU": resources.gpus}
    if not any(all(node.get(kind, 0) >= number for kind, number in wanted.items()) for node in nodes):
        most = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in wanted}
        raise UserError(
            f"a job wants {resources.cpus} CPUs and {resources.gpus:g} GPUs, but the largest node has "
            f"{most['CPU']:g} CPUs and {most['GPU']:g} GPUs: choose lower --cpus-per-job or --gpus-per-job"
        )


def run_jobs(
    out: Path,
    jobs: Sequence[Job],
    tasks: Mapping[str, "Task"],
    config: EvalConfig,
    resources: JobResources,
    command: str,
) -> list[Answer]:
    """Runs jobs on Ray, which has been started, and writes the result of each as it ends.

    Args:
        out: Folder of results.
        jobs: Jobs to run.
        tasks: Their tasks, by name.
        config: Settings of all jobs; options and seed are each job's own.
        resources: What Ray sets aside for a job.
        command: The command line, kept with the results.

    Returns:
        Answers of the jobs that failed.

    Raises:
        Stopped: A signal ended the command; results so far are written.
    """
    if not jobs:
        return []
    origin = Origin(json.dumps(versions()), command)
    failures: list[Answer] = []
    with ExitStack() as stack:
        table = stack.enter_context(JobTable(list(jobs), Display()))
        messages = stack.enter_context(pulls_announced(table.display))
        came = stack.enter_context(stop_on_signals(lambda: None, signal.SIGINT, signal.SIGTERM))

        def ended(job: Job, answer: Answer) -> None:
            metric = tasks[job.task].metric
            keep(out, job, metric, answer, origin)
            table.ended(job, answer, metric)
            if answer.kind:
                failures.append(answer)

        def looked(state: State) -> None:
            table.looked(state)
            if came:  # an exception out of the handler could strike anywhere in Ray
                text = f"stopped with {table.done} of {table.of} jobs done; the same command continues with the rest"
                raise Stopped(text, 128 + came[0])

        schedule(requests_for(jobs, tasks, config), resources, ended, looked, partial(work, messages=messages))
    return failures


@dataclass(frozen=True)
class Origin:
    """Provenance of results, kept with each of them."""

    versions: str
    """JSON: packages and their versions, and the git commit of a checkout."""
    command: str
    """The command line that asked for the job."""


def keep(out: Path, job: Job, metric: str, answer: Answer, origin: Origin) -> None:
    """Writes a job's result, or the reason why there is none.

    Args:
        out: Folder of results.
        job: The job that ended.
        metric: Its task's own metric.
        answer: Its last answer.
        origin: Where the result comes from.

    Raises:
        UserError: The folder cannot be written to, or the disk is full.
    """
    row = ResultRow(
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
        versions=origin.versions,
        command=origin.command,
    )
    result = answer.result
    try:
        if result is None:
            write_result(out, job.key, [row])
            return
        chosen = result.chosen | {"options": dataclasses.asdict(job.options)}
        if answer.names is not None:
            chosen["image_names"] = keep_names(out, job.task, answer.names)
        row = dataclasses.replace(row, n=result.n, chosen=json.dumps(chosen, default=str))
        rows = [dataclasses.replace(row, metric=name, value=float(value)) for name, value in result.metrics.items()]
        write_result(out, job.key, rows, result.predictions, result.labels, result.confidence)
    except OSError as error:
        raise UserError(f"cannot write results to {out}: {reason(error)}: choose another --out") from None


def failure(answers: Sequence[Answer], of: int) -> Exception:
    """The exception that the command ends with when jobs failed: a UserError where all did by the user's mistake."""
    reasons = dict.fromkeys(answer.problem for answer in answers)
    text = f"{len(answers)} of {of} jobs failed: {'; '.join(list(reasons)[:3])}"
    if len(reasons) > 3:
        text += f"; and {len(reasons) - 3} more reasons, see the report"
    mistake = len(answers) == of and all(answer.kind == "mistake" for answer in answers)
    return UserError(text) if mistake else RuntimeError(f"{text}; the same command tries them again")
