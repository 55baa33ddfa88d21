"""The body of an evaluation's Ray task: opens the model (once a process), and runs one protocol or extraction."""

import functools
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from eval.contract import EvalConfig, Result
from eval.jobs.image_names import ImageNames
from eval.jobs.plan import Job
from eval.protocols.corrupted import corruptions_of
from eval.protocols.registry import protocol
from tt_ray.cluster.messages import Messages, send_pulls
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.gpu import device_of

if TYPE_CHECKING:
    from eval.features.backbone import Backbone
    from eval.tasks.registry import Task

# Models that a process keeps open: jobs come in the order of their length, not by model.
_OPEN_MODELS = 4


@dataclass(frozen=True)
class Request:
    """One Ray task."""

    job: Job
    task: "Task"
    config: EvalConfig
    extraction: bool = False
    """Only put the task's features into the cache, for this job and others."""
    beside: tuple[Job, ...] = ()
    """Jobs of other models whose features an extraction makes as well: it decodes the images once."""


@dataclass(frozen=True)
class Answer:
    """Outcome of a request."""

    result: Result | None
    """None after an extraction, and where there is a problem."""
    seconds: float
    """Wall time, opening the model included."""
    problem: str = ""
    """What went wrong, in one line."""
    kind: Literal["", "mistake", "memory", "failure"] = ""
    """mistake: the user can fix it; memory: a smaller batch may help."""
    names: ImageNames | None = None
    """Names of the classes and images that the job was tested on; None where there is no result."""


def work(request: Request, messages: Messages | None = None) -> Answer:
    """Runs a request; mistakes and failures come back as answers, so that Ray sees only what killed the process.

    `messages` hear what is pulled from object storage meanwhile.
    """
    import torch

    if messages is not None:
        send_pulls(messages)
    start = time.perf_counter()
    torch.set_num_threads(request.config.threads)
    # A fine-tuning before this may have left TF32 on in the process; with it, solvers would miss their tolerance.
    torch.set_float32_matmul_precision("highest")
    result, names, problem, kind = None, None, "", ""
    try:
        result = _run(request)
        names = None if result is None else _names(request.task)
    except UserError as error:
        problem, kind = str(error), "mistake"
    except (torch.OutOfMemoryError, MemoryError) as error:
        problem, kind = f"out of memory: {error}", "memory"
    except Exception as error:
        kind = "memory" if "can't allocate memory" in str(error) else "failure"
        problem = f"{type(error).__name__}: {error}"
    if kind == "memory" and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Answer(result, time.perf_counter() - start, " ".join(problem.split())[:500], kind, names)


def _run(request: Request) -> Result | None:
    from eval.features.cache import fill_cache

    device_of(request.config.device)
    job, task = request.job, request.task
    backbone = _open(job.model, job.spec, job.weights)
    if request.extraction:
        others = [_open(each.model, each.spec, each.weights) for each in request.beside]
        fill_cache([backbone, *others], task, request.config, corruptions_of(request.config.options))
        return None
    result = protocol(job.protocol).evaluate(backbone, task, request.config)
    config = request.config
    # A job that ran out of memory has got a smaller batch.
    return replace(result, chosen={"precision": config.precision} | result.chosen | {"batch_size": config.batch_size})


_LAST_NAMES: list[tuple["Task", ImageNames]] = []
"""Those of the last task, at most: jobs on one task follow each other, and opening a large one takes seconds."""


def _names(task: "Task") -> ImageNames:
    if not _LAST_NAMES or _LAST_NAMES[0][0] != task:
        source = task.open("test")
        _LAST_NAMES[:] = [(task, ImageNames(source.classes, source.ids))]
    return _LAST_NAMES[0][1]


@functools.lru_cache(_OPEN_MODELS)
def _open(name: str, spec: str, weights: str) -> "Backbone":
    from eval.features.backbone import open_backbone

    backbone = open_backbone(name, spec)
    if backbone.identity != weights:
        raise UserError(f"{spec} has changed since the command began: run the command again")
    return backbone
