"""What the training loop may ask of its runner, and the runners: one process, torchrun, Ray Train."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from tt_ray.progress import Standing


class Context(Protocol):
    """The runner, as the loop sees it."""

    rank: int
    world: int
    device: torch.device

    def report(self, metrics: dict[str, Any]) -> None:
        """Metrics of a finished epoch; every worker calls it."""

    def progress(self, standing: Standing) -> None:
        """Shows where the run stands; called on worker 0, must not block."""


@dataclass
class LocalContext:
    """One process, or several that torchrun started."""

    rank: int
    world: int
    device: torch.device
    show: Callable[[Standing], None] | None = None

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

    def report(self, metrics: dict[str, Any]) -> None:
        """Nobody listens."""

    def progress(self, standing: Standing) -> None:
        if self.show is not None and self.rank == 0:
            self.show(standing)


class RayContext:
    """A Ray Train worker. Ray has set up the process group."""

    def __init__(self, show: Callable[[Standing], None]) -> None:
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self._report, self._show = ray.train.report, show

    def report(self, metrics: dict[str, Any]) -> None:
        self._report(metrics)

    def progress(self, standing: Standing) -> None:
        self._show(standing)


class Stopwatch:
    """Time and images since the last reading, and the share of the time that went into waiting for data."""

    def __init__(self) -> None:
        self._start, self._images, self._waited = time.perf_counter(), 0, 0.0

    def waited(self, seconds: float, images: int) -> None:
        """One more batch arrived after `seconds`."""
        self._waited += seconds
        self._images += images

    def skip(self, seconds: float) -> None:
        """Leaves out time that is not training, such as validation."""
        self._start += seconds

    def read(self) -> tuple[float, float]:
        """Images per second and data-wait share since the last reading."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        result = self._images / seconds, self._waited / seconds
        self.__init__()
        return result
