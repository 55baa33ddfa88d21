"""A pool of Ray Data actors that does the missing shards of some work: a GPU each, or some CPU threads each."""

import itertools
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa

from tt_ray.cluster.connect import join_ray
from tt_ray.cluster.messages import Messages, pulls_shown, send_pulls
from tt_ray.cluster.ray_errors import ENDED, own_words
from tt_ray.io.resumable import Shards
from tt_ray.terminal.errors import UserError
from tt_ray.terminal.progress import Display

# Ray Data gives up after so long without a finished shard; its own 30 minutes are short for large models on CPUs.
_PATIENCE_S = 4 * 3600.0
# Deaths of an actor's process, such as for lack of memory, without a finished shard between them, after which its work
# has failed. Ray Data starts it again for ever.
_DEATHS = 3
_SMALLEST_SHARE = 0.01


@dataclass(frozen=True)
class PoolOptions:
    """Number of actors, and what each of them computes on."""

    actors: int = 0
    """Number of actors; 0 takes as many as fit: one for each GPU, or one for every `threads` CPUs of the cluster."""
    threads: int = 1
    """CPUs, and CPU threads, of each actor. Results do not depend on the number of actors, but rounding may depend on
    the number of threads."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes GPUs where the cluster has any; they compute in bfloat16, CPUs in float32."""
    gpus_per_actor: float = 1.0
    """GPU of each actor; a fraction lets several share one."""

    def check(self) -> None:
        """Raises UserError on numbers that no cluster has."""
        if self.actors < 0 or self.threads < 1:
            raise UserError(f"--actors is {self.actors} and --threads is {self.threads}: choose at least 0 and 1")
        check_share("--gpus_per_actor", self.gpus_per_actor)


@dataclass(frozen=True)
class Pool:
    """A pool that fits the cluster."""

    actors: int
    threads: int
    gpu: bool
    share: float = 1.0
    """Part of a GPU that each actor takes, where `gpu`."""

    @property
    def device(self) -> str:
        """torch's name for what an actor computes on."""
        return "cuda" if self.gpu else "cpu"


class Worker(Protocol):
    """The work of an actor; made inside it."""

    about: dict[str, Any]
    """Everything that its answers depend on, in JSON's types."""

    def __call__(self, items: list[Any]) -> bytes:
        """The finished shard; raises UserError when it cannot be made."""
        ...


def plan_pool(options: PoolOptions, nodes: Sequence[Mapping[str, float]]) -> Pool:
    """The pool on a cluster whose nodes have these resources.

    Raises UserError when the actors do not fit: Ray would wait for ever.
    """
    options.check()
    gpus, cpus = (sum(int(node.get(kind, 0)) for node in nodes) for kind in ("GPU", "CPU"))
    gpu = options.device == "gpu" or (options.device == "auto" and gpus > 0)
    places = places_on(nodes, options.threads, options.gpus_per_actor if gpu else 0)
    actors = options.actors or max(places, 1)
    if actors > places:
        part = "a GPU" if options.gpus_per_actor == 1 else f"{options.gpus_per_actor:g} GPUs"
        each = f"{options.threads} CPUs{f' and {part}' if gpu else ''}"
        raise UserError(
            f"{actors} actors with {each} each do not fit the cluster, which has "
            f"{cpus} CPUs and {gpus} GPUs on {len(nodes)} nodes: "
            "choose lower --actors or --threads, or another --device"
        )
    return Pool(actors, options.threads, gpu, options.gpus_per_actor if gpu else 1.0)


def check_share(option: str, gpus: float) -> None:
    """Raises UserError where a process cannot take this part of a GPU: Ray counts in parts of 0.0001."""
    if not _SMALLEST_SHARE <= gpus <= 1:
        raise UserError(f"{option} is {gpus}: choose 1, or a fraction of at least {_SMALLEST_SHARE:g} to share a GPU")


def places_on(nodes: Sequence[Mapping[str, float]], cpus: float, gpus: float) -> int:
    """Number of processes that fit side by side on nodes with these resources.

    Args:
        nodes: Resources of each node.
        cpus: CPUs of a process, all on one node; 0 counts GPUs alone.
        gpus: Its part of one GPU, at most 1; 0 counts CPUs alone.
    """
    # In Ray's own unit: as floating-point numbers, nine tenths of a GPU are all that fit into one.
    on_each = 10_000 // round(10_000 * gpus) if gpus else 0
    fits = (
        ([int(node.get("CPU", 0) // cpus)] if cpus else []) + ([int(node.get("GPU", 0)) * on_each] if gpus else [])
        for node in nodes
    )
    return sum(min(fit) for fit in fits)


def do_missing(
    shards: Shards,
    items: Sequence[Sequence[Any]],
    make: Callable[[Pool], Worker],
    options: PoolOptions,
    display: Display,
    what: str,
) -> None:
    """Makes the missing shards in actors, and keeps each as soon as it is done. Starts Ray only if there are any.

    Args:
        shards: All shards, finished ones included.
        items: Items of each shard, of JSON's types.
        make: Called in each actor, returns its worker.
        options: How many actors, on what.
        display: Shows the progress.
        what: What is counted, for the display.

    Raises:
        UserError: when actors do not fit the cluster, when a worker raises it, when workers differ from those that did
            the other shards, or when the disk is full.
        RuntimeError: when an actor fails.
    """
    missing = shards.missing()
    if not missing:
        return
    options.check()
    display.show("starting Ray", 0, 1)
    join_ray(display.say)
    import ray

    pool = plan_pool(options, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    pool = replace(pool, actors=min(pool.actors, len(missing)))
    free = ray.available_resources().get("CPU", 0)
    if free < pool.actors * pool.threads:
        display.say(f"only {free:g} CPUs of the cluster are free: some of {pool.actors} actors may have to wait")
    done, of = 0, sum(len(items[shard]) for shard in missing)
    display.show(what, 0, of, f"starting {pool.actors} actors")
    for answer in _answers(shards.about, [(shard, items[shard]) for shard in missing], make, pool, display):
        about = json.loads(answer["about"])
        if answer["failed"]:
            raise _failed(answer["problem"])
        if answer["problem"]:
            raise UserError(answer["problem"])
        shards.check(about)
        shards.add(answer["shard"], about, answer["content"])
        done += len(items[answer["shard"]])
        display.show(what, done, of)
    assert not shards.missing(), "Ray Data drops nothing"


def _answers(
    about: dict[str, Any] | None,
    todo: list[tuple[int, Sequence[Any]]],
    make: Callable[[Pool], Worker],
    pool: Pool,
    display: Display,
) -> Iterator[dict[str, Any]]:
    """Yields the actors' answer for each shard, in the order in which they finish.

    A shard is one row and one block: however Ray Data hands them out, an actor sees the same items together.
    """
    import ray
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = _PATIENCE_S
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # the log file stays
            handler.setLevel(logging.CRITICAL)
    rows = [{"shard": shard, "items": json.dumps(list(items)).encode()} for shard, items in todo]
    messages = Messages()
    answers = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Actor,
        fn_constructor_args=(make, pool, about, messages, _DEATHS),
        batch_size=1,
        batch_format="pyarrow",
        # One shard in work and one waiting: more would leave the last ones queued behind a slow actor.
        compute=ray.data.ActorPoolStrategy(size=pool.actors, max_tasks_in_flight_per_actor=2),
        num_cpus=pool.threads,
        num_gpus=pool.share if pool.gpu else None,
    )
    try:
        # Prefetching would hold back the last finished shard until the next one is there.
        batches: Iterator[Any] = iter(answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        with _core_muted(), pulls_shown(messages, display.show):  # from the first shard on, shards are counted
            first = next(batches)
        for batch in itertools.chain([first], batches):
            yield from batch.to_pylist()
    except RayError as error:
        raise _failed(own_words(error)) from error


def _failed(words: str) -> RuntimeError:
    return RuntimeError(f"an actor failed: {words}; the same command resumes where this one stopped")


@contextmanager
def _core_muted() -> Iterator[None]:
    """Python still writes to stderr, Ray's core does not.

    It calls Ray Data's way of making actors an error, as their arguments could get lost; Ray Data keeps them.
    """
    with os.fdopen(os.dup(2), "w", buffering=1) as ours, Path(os.devnull).open("w") as nowhere:
        before, sys.stderr = sys.stderr, ours
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(ours.fileno(), 2)
            sys.stderr = before


class Actor:
    """Runs in a process of its own. Errors travel as data: Ray would wrap them in its own, or fail to carry them."""

    def __init__(
        self,
        make: Callable[[Pool], Worker],
        pool: Pool,
        expected: dict[str, Any] | None,
        messages: Messages,
        most_deaths: int = _DEATHS,
    ) -> None:
        import ray

        send_pulls(messages)
        self._messages, self._name = messages, ray.get_runtime_context().get_actor_id() or ""
        deaths = self._messages.get(self._name) or 0
        self._messages.put(self._name, deaths + 1)  # one that dies before its next shard is done has counted itself
        self._worker, self._expected, self._failed = None, expected, deaths > most_deaths
        self._problem = f"{ENDED}, {deaths} times" if self._failed else ""
        if not self._failed:
            self._problem = self._try(lambda: self._make(make, pool))
            if self._problem and not self._failed:  # a folder, say, that only other machines have
                self._problem += f" (on {socket.gethostname()})"

    def _make(self, make: Callable[[Pool], Worker], pool: Pool) -> None:
        # Rust's thread pool, which tokenizes, takes all cores otherwise.
        os.environ["RAYON_NUM_THREADS"] = str(pool.threads)
        import torch

        torch.set_num_threads(pool.threads)
        self._worker = make(pool)

    def __call__(self, batch: pa.Table) -> pa.Table:
        (row,) = batch.to_pylist()
        about = self._worker.about if self._worker else {}
        answer = {"shard": row["shard"], "about": json.dumps(about), "content": b"", "problem": self._problem}
        # The driver refuses another encoder than before; nothing is done for it.
        if self._worker and self._expected in (None, about):
            work = partial(self._worker, json.loads(row["items"]))
            answer["problem"] = self._try(lambda: answer.update(content=work()))
            self._messages.put(self._name, 0)
        return pa.Table.from_pylist([{**answer, "failed": self._failed}])

    def _try(self, work: Callable[[], Any]) -> str:
        """Runs `work`; returns why it failed, in one line, or an empty string."""
        self._failed = False
        try:
            work()
        except UserError as error:
            return str(error)
        except Exception as error:
            self._failed = True
            return own_words(error)
        return ""
