"""Baseline against TextTeacher and its controls over seeds, each arm at its own tuned learning rate.

    python -m benchmarks.what_text_buys shapes-noise --seeds 0 1 2 3 4
    python -m benchmarks.what_text_buys emoji-clean --root DIR --seeds 0 1 2

Learning rates are chosen on TUNING_SEED and other validation images than those that are reported: other shapes, or a
fifth of the emoji of the training split; the grid grows by factors of 2 until the best rate is inside it. Controls
take TextTeacher's rate, and fewer seeds. Rows go to OUT one by one; running again does what is missing. Rows of other
settings (--set) need another OUT.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from zlib import crc32

from tt_ray.config import Config
from tt_ray.recipes import RECIPES
from tt_ray.statistics import paired_differences, plus_minus

TUNING_SEED = 100
RATES = (0.001, 0.002)
CONTROL_SEEDS = 2
PROBE_IMAGES = 4096
Overrides = dict[str, Any]
_TUNED = ("baseline", "textteacher")
_ARMS: dict[str, Overrides] = {
    "baseline": {"text.weight": 0.0},
    "textteacher": {},
    "captions shuffled": {"text.control": "shuffle"},
    "random vector per class": {"text.control": "random_class"},
}


_SHAPES_ARMS: dict[str, Overrides] = {
    **_ARMS,
    "captions tell everything": {"data.shapes.caption": "full"},
    "captions tell the class only": {"data.shapes.caption": "class"},
}


@dataclass(frozen=True)
class Study:
    """A data setting, and the arms that are compared in it."""

    base: Overrides
    arms: dict[str, Overrides]
    recipe: str = "shapes_textteacher"


_EMOJI: Overrides = {
    "data.source": "imagefolder",
    "data.augment": "crop_flip",
    "train.epochs": 12,
    "optim.warmup_epochs": 3.0,
}
STUDIES: dict[str, Study] = {
    "shapes-clean": Study({"data.label_noise": 0.0}, _SHAPES_ARMS),
    "shapes-noise": Study({"data.label_noise": 0.5}, _SHAPES_ARMS),
    "emoji-clean": Study({**_EMOJI, "data.label_noise": 0.0}, _ARMS),
    "emoji-noise": Study({**_EMOJI, "data.label_noise": 0.5}, _ARMS),
}


def run(config: Config, probes: bool) -> dict[str, float]:
    """Trains in this process, in one thread or on a GPU, and probes frozen features for the data's other labels."""
    import torch

    from eval.contract import EvalConfig
    from eval.features.backbone import open_backbone
    from eval.features.extract import extract
    from eval.protocols.estimator import LinearProbe
    from tt_ray.data.prepare import find_store, open_data, open_images
    from tt_ray.training.context import LocalContext
    from tt_ray.training.run_folder import start_run
    from tt_ray.training.trainer import train

    torch.set_num_threads(1)
    start_run(config)
    store = find_store(config, open_images(config)[0])
    data = open_data(config, store)
    result = train(config, data, LocalContext.start(config.run.use_gpu))
    scores = {"top1": result["top1"], "train_seconds": result["train_seconds"]}
    if not probes or data.train.tasks is None or data.val.tasks is None:
        return scores
    backbone = open_backbone("run", str(config.run_dir))
    some = data.train.select(torch.arange(min(PROBE_IMAGES, len(data.train))).numpy())
    assert some.tasks is not None
    settings = EvalConfig(None, Path())
    train_x, test_x = extract(backbone, some, settings), extract(backbone, data.val, settings)
    for task, (labels, _) in some.tasks.items():
        found = LinearProbe(12).fit(train_x, labels)
        scores[f"probe {task}"] = 100 * float(found.score(test_x, data.val.tasks[task][0]))
    return scores


def configure(study: Study, arm: str, rate: float, seed: int, extra: Overrides, storage: Path) -> Config:
    """The configuration of one run."""
    config = RECIPES[study.recipe]().override({**study.base, **extra, **study.arms[arm]})
    name = f"{arm.replace(' ', '-')}-{rate:g}-{seed}"
    settings = {"optim.lr": rate, "train.seed": seed, "run.storage": str(storage), "run.name": name}
    if config.data.source == "shapes" and seed == TUNING_SEED:
        settings["data.shapes.seed"] = TUNING_SEED
    elif seed == TUNING_SEED:
        settings["data.root"] = str(_tuning_split(Path(config.data.root).absolute(), storage / "tuning"))
    settings |= {"run.overwrite": True, "train.eval_every": config.train.epochs}
    return config.override(settings)


def _tuning_split(root: Path, folder: Path) -> Path:
    """A data root of the training split alone: a fifth of its emoji, by a hash of their names, are its test split."""
    if folder.exists():
        return folder
    for line in (root / "train" / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        split = folder / ("train" if crc32(row["name"].encode()) % 5 else "test")
        image = split / row["file_name"]
        image.parent.mkdir(parents=True, exist_ok=True)
        image.symlink_to(root / "train" / row["file_name"])
        with (split / "metadata.jsonl").open("a") as file:
            file.write(line + "\n")
    return folder


def run_all(jobs: list[tuple[Config, dict[str, Any]]], out: Path, workers: int, probes: bool) -> Iterator[None]:
    """Runs what has no row yet, `workers` at a time, and appends rows."""
    rows = read(out)
    todo = [(config, key) for config, key in jobs if not any(key.items() <= row.items() for row in rows)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run, config, probes): key for config, key in todo}
        for future in as_completed(futures):
            row = {**futures[future], **future.result()}
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
            yield


def read(out: Path) -> list[dict[str, Any]]:
    """Rows so far."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def best_rates(rows: list[dict[str, Any]], arms: list[str]) -> dict[str, float]:
    """The learning rate with the best top-1 on the tuning seed; arms that have not been tuned take TextTeacher's."""
    tuning = [row for row in rows if row["seed"] == TUNING_SEED]
    taught = [row for row in tuning if row["arm"] == "textteacher"]
    found = {arm: [row for row in tuning if row["arm"] == arm] or taught for arm in arms}
    return {arm: max(found[arm], key=lambda row: row["top1"])["rate"] for arm in arms}


def beyond_edges(rows: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """The next rate to try for each arm whose best rate is the lowest or the highest that was tried."""
    more: list[tuple[str, float]] = []
    for arm, best in best_rates(rows, list(_TUNED)).items():
        tried = [row["rate"] for row in rows if row["arm"] == arm and row["seed"] == TUNING_SEED]
        if best == max(tried):
            more.append((arm, best * 2))
        elif best == min(tried):
            more.append((arm, best / 2))
    return more


def table(rows: list[dict[str, Any]], rates: dict[str, float], seeds: list[int]) -> str:
    """Mean and standard deviation over seeds, and the paired difference to the baseline, as Markdown."""
    arms = {
        arm: sorted((r for r in rows if (r["arm"], r["rate"]) == (arm, rate) and r["seed"] in seeds), key=_seed)
        for arm, rate in rates.items()
    }
    metrics = [key for key in next(iter(arms.values()))[0] if key == "top1" or key.startswith("probe")]
    lines = [f"| arm (learning rate) | {' | '.join(metrics)} |", f"|{' --- |' * (len(metrics) + 1)}"]
    for arm, found in arms.items():
        cells = []
        for metric in metrics:
            own, base = ({row["seed"]: row[metric] for row in rows} for rows in (found, arms["baseline"]))
            cell = plus_minus(own.values(), ".2f")
            if arm != "baseline":
                cell += f" ({plus_minus(paired_differences(own, base), '.2f', '+')})"
            cells.append(cell)
        lines.append(f"| {arm} ({rates[arm]:g}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def _seed(row: dict[str, Any]) -> int:
    return row["seed"]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--arms", nargs="+", help="only these arms")
    parser.add_argument("--root", default="", help="data.root of the emoji studies")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("PATH", "VALUE"), help="any field")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, help="rows, default benchmarks/results/STUDY.jsonl")
    given = parser.parse_args()
    study, arms = STUDIES[given.study], given.arms or list(STUDIES[given.study].arms)
    extra: Overrides = {"data.root": given.root, **dict(given.set)}
    out = given.out or Path(__file__).parent / "results" / f"{given.study}.jsonl"
    also = {"set": dict(given.set)} if given.set else {}
    if others := [row for row in read(out) if row.get("set", {}) != dict(given.set)]:
        parser.error(f"{out} holds rows with --set {others[0].get('set', {})}: choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the runs, scikit-learn's too
    with tempfile.TemporaryDirectory() as folder:

        def jobs(pairs: list[tuple[str, float]], seeds: list[int]) -> list[tuple[Config, dict[str, Any]]]:
            keys = [{"arm": arm, "rate": rate, "seed": seed} for seed in seeds for arm, rate in pairs]
            return [(configure(study, **key, extra=extra, storage=Path(folder)), {**key, **also}) for key in keys]

        grid = [(arm, rate) for arm in _TUNED for rate in given.rates]
        while grid:
            for _ in run_all(jobs(grid, [TUNING_SEED]), out, given.workers, probes=False):
                pass
            grid = beyond_edges(read(out))
        rates = best_rates(read(out), arms)
        compared = [pair for pair in rates.items() if pair[0] in _TUNED]
        controls = [pair for pair in rates.items() if pair[0] not in _TUNED]
        last = jobs(compared, given.seeds) + jobs(controls, given.seeds[:CONTROL_SEEDS])
        for _ in run_all(last, out, given.workers, probes=True):
            pass
    print(table(read(out), rates, given.seeds))


if __name__ == "__main__":
    main()
