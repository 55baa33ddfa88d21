"""Runs jobs as Ray tasks, the longest first; features that several jobs need are extracted by a task before them.

Whatever kills a task's process (the operating system for lack of memory, a lost node) costs that job one of its tries;
each new try has half the batch.
"""

import heapq
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from eval.contract import EvalConfig
from eval.jobs.plan import Job
from eval.jobs.worker import Answer, Request, work
from eval.protocols.registry import protocol
from tt_ray.cluster.actor_pool import places_on
from tt_ray.cluster.own_eval import call_pickled

_TRIES = 3
# Seconds between looks at the cluster's size, and between updates of the display while nothing ends.
_LOOK_S = 1.0
# Models whose features one task extracts, at most: they are in memory together.
_TOGETHER = 8
# An extraction is worth starting before any job that does not wait for one.
_EXTRACTION_COST = 1e12


@dataclass(frozen=True)
class JobResources:
    """Resources that Ray reserves for each task."""

    cpus: float = 1
    gpus: float = 0


@dataclass
class Item:
    """A request on its way."""

    request: Request
    cost: float
    waiting: list["Item"] = field(default_factory=list["Item"])
    """Items that can start when this one has ended."""
    tries: int = 0
    started: float = 0.0


@dataclass
class State:
    """The state of all jobs, for a display."""

    slots: int
    waiting: int
    running: list[tuple[str, float]]
    """Label, and seconds since it was handed to Ray."""


def schedule(
    requests: Sequence[Request],
    resources: JobResources,
    ended: Callable[[Job, Answer], None],
    looked: Callable[[State], None],
    do: Callable[[Request], Answer] = work,
) -> None:
    """Runs all requests, as tasks of the running Ray cluster.

    Args:
        requests: The requests.
        resources: What Ray reserves for each task.
        ended: Called with each job's last answer. What it raises is raised here, and jobs in flight are given up.
        looked: Called with the state from time to time.
        do: Function that does a request in its task.
    """
    _Scheduler(requests, resources, ended, looked, do).run()


class _Scheduler:
    def __init__(
        self,
        requests: Sequence[Request],
        resources: JobResources,
        ended: Callable[[Job, Answer], None],
        looked: Callable[[State], None],
        do: Callable[[Request], Answer],
    ) -> None:
        import ray

        self.ended, self.looked, self.resources = ended, looked, resources
        self.do = do
        self.remote = ray.remote(call_pickled).options(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=0)
        self.count = itertools.count()
        self.ready: list[tuple[float, int, Item]] = []
        self.flying: dict[Any, Item] = {}
        self.held = 0
        self.fit = self.slots()
        for item in _items(requests, self.fit):
            self.push(item)
            self.held += len(item.waiting)

    def push(self, item: Item) -> None:
        heapq.heappush(self.ready, (-item.cost, next(self.count), item))

    def run(self) -> None:
        import ray
        from ray import cloudpickle

        slots = self.fit
        while self.ready or self.flying:
            # As many again wait in Ray's own queue: no worker idles between two, and a cluster sees it should grow.
            while self.ready and len(self.flying) < 2 * slots:
                item = heapq.heappop(self.ready)[2]
                item.started = time.monotonic()
                self.flying[self.remote.remote(cloudpickle.dumps((self.do, item.request)))] = item
            done, _ = ray.wait(list(self.flying), num_returns=1, timeout=_LOOK_S)
            for reference in done:
                self.finish(self.flying.pop(reference), _answer(reference))
            now = time.monotonic()
            labels = [(_label(item), now - item.started) for item in self.flying.values()]
            # Before the cluster is asked anything: a signal that came to the command may have ended Ray as well.
            self.looked(State(slots, len(self.ready) + self.held, labels))
            slots = self.slots() if not done else slots

    def slots(self) -> int:
        """Tasks that fit the cluster side by side."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return max(places_on(nodes, self.resources.cpus, self.resources.gpus), 1)

    def finish(self, item: Item, answer: Answer) -> None:
        item.tries += 1
        if answer.kind and item.request.beside:  # one model must not fail the others, nor all fill the memory
            for each in _one_by_one(item):
                self.push(each)
            return
        if answer.kind == "memory" and item.tries < _TRIES:
            config = item.request.config
            smaller = replace(config, batch_size=max(config.batch_size // 2, 1))
            item.request = replace(item.request, config=smaller)
            self.push(item)
            return
        if answer.kind == "memory":
            answer = replace(answer, problem=f"{answer.problem} (tried {item.tries} times)")
        self.held -= len(item.waiting)
        if not item.request.extraction:
            self.ended(item.request.job, answer)
        for other in item.waiting:
            if answer.kind:
                self.ended(other.request.job, answer)
            else:
                self.push(other)


def _items(requests: Sequence[Request], slots: int) -> list[Item]:
    """Jobs that work on features wait for one extraction for each model and set of images.

    On GPUs, which wait for images, it is one for several models, as long as there are enough for all `slots`.
    """
    items: list[Item] = []
    extractions: dict[tuple[str, str], Item] = {}
    for request in requests:
        job = request.job
        item = Item(request, job.cost)
        if not protocol(job.protocol).TRAITS.on_features:
            items.append(item)
            continue
        place = (job.weights, job.images_key or job.task)
        if place not in extractions:
            extractions[place] = Item(replace(request, extraction=True), 0.0)
        extractions[place].waiting.append(item)
    on_gpu = bool(requests) and requests[0].config.device.startswith("cuda")
    together = min(-(-len(extractions) // slots), _TOGETHER) if on_gpu and extractions else 1
    by_images: dict[str, list[Item]] = {}
    for (_, images), item in extractions.items():
        by_images.setdefault(images, []).append(item)
    for alike in by_images.values():
        items += [_joined(alike[start : start + together]) for start in range(0, len(alike), together)]
    return items


def _joined(extractions: Sequence[Item]) -> Item:
    """One extraction for several models of the same images."""
    first, *others = (item.request for item in extractions)
    waiting = [each for item in extractions for each in item.waiting]
    cost = _EXTRACTION_COST + sum(each.cost for each in waiting)
    return Item(replace(first, beside=tuple(other.job for other in others)), cost, waiting)


def _one_by_one(item: Item) -> list[Item]:
    """An extraction for each model of one for several."""
    jobs = (item.request.job, *item.request.beside)
    mine = [[each for each in item.waiting if each.request.job.weights == job.weights] for job in jobs]
    alone = [replace(item.request, job=job, beside=()) for job in jobs]
    return [_joined([Item(request, 0.0, waiting)]) for request, waiting in zip(alone, mine, strict=True)]


def _answer(reference: Any) -> Answer:
    """The task's answer, or what killed it: the cause cannot be known, so less memory is worth a try."""
    import ray
    from ray.exceptions import RayError

    from tt_ray.cluster.ray_errors import is_death, own_words

    try:
        return ray.get(reference)
    except RayError as error:
        return Answer(None, 0.0, own_words(error), "memory" if is_death(error) else "failure")


def _label(item: Item) -> str:
    job, others = item.request.job, len(item.request.beside)
    models = f"{job.model} and {others} more" if others else job.model
    return f"{models} {job.task} features" if item.request.extraction else job.label


def requests_for(jobs: Sequence[Job], tasks: Mapping[str, Any], base: EvalConfig) -> list[Request]:
    """One request for each job, with the settings of `base`."""
    return [
        Request(job, tasks[job.task], replace(base, options=job.options, seed=job.seed, precision=job.precision))
        for job in jobs
    ]
