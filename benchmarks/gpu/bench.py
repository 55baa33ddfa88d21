"""What all sections use: the device, sizes, a configuration, data, and clocks that wait for the device at both ends."""

import gc
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import timm
import torch

from benchmarks.gpu.sections import Row
from benchmarks.loop_efficiency import random_store
from benchmarks.step_cost import Side, compare, random_data, stepper, synchronize
from tt_ray.config import Config
from tt_ray.data.prepare import Data, join
from tt_ray.data.sources.base import Source
from tt_ray.embeddings.store import EmbeddingStore, open_store
from tt_ray.models.device_profile import precision_on, use_gpu_profile

NEVER = 1_000_000_000
_WARM_UP = 3
K = TypeVar("K")
Take = Callable[[int], float]
"""Takes as many steps, and returns the seconds of one."""


@dataclass(frozen=True)
class Bench:
    """Where and how large: the same model and sizes in all sections."""

    device: torch.device
    folder: Path
    tiny: bool
    image_size: int = 224
    classes: int = 1000
    dim: int = 1024
    """Dimensions of embeddings."""
    batch: int = 256
    large: int = 1024
    """The batch for which the GPU is surely the slower part."""
    distinct: int = 1024
    """Different images; a split has each several times."""
    steps: int = 10
    """Between two readings of the clock."""
    rounds: int = 5
    loaders: int = 15

    @classmethod
    def make(cls, tiny: bool, folder: Path) -> "Bench":
        """On the first GPU, or toy sizes on the CPU."""
        if tiny or not torch.cuda.is_available():
            torch.set_num_threads(1)
            sizes: dict[str, Any] = {
                "image_size": 32,
                "classes": 10,
                "dim": 16,
                "batch": 8,
                "large": 16,
                "distinct": 16,
            }
            return cls(torch.device("cpu"), folder, tiny, **sizes, steps=1, rounds=2, loaders=1)
        device = torch.device("cuda", 0)
        torch.cuda.set_device(device)
        use_gpu_profile(device)  # for bare loops too: they are held against a step under the same settings
        loaders = max(1, min(15, len(os.sched_getaffinity(0)) - 1))
        return cls(device, folder, tiny, loaders=loaders)

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU to measure."""
        return self.device.type == "cuda"

    @property
    def precision(self) -> str:
        """What train.precision auto means here."""
        return precision_on(self.device, "auto")

    def machine(self) -> dict[str, Any]:
        """The machine: `card` is empty without a GPU, and else fit for a file's name."""
        about: dict[str, Any] = {"card": "", "gpu": ""}
        if self.cuda:
            name = torch.cuda.get_device_name(self.device)
            about = {"card": "-".join(name.lower().replace("/", " ").split()), "gpu": name}
            about |= {
                "memory_gib": round(torch.cuda.mem_get_info(self.device)[1] / 2**30, 1),
                "cuda": torch.version.cuda,
            }
        versions = {"torch": torch.__version__, "timm": timm.__version__, "python": platform.python_version()}
        return {**about, **versions, "cpus": len(os.sched_getaffinity(0))}

    @property
    def model(self) -> dict[str, Any]:
        """ViT-S/16, or a ViT that is as good as none."""
        small = {"patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 1}
        return {"model.name": "vit_small_patch16_224", "model.kwargs": small if self.tiny else {}}

    def config(self, **changes: Any) -> Config:
        """A training without end, validation or checkpoints; `section__field` changes a field."""
        settings = {
            "data.image_size": self.image_size,
            "data.augment": "none",
            "data.cache_gb": 8.0,
            "data.num_loaders": self.loaders,
            "text.weight": 0.5,
            "train.batch_size": self.batch,
            "train.compile": False,
            "train.epochs": NEVER,
            "train.eval_every": NEVER,
            "run.checkpoint_every": NEVER,
            "run.storage": str(self.folder / "runs"),
            "run.name": "run",
            "run.overwrite": True,
            "run.use_gpu": self.cuda,
            **self.model,
        }
        return Config().override({**settings, **{name.replace("__", "."): value for name, value in changes.items()}})

    def data(self, config: Config, images: int) -> Data:
        """As many images, of which `distinct` differ, joined with random embeddings where the run teaches."""
        few = self.few()
        whole = few.select(np.arange(images) % len(few))
        store = None
        if config.teaches:
            store = self.store(few)  # by id, which copies of an image share
        return join(config, whole, few.select(np.arange(min(len(few), self.batch))), store, [])

    def few(self) -> Source:
        """The images that differ."""
        return random_data(self.distinct, self.image_size, self.classes, 0).train

    def store(self, source: Source) -> EmbeddingStore:
        """Random embeddings of a split's images."""
        path = self.folder / f"store-{len(source)}"
        return open_store(path) if path.exists() else random_store(source, self.dim, path)

    def stepper(self, config: Config, dim: int = 0) -> Take:
        """Steps of a Trainer on one batch that stays on the device, with random text targets for dim above 0."""
        return stepper(config, random_data(config.train.batch_size, self.image_size, self.classes, dim), self.device)

    def timed(self, function: Callable[[], Any]) -> Take:
        """The same clock for a function of one's own."""

        def take(steps: int) -> float:
            synchronize(self.device)
            start = time.perf_counter()
            for _ in range(steps):
                function()
            synchronize(self.device)
            return (time.perf_counter() - start) / steps

        return take

    def take_turns(self, sides: Mapping[K, Take], steps: int = 0, rounds: int = 0) -> dict[K, list[float]]:
        """Seconds per step of each side, by round: sides of a round meet the same state of the machine."""
        seconds: dict[K, list[float]] = {name: [] for name in sides}
        for take in sides.values():
            take(1 if self.tiny else _WARM_UP)
        for _ in range(1 if self.tiny else rounds or self.rounds):
            for name, take in sides.items():
                seconds[name].append(take(steps or self.steps))
        return seconds

    def free(self) -> None:
        """Gives memory back; raises where the GPU has had an error."""
        gc.collect()
        torch.compiler.reset()  # else a size that changes from section to section is compiled as one that may change
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float:
        """The most memory that tensors have had since `free`."""
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.cuda else 0.0


def ratio(what: str, subject: Iterable[float], reference: Iterable[float], **aim: Any) -> Row:
    """The median of the rounds' ratios."""
    found = compare(Side("subject", list(subject)), Side("reference", list(reference)), "")["ratio"]
    low, high = found["quartiles"]
    return Row(what, found["median"], quartiles=(low, high), **aim)


def milliseconds(what: str, seconds: Iterable[float]) -> Row:
    """The median of the rounds."""
    return Row(what, 1e3 * float(np.median(list(seconds))), "ms")
