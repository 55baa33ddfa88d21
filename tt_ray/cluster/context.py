"""A Ray Train worker as the training loop sees it, and the process group of its run."""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TypeVar

import ray
import ray.train.collective
import ray.train.torch
import ray.util
import torch
import torch.distributed as dist

from tt_ray.cluster.messages import Messages
from tt_ray.cluster.run_metrics import RunMetrics
from tt_ray.terminal.progress import Standing

T = TypeVar("T")
# How long the end of a run waits for work of other tasks, before it does that itself.
_LAST_WAIT_S = 30.0


@contextmanager
def process_group() -> Iterator[None]:
    """Forms torch's process group of this run's workers, unless Ray's TorchTrainer has, and leaves it at the end.

    After a failure it is not left, since its peers may never come: Ray ends the processes.
    """
    if dist.is_initialized():
        yield
        return
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # All imports are done: between the choice of a port and its use others may take it.
    place = _free_place() if context.get_world_rank() == 0 else None
    place = ray.train.collective.broadcast_from_rank_zero(place)
    rank, world = context.get_world_rank(), context.get_world_size()
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", f"tcp://{place}", rank=rank, world_size=world)
    yield
    dist.destroy_process_group()


def _free_place() -> str:
    """This machine's address, as other machines reach it, and a free port."""
    host = ray.util.get_node_ip_address()
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        port = server.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class RayContext:
    """The runner of a Ray Train worker."""

    has_others = True

    def __init__(self, messages: Messages, run: str) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self._messages, self._metrics = messages, RunMetrics(run)
        self._validations: dict[int, dict[str, float]] = {}
        self._patience: float | None = None

    def progress(self, standing: Standing) -> None:
        """Sends where the run stands to the command."""
        self._messages.send("progress", asdict(standing))

    def preparing(self, what: str, done: int, of: int) -> None:
        """Sends to the command what this worker does before the first step, and how far it is."""
        self._messages.send("preparing", [what, done, of])

    def measured(self, row: Mapping[str, float]) -> None:
        """Hands the row to Ray's metrics."""
        self._metrics.show(row)

    def requested(self) -> str:
        """One of REQUESTS, or nothing; a barrier of the workers, which all ask after the same step."""
        if ray.train.get_preemption_info() is not None:
            return "preempted"
        if self.rank > 0:
            return ""
        # The end of the command before a pause: a run that stops does not start again.
        return self._messages.get("request") or self._messages.get("pause") or ""

    def validated(self, epochs: int, scores: dict[str, float], kept: Callable[[], None]) -> None:
        """Sends all validations so far: the next message replaces one that has not been read."""
        self._validations[epochs] = scores
        self._messages.put("validations", self._validations)

    def beside(self, function: Callable[..., T], *arguments: Any) -> Callable[[bool], T | None]:
        """Runs `function` in a task, on a CPU (and a GPU) that no worker uses."""
        task = ray.remote(num_cpus=1, num_gpus=int(self.device.type == "cuda"), max_retries=2)(function)
        reference = task.remote(*arguments)

        def answer(wait: bool) -> T | None:
            if wait and self._patience is None:
                self._patience = time.monotonic() + _LAST_WAIT_S
            seconds = max((self._patience or 0) - time.monotonic(), 0) if wait else 0
            if ray.wait([reference], timeout=seconds)[0]:
                return ray.get(reference)
            if not wait:
                return None
            # The machine that it was meant for may be gone, and the workers leave nothing free: it runs next to them.
            ray.cancel(reference)
            return ray.get(task.options(num_cpus=0, num_gpus=0).remote(*arguments))

        return answer
