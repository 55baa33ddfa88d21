"""The interface of the training loop's runner, and the runner without Ray: one process, or those of torchrun."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from tt_ray.terminal.gpu import gpu
from tt_ray.terminal.progress import Standing

T = TypeVar("T")
REQUESTS = ("stop", "pause", "preempted")
"""Requests of a runner to the loop, each met after a checkpoint: end the command, start again with more or fewer
workers, leave machines that are about to be taken away."""


class Context(Protocol):
    """The runner, as the loop sees it."""

    rank: int
    world: int
    device: torch.device
    has_others: bool
    """Whether `beside` has machines to use."""

    def progress(self, standing: Standing) -> None:
        """Shows the progress of the run; called on worker 0, must not block."""

    def measured(self, row: Mapping[str, float]) -> None:
        """Shows a row of metrics.jsonl elsewhere; called on worker 0, must not block."""

    def requested(self) -> str:
        """One of REQUESTS that has reached this worker, or nothing. Called by all workers after the same step."""
        ...

    def validated(self, epochs: int, scores: dict[str, float], kept: Callable[[], None]) -> None:
        """Reports a validation after so many epochs; called on worker 0. `kept` waits for the step's checkpoint."""

    def beside(self, function: Callable[..., T], *arguments: Any) -> Callable[[bool], T | None]:
        """Runs `function` elsewhere; returns a function of whether to wait, which returns the result or None."""
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
        """Joins torchrun's process group when its environment variables are there.

        Raises:
            UserError: The GPU cannot be used.
        """
        world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        device = gpu(int(os.environ.get("LOCAL_RANK", 0))) if use_gpu else torch.device("cpu")
        if world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if use_gpu else "gloo")
        return cls(rank, world, device, show)

    def progress(self, standing: Standing) -> None:
        if self.show is not None and self.rank == 0:
            self.show(standing)

    def measured(self, row: Mapping[str, float]) -> None:
        pass

    def requested(self) -> str:
        return self.request

    def validated(self, epochs: int, scores: dict[str, float], kept: Callable[[], None]) -> None:
        pass

    def beside(self, function: Callable[..., T], *arguments: Any) -> Callable[[bool], T | None]:
        raise NotImplementedError("there is nothing but this process")
