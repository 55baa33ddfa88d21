"""Claim: the language teacher makes a training step at most 3% slower (aim: ratio <= 1.03, best 1.01).

    python -m benchmarks.step_cost                 # ViT-S/16, 224 px, batch 32, CPU: about 10 s a step on two cores
    python -m benchmarks.step_cost --gpu --batch-size 256 --precision bf16 --steps 10

Two real Trainers, with text.weight 0 and with the text loss and its balance, take turns on one batch that is held in
memory: the whole of Trainer.step counts, from normalising pixels to the optimiser. The ratio is the median of the
rounds' ratios: both halves of a round meet the same state of the machine.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from tt_ray.config import Config
from tt_ray.data.loader import Batch, TrainBatches
from tt_ray.data.prepare import Data
from tt_ray.data.sources.base import Pixels, Source
from tt_ray.data.text_targets import TextTargets
from tt_ray.training.context import LocalContext
from tt_ray.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"


class Side(NamedTuple):
    """One side of a comparison."""

    name: str
    values: Sequence[float]
    """One value per round."""


class RandomTargets:
    """Stands in for TextTargets: one random embedding per row."""

    def __init__(self, rows: int, dim: int) -> None:
        self.dim, self._table = dim, torch.randn(rows, dim, generator=torch.Generator().manual_seed(0))

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Embeddings of the rows, float32, (len(rows), dim)."""
        return self._table[torch.from_numpy(rows)]


def compare(subject: Side, reference: Side, unit: str) -> dict[str, Any]:
    """Medians and quartiles of both sides and of the rounds' ratios, subject over reference."""
    ratios = [a / b for a, b in zip(subject.values, reference.values, strict=True)]
    sides = {side.name: _summary(side.values) for side in (subject, reference)}
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    machine |= {"torch": torch.__version__, "load_1min": os.getloadavg()[0]}
    return {"ratio": _summary(ratios), "unit": unit, "rounds": len(ratios), "sides": sides, "machine": machine}


def _summary(values: Sequence[float]) -> dict[str, Any]:
    low, _, high = quantiles(values, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": median(values), "quartiles": [low, high], "values": list(values)}


def report(result: dict[str, Any], aim: str, out: Path, of: str = "ratio") -> None:
    """Prints the table of a comparison and writes it to `out`; the aim is that of the row `of`."""
    print(f"| | median ({result['unit']}) | quartiles | aim |\n| --- | --- | --- | --- |")
    for name, row in {**result["sides"], "ratio": result["ratio"]}.items():
        low, high = row["quartiles"]
        print(f"| {name} | {row['median']:.4g} | {low:.4g} - {high:.4g} | {aim if name == of else ''} |")
    print(f"\n{result['rounds']} rounds; load of the machine {result['machine']['load_1min']:.1f}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"aim": {of: aim}, **result}, indent=2) + "\n")


def configure(given: argparse.Namespace, weight: float) -> Config:
    """The run that a side steps through; so long that its learning rate stays where it is."""
    settings = {
        "data.image_size": given.image_size,
        "data.augment": "none",
        "model.kwargs": {},
        "model.name": given.model,
        "text.weight": weight,
        "train.batch_size": given.batch_size,
        "train.precision": given.precision,
        "train.compile": given.compile,
        "train.epochs": 1_000_000,
    }
    return Config().override(settings)


def random_data(images: int, size: int, classes: int, dim: int) -> Data:
    """As many images of random pixels, with random labels and, for dim above 0, random embeddings."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (images, size, size, 3), np.uint8)

    def read(row: int) -> Any:
        raise NotImplementedError("pixels are all that this source has")

    def resized(rows: npt.NDArray[np.int64], side: int) -> Pixels:
        assert side == size
        return pixels[rows]

    ids = pa.array([str(row) for row in range(images)])
    names = tuple(str(number) for number in range(classes))
    source = Source(ids, generator.integers(0, classes, images), names, None, read, resized)
    return Data(source, source, cast(TextTargets, RandomTargets(images, dim)) if dim else None, ())


def stepper(config: Config, data: Data, device: torch.device) -> Callable[[int], float]:
    """A function that takes as many steps and gives the seconds of one; it waits for the device at both ends alone."""
    trainer = Trainer(config, data, LocalContext(0, 1, device))
    trainer.model.train()
    held = TrainBatches(data.train, data.targets, trainer.order, config)[0]
    text = None if held.text is None else held.text.to(device)
    batch = Batch(held.images.to(device), held.labels.to(device), text, held.rows.to(device), held.rest)
    done = 0

    def run(steps: int) -> float:
        nonlocal done
        synchronize(device)
        start = time.perf_counter()
        for step in range(done, done + steps):
            trainer.step(batch, step)
        synchronize(device)
        done += steps
        return (time.perf_counter() - start) / steps

    return run


def synchronize(device: torch.device) -> None:
    """Waits for the device, if it is one that works on its own."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Baseline and text take turns; the first rounds warm up."""
    if given.threads:
        torch.set_num_threads(given.threads)
    device = torch.device("cuda", 0) if given.gpu else torch.device("cpu")
    sides = []
    for weight, dim in ((0.0, 0), (0.5, given.embedding_dim)):
        data = random_data(given.batch_size, given.image_size, given.classes, dim)
        sides.append(stepper(configure(given, weight), data, device))
    seconds: tuple[list[float], list[float]] = [], []
    for number in range(-given.warm_up, given.repeats):
        for values, side in zip(seconds, sides, strict=True):
            taken = side(given.steps)
            if number >= 0:
                values.append(taken)
    result = compare(Side("with the text loss", seconds[1]), Side("baseline", seconds[0]), "s per step")
    settings = {key: value for key, value in vars(given).items() if key != "out"}
    return {**result, "settings": settings, "device": torch.cuda.get_device_name() if given.gpu else "cpu"}


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--embedding-dim", type=int, default=384, help="length of the text targets")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile the backbone")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 is torch's choice")
    parser.add_argument("--steps", type=int, default=1, help="steps between two readings of the clock")
    parser.add_argument("--repeats", type=int, default=20, help="rounds: a reading of either side")
    parser.add_argument("--warm-up", type=int, default=2, help="rounds before those that count")
    parser.add_argument("--out", type=Path, default=RESULTS / "step_cost.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = read_arguments(arguments)
    report(measure(given), "<= 1.03", given.out)


if __name__ == "__main__":
    main()
