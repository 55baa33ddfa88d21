"""TextTeacher against what else a teacher can be, on the built-in shapes: noise, few labels, fewer images.

    python -m benchmarks.comparisons --seeds 0 1 2

Every arm of a setting takes as many steps of 64 images as the others, at one learning rate for all (and the baseline at
half of it as well, which suits it better under noise): arms are not tuned here. The vision teacher is trained first, on
other shapes with clean labels. Rows go to OUT one by one; running again does what is missing.
"""

import argparse
import os
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.what_text_buys import Overrides, read, run_all
from tt_ray.config import Config
from tt_ray.recipes import RECIPES

RATE = 1e-3
_BASELINE: Overrides = {"text.weight": 0.0}
_LOGITS: Overrides = {"teacher.target": "logits", "text.balance": False}
TEACHER = "vision-teacher"
# Settings by name: what the arms share, and the arms. Values of None stand for the teacher's folder.
SETTINGS: dict[str, tuple[Overrides, dict[str, Overrides]]] = {
    "half of the labels wrong": (
        {"data.label_noise": 0.5},
        {
            "baseline": _BASELINE,
            "baseline, half the rate": {**_BASELINE, "optim.lr": RATE / 2},
            "TextTeacher": {},
            "distilled embedding": {"teacher.model": None},
            "distilled logits": {"teacher.model": None, **_LOGITS},
            "vl2litetext": {"text.loss": "vl2litetext"},
            "borlan": {"text.loss": "borlan"},
        },
    ),
    "a tenth of the labels": (
        {"data.label_noise": 0.0, "data.unlabelled": 0.9},
        {
            # 819 images are 12 steps, all of them labelled; the others take 128 in an epoch, half of them labelled.
            "baseline": {**_BASELINE, "train.epochs": 128 / 12},
            "TextTeacher": {},
            "distilled embedding": {"teacher.model": None},
        },
    ),
    "a quarter of the images": (
        {"data.label_noise": 0.0, "data.subset": 0.25},
        {
            "baseline": {**_BASELINE, "train.epochs": 4},
            "TextTeacher": {"train.epochs": 4},
        },
    ),
}


def configure(setting: str, arm: str, seed: int, epochs: int, storage: Path) -> Config:
    """The configuration of one run; an arm's `train.epochs` are a factor."""
    shared, arms = SETTINGS[setting]
    changes = {"optim.lr": RATE, **shared, **arms[arm]}
    changes["train.epochs"] = round(epochs * changes.get("train.epochs", 1))
    if "teacher.model" in changes:
        changes["teacher.model"] = str(storage / TEACHER)
    return _override("shapes_textteacher", changes, f"{setting}-{arm}-{seed}".replace(" ", "_"), seed, storage)


def _override(recipe: str, changes: Overrides, name: str, seed: int, storage: Path) -> Config:
    config = RECIPES[recipe]()
    last = {"train.seed": seed, "run.storage": str(storage), "run.name": name, "run.overwrite": True}
    for path, value in {**changes, **last}.items():
        config = config.override(path, value)
    return config.override("train.eval_every", config.train.epochs)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--epochs", type=int, default=14, help="over all images")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--storage", type=Path, default=Path("runs/comparisons"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "comparisons.jsonl")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    storage = given.storage.absolute()
    storage.mkdir(parents=True, exist_ok=True)
    teacher = _override("shapes_vision_teacher", {"train.epochs": given.epochs}, TEACHER, 0, storage)
    _run([(teacher, _key(TEACHER, TEACHER, 0))], storage / "teacher.jsonl", 1)
    print(f"vision teacher: top-1 {read(storage / 'teacher.jsonl')[0]['top1']:.2f}")
    jobs = [
        (configure(setting, arm, seed, given.epochs, storage), _key(setting, arm, seed))
        for seed in given.seeds
        for setting in given.settings
        for arm in SETTINGS[setting][1]
    ]
    _run(jobs, given.out, given.workers)
    for setting in given.settings:
        print(f"\n{table(read(given.out), setting, given.seeds)}")


def table(rows: list[dict[str, Any]], setting: str, seeds: list[int]) -> str:
    """Mean and standard deviation of top-1, and the paired difference to the baseline, as Markdown."""
    lines = [f"| {setting} | top-1 | over the baseline |", "| --- | --- | --- |"]
    top1 = {(row["arm"], row["seed"]): row["top1"] for row in rows if row["setting"] == setting}
    for arm in SETTINGS[setting][1]:
        done = [seed for seed in seeds if (arm, seed) in top1]
        gains = [top1[arm, seed] - top1["baseline", seed] for seed in done if ("baseline", seed) in top1]
        lines.append(f"| {arm} | {_cell([top1[arm, seed] for seed in done], '')} | {_cell(gains, '+')} |")
    return "\n".join(lines)


def _cell(values: list[float], sign: str) -> str:
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.1f}{spread}" if values else ""


def _key(setting: str, arm: str, seed: int) -> dict[str, Any]:
    return {"setting": setting, "arm": arm, "seed": seed}


def _run(jobs: list[tuple[Config, dict[str, Any]]], out: Path, workers: int) -> None:
    for _ in run_all(jobs, out, workers, probes=False):
        pass


if __name__ == "__main__":
    main()
