"""TextTeacher against what else a teacher can be, on the built-in shapes or on emoji: noise, few labels, fewer images.

    python -m benchmarks.comparisons --seeds 0 1 2
    python -m benchmarks.comparisons emoji --root EMOJI --seeds 0 1 2

Every arm of a setting takes as many steps of 64 images as the others, and warms up for as many, at one learning rate
for all (and the baseline at half of it as well, which suits it better under noise): arms are not tuned here. The vision
teacher is trained first, with clean labels, on other shapes, or on the same emoji, of which there are no others. Rows
go to OUT one by one; running again does what is missing.
"""

import argparse
import os
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.what_text_buys import STUDIES, Overrides, read, run_all
from tt_ray.config import Config
from tt_ray.recipes import RECIPES
from tt_ray.statistics import paired_differences, plus_minus


class Data(NamedTuple):
    """What the settings are applied to."""

    base: Overrides
    images: int
    epochs: int


DATA = {"shapes": Data({}, 8192, 14), "emoji": Data(STUDIES["emoji-noise"].base, 5593, 12)}
RATE = 1e-3
BATCH = 64
_BASELINE: Overrides = {"text.weight": 0.0}
_LOGITS: Overrides = {"teacher.target": "logits", "text.balance": False}
TEACHER = "vision-teacher"
# Settings by name: what the arms share, and the arms. None stands for the teacher's folder; `share` is that of the
# images which an epoch goes through, where these are not all.
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
            # An epoch of the others goes through all images, and half of each batch has labels.
            "baseline": {**_BASELINE, "share": 0.1},
            "TextTeacher": {},
            "distilled embedding": {"teacher.model": None},
        },
    ),
    "a quarter of the images": (
        {"data.label_noise": 0.0, "data.subset": 0.25, "share": 0.25},
        {
            "baseline": _BASELINE,
            "TextTeacher": {},
        },
    ),
}


def configure(setting: str, arm: str, seed: int, data: Data, storage: Path) -> Config:
    """The configuration of one run."""
    shared, arms = SETTINGS[setting]
    changes = {"optim.lr": RATE, "train.epochs": data.epochs, **data.base, **shared, **arms[arm]}
    share = changes.pop("share", 1.0)
    longer = (data.images // BATCH) / (int(data.images * share) // BATCH)
    changes["train.epochs"] = round(data.epochs * longer)
    changes["optim.warmup_epochs"] = longer * changes.get("optim.warmup_epochs", 1.0)
    if "teacher.model" in changes:
        changes["teacher.model"] = str(storage / TEACHER)
    return _override("shapes_textteacher", changes, f"{setting}-{arm}-{seed}".replace(" ", "_"), seed, storage)


def _override(recipe: str, changes: Overrides, name: str, seed: int, storage: Path) -> Config:
    config = RECIPES[recipe]()
    last = {"train.seed": seed, "run.storage": str(storage), "run.name": name, "run.overwrite": True}
    config = config.override({**changes, **last})
    return config.override("train.eval_every", config.train.epochs)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", choices=DATA, default="shapes")
    parser.add_argument("--root", default="", help="data.root of emoji")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--epochs", type=int, help="over all images; 14 of shapes, 12 of emoji")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--storage", type=Path, help="folder of the runs, default runs/comparisons-DATA")
    parser.add_argument("--out", type=Path, help="rows, default benchmarks/results/comparisons-DATA.jsonl")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    name = f"comparisons-{given.data}"
    storage = (given.storage or Path("runs", name)).absolute()
    storage.mkdir(parents=True, exist_ok=True)
    out = given.out or Path(__file__).parent / "results" / f"{name}.jsonl"
    data = DATA[given.data]
    root = {"data.root": given.root} if given.root else {}
    data = Data({**data.base, **root}, data.images, given.epochs or data.epochs)
    of_teacher = {**data.base, "data.label_noise": 0.0, "train.epochs": data.epochs}
    teacher = _override("shapes_vision_teacher", of_teacher, TEACHER, 0, storage)
    _run([(teacher, _key(TEACHER, TEACHER, 0))], storage / "teacher.jsonl", 1)
    print(f"vision teacher: top-1 {read(storage / 'teacher.jsonl')[0]['top1']:.2f}")
    jobs = [
        (configure(setting, arm, seed, data, storage), _key(setting, arm, seed))
        for seed in given.seeds
        for setting in given.settings
        for arm in SETTINGS[setting][1]
    ]
    _run(jobs, out, given.workers)
    print(f"\n{table(read(out), given.settings, given.seeds)}")


def table(rows: list[dict[str, Any]], settings: list[str], seeds: list[int]) -> str:
    """Mean and standard deviation of top-1, and the paired difference to the baseline, as Markdown."""
    lines = ["| setting | arm | top-1 | over the baseline |", "| --- | --- | --- | --- |"]
    for setting in settings:
        top1 = {(row["arm"], row["seed"]): row["top1"] for row in rows if row["setting"] == setting}
        for arm in SETTINGS[setting][1]:
            own, base = ({s: top1[name, s] for s in seeds if (name, s) in top1} for name in (arm, "baseline"))
            gains = [] if arm == "baseline" else paired_differences(own, base)
            cells = [plus_minus(own.values(), ".1f"), plus_minus(gains, ".1f", "+")]
            lines.append(f"| {setting if arm == 'baseline' else ''} | {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _key(setting: str, arm: str, seed: int) -> dict[str, Any]:
    return {"setting": setting, "arm": arm, "seed": seed}


def _run(jobs: list[tuple[Config, dict[str, Any]]], out: Path, workers: int) -> None:
    for _ in run_all(jobs, out, workers, probes=False):
        pass


if __name__ == "__main__":
    main()
