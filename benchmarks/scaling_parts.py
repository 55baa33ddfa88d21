"""The measured parts of benchmarks/scaling.py: counted operations, and rates of this machine."""

import dataclasses
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scaling_model import TextCost
from tt_ray.config import Config, HeadConfig
from tt_ray.data.loader import TrainBatches
from tt_ray.data.prepare import open_images
from tt_ray.data.sampling import train_order
from tt_ray.losses import find_loss
from tt_ray.models.classifier import Outputs, TextHead
from tt_ray.recipes.imagenet import in1k_vit_s_baseline
from tt_ray.training.checkpoint import Position, save_checkpoint
from tt_ray.training.losses_by_rows import BY_ROWS, Part, loss_by_rows
from tt_ray.training.objective import Objective
from tt_ray.training.snapshot import Snapshot


def model_cost(name: str, image_size: int, dim: int) -> tuple[int, int]:
    """Parameters, the text head's included, and FLOPs per image, forward and backward, of a timm model; no memory."""
    with torch.device("meta"):
        model, images = timm.create_model(name, num_classes=1000), torch.empty(1, 3, image_size, image_size)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    head = dim * (getattr(model, "num_features", 0) + 1) if dim else 0
    return sum(parameter.numel() for parameter in model.parameters()) + head, counter.get_total_flops()


class Tally(TorchDispatchMode):
    """Counts bytes: those that operations other than matrix products touch, and the most that live at once."""

    def __init__(self) -> None:
        super().__init__()
        self.traffic = self.peak = self._alive = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        view = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if not view:
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            if func.overloadpacket not in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
                used = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
                self.traffic += sum(min(leaf.nbytes, leaf.untyped_storage().nbytes()) for leaf in [*used, *made])
            for tensor in made:
                self._live(tensor.untyped_storage())
        return result

    def _live(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self._alive += size
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._dead, key, size)

    def _dead(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._alive -= size


def text_cost(loss: str, by_rows: bool, batch: int = 128, dim: int = 64) -> TextCost:
    """Runs the real objective, with its balance, at 1, 2 and 3 times `batch`, by rows as several workers do or not.

    What grows with the square of the batch is its second difference, f(3b) - 2 f(2b) + f(b) = 2 a b^2.
    """
    first, second, third = (_objective_cost(loss, by_rows, number * batch, dim) for number in (1, 2, 3))
    flops, traffic, peak = ((c - 2 * b + a) / (2 * batch * batch) for a, b, c in zip(first, second, third, strict=True))
    return TextCost(flops / dim, traffic, peak)


def _objective_cost(name: str, by_rows: bool, batch: int, dim: int) -> tuple[int, int, int]:
    width, loss = 32, find_loss(name)
    head, classifier = TextHead(HeadConfig(), width, dim, loss.initial_scalars()), nn.Linear(width, 4)
    features = torch.randn(batch, width, requires_grad=True)
    labels, text = torch.zeros(batch, dtype=torch.long), torch.randn(batch, dim)
    outputs = Outputs(features, classifier(features), head(features), head.scalars)

    def rows(pred: Tensor, target: Tensor, *scalars: Tensor) -> Tensor:
        return loss_by_rows(loss, Part((batch,)), pred, target, scalars)

    used = dataclasses.replace(loss, function=rows) if by_rows and loss.function in BY_ROWS else loss
    objective = Objective.of(Config().override("text.loss", name))._replace(loss=used)
    with FlopCounterMode(display=False) as counter, Tally() as tally:
        objective(outputs, labels, text, 0.5)[0].backward()
    return counter.get_total_flops(), tally.traffic, tally.peak


class Exchange(NamedTuple):
    """How fast n processes of this machine exchange floats with gloo."""

    latency: float
    """Seconds of an all-reduce of one float."""
    reduce_rate: float
    """Bytes per s that each sends in a large all-reduce: 2 (n - 1) / n of its size."""
    gather_latency: float
    gather_rate: float
    """Bytes per s that each receives in a large all-gather: (n - 1) / n of what is gathered."""


def exchange(processes: int, floats: int = 1_000_000, repeats: int = 20) -> Exchange:
    """Starts the processes and measures; with one there is nothing to exchange."""
    if processes == 1:
        return Exchange(0.0, float("inf"), 0.0, float("inf"))
    with tempfile.TemporaryDirectory(prefix="tt-ray-benchmark-") as folder:
        mp.spawn(_exchange, (processes, floats, repeats, folder), nprocs=processes)  # type: ignore[attr-defined]
        small, large, gather_small, gather_large = np.loadtxt(f"{folder}/seconds").tolist()
    moved = (processes - 1) / processes * floats * 4
    return Exchange(
        small, 2 * moved / max(large - small, 1e-9), gather_small, moved / max(gather_large - gather_small, 1e-9)
    )


def _exchange(rank: int, processes: int, floats: int, repeats: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=processes)

    def gather(size: int) -> None:
        dist.all_gather([torch.empty(size) for _ in range(processes)], torch.ones(size))

    calls: list[Callable[[], object]] = [
        lambda: dist.all_reduce(torch.ones(1)),
        lambda: dist.all_reduce(torch.ones(floats)),
        lambda: gather(1),
        lambda: gather(floats // processes),
    ]
    # Means: a run pays for each delay by other processes, too.
    seconds = [statistics.mean(timings(call, repeats)) for call in calls]
    if rank == 0:
        np.savetxt(f"{folder}/seconds", seconds)
    dist.destroy_process_group()


def timings(call: Callable[[], object], repeats: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of each call, after one that warms up."""
    call()
    taken = []
    for _ in range(repeats):
        start = clock()
        call()
        taken.append(clock() - start)
    return taken


def decode_rate(folder: Path, images: int = 96, batch: int = 32) -> tuple[float, float]:
    """Images per s and core with the ImageNet recipe's augmentation, and bytes of an image.

    The JPEGs are made here: 500 x 375 pixels at quality 96, the most common ones of ImageNet
    (terryalanunlimited.com, "Compression in the ImageNet Dataset"), smooth shapes under as much
    noise as gives ImageNet's 113 kB.
    """
    generator = np.random.default_rng(0)
    for split, count in (("train", images), ("val", 1)):
        for number in range(count):
            path = folder / split / f"class{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            _picture(generator).save(path, quality=96)
    config = in1k_vit_s_baseline().override("data.root", str(folder)).override("run.num_workers", 1)
    config = config.override("train.batch_size", batch)
    source, _, _ = open_images(config)
    batches = TrainBatches(source, None, train_order(config, len(source), 0, 1), config)
    step = iter(range(1_000_000))
    # Seconds of this process on a core, which other processes do not lengthen.
    seconds = statistics.median(timings(lambda: batches[next(step)], images // batch * 2, time.process_time))
    sizes = [path.stat().st_size for path in (folder / "train").glob("*/*.jpg")]
    return batch / seconds, statistics.mean(sizes)


def _picture(generator: np.random.Generator) -> Image.Image:
    coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), np.uint8)).resize(
        (500, 375), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(coarse) + generator.normal(0, 10, (375, 500, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_rate(folder: Path, size: int = 256 * 2**20) -> float:
    """Bytes per s of save_checkpoint, its checksums and its sync to the disk included."""
    state = Snapshot({"model": {"weights": torch.rand(size // 4)}}, {})
    position = Position(0, 0, 0)
    return size / min(timings(lambda: save_checkpoint(folder / "step", position, state, {}, ""), 2))
