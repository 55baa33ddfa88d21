"""Claim: evaluation jobs cost little beside their own work, two at once are nearly twice as fast, and many fit.

    python -m benchmarks.transfer                 # all parts
    python -m benchmarks.transfer --parts jobs tiny extraction --repeats 3

jobs: equal fine-tuning jobs of one thread, one at a time and one for each CPU, by the scheduler of `python -m eval`
on Ray; the efficiency is the sequential time over as many times the concurrent one (aim >= 0.85), and what the
sequential time has beyond the jobs' own seconds is the overhead (aim < 0.3 s a job). Workers are warm: their start, and
the opening of the model, which a command pays once for each worker, are in neither. tiny: 5,000 jobs that do nothing in
one schedule, results written as the command writes them; the driver's memory when a fifth, two fifths ... of them have
ended (aim: the same; memory of Ray's own processes is not looked at). extraction: features of JPEG files from disk over
bare forward passes on batches in memory (aim >= 0.9), wall time. Both compute in one thread; extraction decodes in
another meanwhile, as it does in jobs, so that it uses more than one core: `--pin` puts both on the same single one.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.step_cost import RESULTS, Side, compare, report
from eval.contract import EvalConfig, Result
from eval.features.backbone import open_backbone
from eval.features.extract import extract
from eval.jobs.evaluation import Origin, keep
from eval.jobs.plan import Job, read_options
from eval.jobs.scheduler import JobResources, State, requests_for, schedule
from eval.jobs.worker import Answer, Request
from eval.tasks.registry import Task, folder_task, tasks

_ORIGIN = Origin("{}", "benchmarks.transfer")


def start() -> int:
    """Starts Ray on this machine; returns its CPUs."""
    from tt_ray.cluster.launch import join_ray

    join_ray()
    import ray

    return int(ray.cluster_resources()["CPU"])


def run(
    jobs: Sequence[Job],
    found: dict[str, Task],
    folder: Path,
    cpus: int,
    do: Any = None,
    looked: Callable[[State], None] = lambda state: None,
) -> tuple[float, float]:
    """Seconds of all jobs through the scheduler, results written, and the sum of the jobs' own seconds."""
    own = 0.0

    def ended(job: Job, answer: Answer) -> None:
        nonlocal own
        if answer.kind:
            raise RuntimeError(f"{job.label}: {answer.problem}")
        own += answer.seconds
        keep(folder, job, "top1", answer, _ORIGIN)

    requests = requests_for(jobs, found, EvalConfig(None, folder / "features"))
    begin = time.perf_counter()
    schedule(requests, JobResources(cpus), ended, looked, *([do] if do else []))
    return time.perf_counter() - begin, own


def measure_jobs(given: argparse.Namespace, folder: Path) -> None:
    """Twelve real jobs, one at a time and side by side, in turns."""
    cpus, spec = start(), f"random:{given.model}"
    steps = read_options(("finetune",), (f"finetune.steps={given.steps}", "finetune.rates=[0.001]"))["finetune"]
    weights = open_backbone("model", spec).identity
    jobs = [Job("model", spec, weights, "digits", 1, "finetune", steps, seed, 1) for seed in range(given.jobs)]
    found = tasks(["digits"])
    run(jobs[:cpus], found, folder, 1)  # workers import torch and open the model
    sequential, concurrent, overheads = list[float](), list[float](), list[float]()
    for number in range(given.repeats):
        for side in (0, 1) if number % 2 else (1, 0):
            wall, own = run(jobs, found, folder, 1 if side else cpus)
            if side:
                concurrent.append(wall * cpus)
            else:
                sequential.append(wall)
                overheads.append((wall - own) / len(jobs))
    result = compare(Side("one at a time", sequential), Side(f"{cpus} at once, times {cpus}", concurrent), "s")
    overhead = sorted(overheads)[len(overheads) // 2]
    report(result | {"overhead_s": overheads, "jobs": given.jobs}, ">= 0.85", given.out / "transfer_jobs.json")
    print(f"\noverhead of a job: {overhead:.3f} s (aim < 0.3)\n")


def nothing(request: Request) -> Answer:
    """A job without work: a result with a hundred predictions."""
    zeros = np.zeros(100, np.int32)
    return Answer(Result({"top1": 100.0, "mean_per_class": 100.0}, 100, zeros, zeros), 0.0)


def measure_tiny(given: argparse.Namespace, folder: Path) -> None:
    """Many jobs: seconds of each, and the driver's memory on the way."""
    start()
    memory: list[float] = []
    options = read_options(("knn",), ())["knn"]
    jobs = [Job("model", "spec", "weights", "digits", 1, "finetune", options, seed, 1) for seed in range(given.tiny)]

    def looked(state: State) -> None:
        over = len(jobs) - state.waiting - len(state.running)
        if over >= (len(memory) + 1) * len(jobs) / 5:
            memory.append(_resident_mb())
            print(f"{over} of {len(jobs)} jobs ended: {memory[-1]:.0f} MB in the driver", flush=True)

    wall, _ = run(jobs, tasks(["digits"]), folder / "tiny", 1, nothing, looked)
    print(f"{1000 * wall / len(jobs):.1f} ms each", flush=True)
    result = {
        "resident_mb": memory, "jobs": given.tiny, "growth": memory[-1] / memory[0], "ms_each": 1000 * wall / len(jobs)
    }  # fmt: skip
    print(f"memory at the end over memory after a fifth: {result['growth']:.3f}\n")
    (given.out / "transfer_tiny.json").write_text(json.dumps(result, indent=2) + "\n")


def measure_extraction(given: argparse.Namespace, folder: Path) -> None:
    """Images per second from JPEG files on disk, and of forward passes on one batch in memory, in turns."""
    torch.set_num_threads(1)
    if given.pin:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    root = _pictures(folder / "pictures", given.images)
    source = folder_task("pictures", root).open("train")
    backbone = open_backbone("model", f"random:{given.extraction_model}")
    config = EvalConfig(None, folder, threads=1, batch_size=32)
    size = backbone.preprocessing.size
    batch = torch.randn(config.batch_size, 3, size, size)
    rates: dict[str, list[float]] = {"extraction": [], "bare forward passes": []}
    for number in range(given.repeats + 1):
        begin = time.perf_counter()
        extract(backbone, source, config)
        middle = time.perf_counter()
        with torch.inference_mode():
            for _ in range(-(-len(source) // len(batch))):
                backbone.pooled(batch)
        if number:  # the first round warms up
            rates["extraction"].append(len(source) / (middle - begin))
            rates["bare forward passes"].append(len(source) / (time.perf_counter() - middle))
    sides = [Side(name, values) for name, values in rates.items()]
    result = compare(sides[0], sides[1], "images per s") | {"pinned to one core": given.pin}
    report(result, ">= 0.9", given.out / "transfer_extraction.json")


def _pictures(root: Path, count: int) -> Path:
    """JPEG files of 256 px in two classes; the test split is a token."""
    generator = np.random.default_rng(0)
    for split, number in (("train", count), ("test", 4)):
        for row in range(number):
            file = root / split / "ab"[row % 2] / f"{row}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8))
            small.resize((256, 256), Image.Resampling.BICUBIC).save(file, quality=90)
    return root


def _resident_mb() -> float:
    fields = Path("/proc/self/status").read_text().split()
    return int(fields[fields.index("VmRSS:") + 1]) / 1024


PARTS = {"jobs": measure_jobs, "tiny": measure_tiny, "extraction": measure_extraction}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--jobs", type=int, default=12, help="jobs of a round")
    parser.add_argument("--steps", type=int, default=60, help="training steps of a job")
    parser.add_argument("--model", default="test_vit", help="timm model that jobs train")
    parser.add_argument("--tiny", type=int, default=5000, help="jobs without work")
    parser.add_argument("--images", type=int, default=512, help="JPEG files")
    parser.add_argument("--extraction-model", default="vit_small_patch16_224", help="timm model of the extraction")
    parser.add_argument("--pin", action="store_true", help="extraction: everything on one core")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of JSON files")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    for part in given.parts:
        with tempfile.TemporaryDirectory(prefix="tt-ray-transfer-") as folder:
            PARTS[part](given, Path(folder))


if __name__ == "__main__":
    main()
