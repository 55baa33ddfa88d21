"""Predicts images per s from 1 to 512 GPUs for ViT-S, B and L, and says what limits each; nothing runs on a GPU.

    python -m benchmarks.scaling                 # measures this machine's parts, predicts, checks itself with torchrun
    python -m benchmarks.scaling --negatives local --network-gb-s 12.5
    python -m benchmarks.scaling --global-batch 4096 --no-check

Formulas and their sources: benchmarks/scaling_model.py. Counted or measured here: FLOPs and parameters of the timm
models, operations of the text loss, JPEGs decoded per s and core, the rate of checkpoints, steps and gloo's exchanges.
Assumed: all that an argument gives, each with its source. Left out: validation, the start, uploads, slow workers.
The check predicts 1, 2 and 4 workers on this machine's cores by the same formulas, and trains as many with torchrun.
"""

import argparse
import dataclasses
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.scaling_check import check
from benchmarks.scaling_model import Machine, Prediction, Work, predict, turning_points
from benchmarks.scaling_parts import decode_rate, model_cost, text_cost, write_rate
from benchmarks.step_cost import RESULTS
from tt_ray.losses import ALIGNMENT_LOSSES
from tt_ray.terminal.errors import UserError

_TEXT = ("text loss", "text exchange")
WARNING = "These are predictions from formulas: nothing was run on these GPUs."
_TUNING = "NCCL, src/graph/tuning.cc: ring, protocol Simple"
_ASSUMED = (
    ("peak-tflops", 312.0, "TFLOP/s of a GPU in the model's precision: A100, bf16 (NVIDIA's A100 datasheet)"),
    (
        "mfu",
        0.25,
        "model FLOPs utilisation: 2,226 images/s of ViT-B/16 inference in PyTorch 1.12, eager, on an A100 "
        "(AITemplate, examples/04_vit); NVIDIA's NeMo trains ViT-g/14 on 8 A100s at about 0.44",
    ),
    (
        "fp32-tflops",
        19.5,
        "TFLOP/s of a GPU in float32, for the text loss: A100 without TF32, torch's default (datasheet)",
    ),
    ("memory-gb-s", 2039.0, "GB/s of a GPU's memory: A100 80 GB SXM (datasheet)"),
    ("memory-gb", 80.0, "GB of a GPU's memory (datasheet)"),
    ("nvlink-gb-s", 235.0, "GB/s, bus bandwidth in a node: what NCCL takes for A100s (src/graph/tuning.cc)"),
    (
        "network-gb-s",
        96.0,
        "GB/s that a node sends: peak bus bandwidth of 3 nodes with 8 A100s and 4 HDR cards (nccl-tests issue 119)",
    ),
    ("latency-us", 8.4, f"microseconds of any collective ({_TUNING})"),
    ("hop-nvlink-us", 3.4, f"microseconds of a hop in a node ({_TUNING})"),
    ("hop-network-us", 9.6, f"microseconds of a hop between nodes ({_TUNING})"),
    ("copy-gb-s", 32.0, "GB/s from a GPU to main memory: PCIe 4.0 x16 at its peak (A100 datasheet)"),
    ("storage-gb-s", 0.0, "GB/s that all nodes together read; 0 is no limit: what must be read is printed instead"),
    ("decode-rate", 0.0, "images per s of a loader process with a core; 0 measures this machine"),
    ("write-gb-s", 0.0, "GB/s of checkpoints; 0 measures this machine"),
)


def machine(given: argparse.Namespace) -> Machine:
    """The arguments in bytes and seconds."""
    return Machine(
        flops=given.peak_tflops * 1e12,
        mfu=given.mfu,
        flops_fp32=given.fp32_tflops * 1e12,
        memory_rate=given.memory_gb_s * 1e9,
        memory=given.memory_gb * 1e9,
        gpus_per_node=given.gpus_per_node,
        nvlink=given.nvlink_gb_s * 1e9,
        network=given.network_gb_s * 1e9,
        latency=given.latency_us / 1e6,
        hop_nvlink=given.hop_nvlink_us / 1e6,
        hop_network=given.hop_network_us / 1e6,
        copy_rate=given.copy_gb_s * 1e9,
        loaders=given.loaders,
        decode_rate=given.decode_rate,
        storage=given.storage_gb_s * 1e9,
        write_rate=given.write_gb_s * 1e9,
    )


def works(given: argparse.Namespace) -> list[Work]:
    """What is trained, one for each model."""
    cost, found = text_cost(given.text_loss, by_rows=given.negatives == "global"), []
    for name in given.models:
        parameters, flops = model_cost(name, given.image_size, given.embedding_dim)
        work = Work(name, parameters, flops, given.embedding_dim, given.images, given.image_kb * 1e3, cost)
        chosen = {"negatives": given.negatives, "held": given.on_device, "log_every": given.log_every}
        found.append(dataclasses.replace(work, copies=3 + given.ema, **chosen))
    return found


def predict_all(given: argparse.Namespace) -> dict[str, Any]:
    """Every model at every number of GPUs, and where the text loss turns the curve."""
    cluster, models = machine(given), works(given)
    rows: list[dict[str, Any]] = []
    for work in models:
        alone = predict(work, cluster, 1, given.batch_per_gpu).images_per_s
        for gpus in given.gpus:
            share = given.global_batch / gpus if given.global_batch else given.batch_per_gpu
            rows.append(_row(work, predict(work, cluster, gpus, share), alone))
    turns = {work.name: turning_points(work, cluster, given.batch_per_gpu) for work in models if work.dim}
    return {
        "note": WARNING,
        "predictions": rows,
        "text_loss_turns_at_gpus": turns,
        "models": [dataclasses.asdict(work) | {"text": work.text._asdict()} for work in models],
        "machine": dataclasses.asdict(cluster),
    }


def _row(work: Work, run: Prediction, alone: float) -> dict[str, Any]:
    return {
        "model": work.name,
        "gpus": run.gpus,
        "batch": run.batch,
        "images_per_s": run.images_per_s,
        "efficiency": run.images_per_s / (run.gpus * alone),
        "limit": run.limit,
        "fits": run.fits,
        "text_memory_gb": run.text_memory / 1e9,
        "read_gb_s": run.images_per_s * work.image_size / 1e9,
        "parts_s": run.parts,
        "beside_s": run.beside,
    }


def show(result: dict[str, Any]) -> None:
    """Prints what was found."""
    print(f"{result['note']}\n")
    print(
        "| model | GPUs | global batch | images per s | efficiency | what limits | text loss (and exchange) / step "
        "| read GB/s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in result["predictions"]:
        parts, step = row["parts_s"], row["batch"] / row["images_per_s"]
        loss, both = (sum(parts[name] for name in names) / step for names in (("text loss",), _TEXT))
        rate, share = (
            (f"{row['images_per_s']:,.0f}", f"{row['efficiency']:.2f}") if row["fits"] else ("does not fit", "-")
        )
        columns = [row["model"], row["gpus"], row["batch"], rate, share, row["limit"], f"{loss:.3f} ({both:.3f})"]
        print(f"| {' | '.join(map(str, columns))} | {row['read_gb_s']:.2g} |")
    for name, turns in result["text_loss_turns_at_gpus"].items():
        found = "; ".join(f"{what}: {gpus or 'not up to 4096'}" for what, gpus in turns.items())
        print(f"\n{name}, text loss by GPUs at {result['settings']['batch_per_gpu']} images each: {found}")
    rate, cluster = result["machine"]["decode_rate"], result["machine"]
    print(
        f"\n{rate:.0f} images decoded per s and loader process; checkpoints at {cluster['write_rate'] / 1e9:.2f} GB/s"
    )
    if result["check"]:
        print("\nThe check, on this machine's CPU:\n\n| workers | predicted steps per s | measured | ratio | load |")
        print("| --- | --- | --- | --- | --- |")
        for row in result["check"]:
            numbers = [f"{row[key]:.2f}" for key in ("predicted", "measured", "ratio")]
            print(f"| {row['workers']} | {' | '.join(numbers)} | {row['load_1min']:.1f} |")


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, about in _ASSUMED:
        parser.add_argument(f"--{name}", type=float, default=default, help=f"{about} (default {default:g})")
    sizes = [f"deit3_{size}_patch16_224" for size in ("small", "base", "large")]
    parser.add_argument("--models", nargs="+", default=sizes, help="timm models")
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 8, 32, 128, 512])
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--loaders", type=int, default=16, help="loader processes per GPU: DGX A100, 128 cores for 8")
    parser.add_argument("--batch-per-gpu", type=int, default=256, help="that of the ImageNet recipes on 8 GPUs")
    parser.add_argument("--global-batch", type=int, default=0, help="fix the global batch instead; 0 does not")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--embedding-dim", type=int, default=1024, help="BERT-large's; 0 trains without text")
    parser.add_argument("--text-loss", choices=ALIGNMENT_LOSSES, default="clip")
    parser.add_argument(
        "--negatives", choices=("global", "gathered", "local"), default="global", help="gathered: as losses of users"
    )
    parser.add_argument("--on-device", action="store_true", help="text.on_device: embeddings are not gathered")
    parser.add_argument("--ema", action="store_true", help="an average of the weights in checkpoints")
    parser.add_argument("--log-every", type=int, default=50, help="that of the ImageNet recipes")
    parser.add_argument("--images", type=int, default=1_281_167, help="per epoch and checkpoint: ImageNet-1k")
    parser.add_argument("--image-kb", type=float, default=113, help="ImageNet-1k: 150 GB in 1,331,167 files")
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=True, help="run the check")
    parser.add_argument("--recipe", default="shapes_textteacher", help="of the check")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("PATH", "VALUE"), help="of the check")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4], help="of the check")
    parser.add_argument("--check-dim", type=int, default=384, help="length of the check's text targets")
    parser.add_argument("--steps", type=int, default=128, help="of a run of the check, rounded up to epochs")
    parser.add_argument("--repeats", type=int, default=20, help="timings of a part")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that a run of the check may take")
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = read_arguments(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="tt-ray-benchmark-") as name:
        if not given.decode_rate:
            given.decode_rate, made = decode_rate(Path(name) / "images")
            print(f"JPEGs of {made / 1e3:.0f} kB were decoded\n")
        given.write_gb_s = given.write_gb_s or write_rate(Path(name)) / 1e9
        result = predict_all(given)
        try:
            result["check"] = check(given, Path(name)) if given.check else []
        except (UserError, RuntimeError) as error:
            raise SystemExit(f"error: {error}") from None
    result["settings"] = {key: value for key, value in vars(given).items() if key != "out"}
    result["here"] = {"processor": platform.machine(), "cores": os.cpu_count(), "load_1min": os.getloadavg()[0]}
    show(result)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
