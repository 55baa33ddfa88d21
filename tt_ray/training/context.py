"""What the training loop may ask of its runner, and the runners: one process, torchrun, Ray Train."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from tt_ray.cluster.messages import Mailbox
from tt_ray.terminal.progress import Standing

T = TypeVar("T")
# How long the end of a run waits for what it has given to others, before it sees to it itself.
_LAST_WAIT_S = 30.0


REQUESTS = ("stop", "pause", "preempted")
"""What a runner may want of the loop, each after a checkpoint: to end the command, to start again with more or fewer
workers, to leave machines that are about to be taken away."""


class Context(Protocol):
    """The runner, as the loop sees it."""

    rank: int
    world: int
    device: torch.device
    has_others: bool
    """Whether `beside` has machines to use."""

    def progress(self, standing: Standing) -> None:
        """Shows where the run stands; called on worker 0, must not block."""

    def requested(self) -> str:
        """One of REQUESTS that has reached this worker, or nothing. Called by all workers after the same step."""
        ...

    def validated(self, epochs: int, scores: dict[str, float], kept: Callable[[], None]) -> None:
        """Tells of a validation after so many epochs; called on worker 0. `kept` waits for the step's checkpoint."""

    def beside(self, function: Callable[..., T], *arguments: Any) -> Callable[[bool], T | None]:
        """Runs `function` elsewhere. The answer, told whether to wait, gives its result, None before it is there."""
        ...


@dataclass
class LocalContext:
    """One process, or several that torchrun started."""

    rank: int
    world: int
    device: torch.device
    show: Callable[[Standing], None] | None = None
    request: str = ""
    has_others: bool = False

    @classmethod
    def start(cls, use_gpu: bool, show: Callable[[Standing], None] | None = None) -> "LocalContext":
        """Joins torchrun's process group when its environment variables are there."""
        world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if use_gpu else torch.device("cpu")
        if use_gpu:
            torch.cuda.set_device(device)
        if world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if use_gpu else "gloo")
        return cls(rank, world, device, show)

    def progress(self, standing: Standing) -> None:
        if self.show is not None and self.rank == 0:
            self.show(standing)

    def requested(self) -> str:
        return self.request

    def validated(self, epochs: int, scores: dict[str, float], kept: Callable[[], None]) -> None:
        pass

    def beside(self, function: Callable[..., T], *arguments: Any) -> Callable[[bool], T | None]:
        raise NotImplementedError("there is nothing but this process")


class RayContext:
    """A Ray Train worker. Ray has set up the process group."""

    has_others = True

    def __init__(self, mailbox: Mailbox) -> None:
        import ray.train
        import ray.train.torch
        from ray.train.v2._internal.execution.context import get_train_context

        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self._mailbox = mailbox
        self._validations: dict[int, dict[str, float]] = {}
        self._notice = get_train_context().preemption_context
        self._patience: float | None = None

    def progress(self, standing: Standing) -> None:
        self._mailbox.put("progress", asdict(standing))

    def requested(self) -> str:
        # What ray.train.get_preemption_info() gives on worker 0, without its barrier: the loop asks all workers anyway.
        if self._notice.preemption_info is not None:
            return "preempted"
        # The end of the command before a pause: who stops does not start again.
        return (self._mailbox.get("request") or self._mailbox.get("pause") or "") if self.rank == 0 else ""

    def validated(self, epochs: int, scores: dict[str, float], kept: Callable[[], None]) -> None:
        # All of them: a message that nobody has read is replaced by the next.
        self._validations[epochs] = scores
        self._mailbox.put("validations", self._validations)

    def beside(self, function: Callable[..., T], *arguments: Any) -> Callable[[bool], T | None]:
        import ray

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
            # The machine that it was meant for may be gone, and the workers leave nothing free: it runs beside them.
            ray.cancel(reference)
            return ray.get(task.options(num_cpus=0, num_gpus=0).remote(*arguments))

        return answer
