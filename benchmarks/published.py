"""What does each difference between the published setting and ours do?

    python -m benchmarks.published
    python -m benchmarks.published --root EMOJI

Two workers (gloo) in this machine, small runs with clean labels and cutmix, five seeds. Every arm is ours with one
field of `in1k_vit_s_published`, then with all of them. Rows that are there already are not run again.
"""

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tt_ray.config import Config
from tt_ray.recipes import RECIPES
from tt_ray.statistics import paired_differences, plus_minus

OUT = Path(__file__).parent / "results" / "published.jsonl"
WORKERS = 2
# Colours are learned in seconds; shapes would take minutes.
_SHAPES = {
    "data.shapes.label": "colour",
    "data.shapes.train_size": 1024,
    "data.shapes.val_size": 1000,
    "data.label_noise": 0.0,
    "train.epochs": 9,
}
_EMOJI = {"data.source": "imagefolder", "data.augment": "crop_flip", "data.label_noise": 0.0, "train.epochs": 12}
_COMMON = {"data.cutmix": 1.0, "optim.warmup_epochs": 2.0, "train.eval_batch_mean": True, "run.num_workers": WORKERS}
_ROUNDED = {"train.precision": "bf16", "text.loss_precision": "autocast"}
ARMS: dict[str, dict[str, Any]] = {
    "ours": {},
    "smoothed twice (optim.label_smoothing 0.19)": {"optim.label_smoothing": 0.19},
    "rate by epoch (optim.schedule_per epoch)": {"optim.schedule_per": "epoch"},
    "each worker by itself (text.scope worker)": {"text.scope": "worker"},
    "bf16, losses in fp32": {"train.precision": "bf16"},
    "bf16, losses too (text.loss_precision autocast)": _ROUNDED,
    "all of them": {"optim.label_smoothing": 0.19, "optim.schedule_per": "epoch", "text.scope": "worker", **_ROUNDED},
}


def configure(arm: str, seed: int, root: str, storage: Path) -> Config:
    """The configuration of one run; `root` is of emoji, empty for shapes."""
    data = {**_EMOJI, "data.root": str(Path(root).absolute())} if root else _SHAPES
    where = {"run.storage": str(storage), "run.name": f"{list(ARMS).index(arm)}-{seed}", "train.seed": seed}
    settings: Mapping[str, Any] = {**_COMMON, **data, **where, **ARMS[arm]}
    config = RECIPES["shapes_textteacher"]().override(settings)
    return config.override("train.eval_every", config.train.epochs)


def _work(rank: int, port: int, trees: list[dict[str, Any]], out: Path) -> None:
    """One worker's part of all runs, whose scores worker 0 appends as they end."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(WORKERS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import torch

    from tt_ray.data.prepare import find_store, open_data, open_images
    from tt_ray.training.context import LocalContext
    from tt_ray.training.run_folder import start_run
    from tt_ray.training.trainer import train

    torch.set_num_threads(1)
    context = LocalContext.start(use_gpu=False)
    for tree in trees:
        arm, seed = tree.pop("arm"), tree["train"]["seed"]
        config = Config.from_dict(tree)
        if rank == 0:
            start_run(config)
            find_store(config, open_images(config)[0])
        torch.distributed.barrier()  # the other worker opens what this one has made
        result = train(config, open_data(config, find_store(config, open_images(config)[0])), context)
        if rank == 0:
            row = {"arm": arm, "data": config.data.source, "seed": seed}
            row |= {name: result[name] for name in ("top1", "top1_batch_mean")}
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
    torch.distributed.destroy_process_group()


def read(out: Path, data: str) -> dict[str, dict[int, dict[str, float]]]:
    """Rows of a file by arm and seed."""
    found: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in ARMS}
    for line in out.read_text().splitlines() if out.exists() else ():
        row = json.loads(line)
        if row["data"] == data:
            found[row["arm"]][row["seed"]] = row
    return found


def table(out: Path, data: str) -> list[str]:
    """Rows of the page: arm, top-1, paired difference to ours, and the mean over batches less the exact accuracy."""
    rows = read(out, data)
    ours = {seed: row["top1"] for seed, row in rows["ours"].items()}
    lines = []
    for arm, seeds in rows.items():
        if not seeds:
            continue
        own = {seed: row["top1"] for seed, row in seeds.items()}
        gain = "" if arm == "ours" else plus_minus(paired_differences(own, ours), ".1f", "+")
        beside = plus_minus([row["top1_batch_mean"] - row["top1"] for row in seeds.values()], ".2f", "+")
        lines.append(f"| {arm} | {plus_minus(list(own.values()), '.1f')} | {gain} | {beside} |")
    return lines


def main(argv: list[str] | None = None) -> None:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__)
    parser.add_argument("--root", default="", help="folder of emoji, instead of shapes")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(argv)
    data = "imagefolder" if given.root else "shapes"
    there = read(given.out, data)
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        trees = [
            {**configure(arm, seed, given.root, Path(folder)).to_dict(), "arm": arm}
            for seed in given.seeds
            for arm in given.arms
            if seed not in there[arm]
        ]
        port = free.getsockname()[1]
        free.close()
        spawn = multiprocessing.get_context("spawn")
        workers = [
            spawn.Process(target=_work, args=(rank, port, trees, given.out)) for rank in range(WORKERS * bool(trees))
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    print("| arm | top-1 | over ours | mean over batches, less the exact one |\n| --- | --- | --- | --- |")
    print("\n".join(table(given.out, data)))


if __name__ == "__main__":
    main()
