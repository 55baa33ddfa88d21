"""Claim: the text loss by rows costs a worker 1/W of what it costs from gathered features, in work and in memory.

    python -m benchmarks.text_loss
    python -m benchmarks.text_loss --losses clip siglip --batch 2048

W gloo processes of one thread share a global batch of fixed size. Each computes a training step's objective from
features on, its balance and its backward pass included: `by rows` as trainings do, and `gathered`, every worker
computing the loss of the whole batch, as they did before and still do for losses of users. Counted: FLOPs, and the most
bytes that live at once. Timed: seconds of a worker's processor. The largest of the workers counts.
"""

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scaling_parts import Tally, timings
from benchmarks.step_cost import RESULTS
from tt_ray.config import Config, HeadConfig
from tt_ray.losses import ALIGNMENT_LOSSES, Loss
from tt_ray.models.classifier import Outputs, TextHead
from tt_ray.training.collectives import rank, world_size
from tt_ray.training.objective import Objective

_WIDTH, _CLASSES = 64, 10
WAYS = ("gathered", "by rows")


def gathered(loss: Loss) -> Loss:
    """The loss as one of a user's, which is computed from gathered features."""
    return dataclasses.replace(loss, function=lambda *given, **options: loss.function(*given, **options))


def worker(index: int, world: int, given: argparse.Namespace, folder: str) -> None:
    """Measures on one of the processes; the first writes what was found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet-{world}", rank=index, world_size=world)
    rows = []
    for name in given.losses:
        for way in WAYS:
            found = torch.tensor(_measure(name, way, given), dtype=torch.float64)
            dist.all_reduce(found, dist.ReduceOp.MAX)
            flops, peak, seconds = found.tolist()
            rows.append(
                {"loss": name, "workers": world, "way": way, "flops": flops, "peak_bytes": peak, "cpu_s": seconds}
            )
    if rank() == 0:
        Path(folder, f"{world}.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def _measure(name: str, way: str, given: argparse.Namespace) -> tuple[float, float, float]:
    """FLOPs, peak bytes and median CPU seconds of this worker's part of a step."""
    config, loss = Config().override("text.loss", name), ALIGNMENT_LOSSES[name]
    objective = Objective.of(config)._replace(loss=gathered(loss) if way == "gathered" else loss)
    own = given.batch // world_size()
    torch.manual_seed(rank())
    head = TextHead(HeadConfig(), _WIDTH, given.embedding_dim, loss.initial_scalars())
    classifier = nn.Linear(_WIDTH, _CLASSES)
    backbone, text = torch.randn(own, _WIDTH, requires_grad=True), torch.randn(own, given.embedding_dim)
    labels = torch.zeros(own, dtype=torch.long)

    def step() -> Tensor:
        features = backbone.clone()
        outputs = Outputs(features, classifier(features), head(features), head.scalars)
        total = objective(outputs, labels, text, 0.5)[0]
        total.backward()
        return total.detach()

    with FlopCounterMode(display=False) as counter, Tally() as tally:
        step()
    seconds = timings(step, given.repeats, time.process_time)
    return counter.get_total_flops(), tally.peak, median(seconds)


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each loss, number of workers and way."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tt-ray-benchmark-") as folder:
        for world in given.workers:
            mp.spawn(worker, (world, given, folder), nprocs=world)  # type: ignore[attr-defined]
            rows += json.loads(Path(folder, f"{world}.json").read_text())
    return sorted(rows, key=lambda row: given.losses.index(row["loss"]))


_SHOWN = (("flops", 1e9), ("peak_bytes", 1e6), ("cpu_s", 1e-3))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The lines of the table."""
    head = "| loss | workers | GFLOP, gathered | by rows | peak MB, gathered | by rows | CPU ms, gathered | by rows |"
    lines = [head, "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        columns = [f"{row[key] / by:.3g}" for key, by in _SHOWN for row in (before, after)]
        lines.append(f"| {before['loss']} | {before['workers']} | {' | '.join(columns)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    compared = [name for name, loss in ALIGNMENT_LOSSES.items() if loss.contrastive]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", default=compared, choices=[*ALIGNMENT_LOSSES])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--batch", type=int, default=1024, help="global batch")
    parser.add_argument("--embedding-dim", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "text_loss.json")
    given = parser.parse_args(arguments)
    rows = measure(given)
    print(*table(rows), sep="\n")
    settings = {key: value for key, value in vars(given).items() if key != "out"}
    here = {"cores": os.cpu_count(), "load_1min": os.getloadavg()[0]}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"settings": settings, "here": here, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
