"""What the audit of captions and labels is worth: wrong labels that are known, captions that are exchanged, its time.

    python -m benchmarks.audit noise --roots emoji=EMOJI
    python -m benchmarks.audit pairs --model runs/shapes_baseline
    python -m benchmarks.audit scale --rows 1300000 --dim 1024 --classes 1000
    python -m benchmarks.audit settings --roots emoji=EMOJI

`noise` replaces labels of built-in shapes and clip art, and of image folders with captions, and prints what the audit
makes of it (of few images: benchmarks/audit_intervals.py). `pairs` gives a tenth of the images the caption of another
one. `scale` audits random embeddings. `settings` writes tt_ray/audit/measured.json, the settings whose gain has been
measured, from which verdicts are drawn.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from benchmarks import does_it_help
from benchmarks.what_text_buys import TUNING_SEED, read
from tt_ray.audit.agreement import image_features, suspicion
from tt_ray.audit.inputs import Inputs, read_inputs, taught
from tt_ray.audit.learning import knowledge_of, learn
from tt_ray.audit.out_of_fold import Embedded, draw
from tt_ray.audit.verdict import MEASURED
from tt_ray.config import Config
from tt_ray.data.prepare import open_images
from tt_ray.embeddings.build import write_store
from tt_ray.embeddings.store import open_store
from tt_ray.recipes import RECIPES
from tt_ray.stateless_random import uniform
from tt_ray.statistics import paired_differences, spread
from tt_ray.terminal.progress import Display

# pyarrow makes these functions when it is imported: type checkers do not know them.
pc: Any = pyarrow.compute
RESULTS = Path(__file__).parent / "results"
BUILT_IN = ("shapes", "clipart")
NOISES = ((0.0, "symmetric"), (0.05, "symmetric"), (0.2, "symmetric"), (0.5, "symmetric"), (0.2, "pair"), (0.4, "pair"))
Overrides = dict[str, Any]


class Setting(NamedTuple):
    """A setting whose gain in top-1 has been measured."""

    data: str
    name: str
    changes: Overrides
    gains: Callable[[], list[float]]
    """Differences to the baseline, by seed."""
    shuffled: bool = False
    """Captions of other images."""


def study(name: str, arm: str) -> list[float]:
    """Differences of `benchmarks.what_text_buys` by seed; of the tuning seed, at best rates, if there is no other."""
    rows = read(RESULTS / f"{name}.jsonl")
    last = any(row["arm"] == arm and row["seed"] != TUNING_SEED for row in rows)
    own, base = (
        {
            row["seed"]: row["top1"]
            for row in sorted(rows, key=lambda row: row["top1"])  # the best one of a seed is the last
            if row["arm"] == each and (row["seed"] != TUNING_SEED) is last
        }
        for each in (arm, "baseline")
    )
    return paired_differences(own, base)


def comparison(name: str, setting: str) -> list[float]:
    """Differences of `benchmarks.comparisons`."""
    rows = [row for row in read(RESULTS / f"comparisons-{name}.jsonl") if row["setting"] == setting]
    own, base = ({row["seed"]: row["top1"] for row in rows if row["arm"] == arm} for arm in ("TextTeacher", "baseline"))
    return paired_differences(own, base)


def helped(part: str, data: str, setting: str, arm: str = "TextTeacher") -> list[float]:
    """Differences of `benchmarks.does_it_help`."""
    rows = read(RESULTS / f"does-it-help-{part}.jsonl")
    own, base = (does_it_help.scores_of(rows, data, setting, each) for each in (arm, "baseline"))
    return paired_differences(own, base)


_NOISE, _CLEAN = {"data.label_noise": 0.5}, {"data.label_noise": 0.0}
_FEWER, _TENTH = {**_CLEAN, "data.subset": 0.25}, {**_CLEAN, "data.unlabelled": 0.9}
_FULL, _CLASS = {"data.shapes.caption": "full"}, {"data.shapes.caption": "class"}
_WRONG = ("a fifth of the labels wrong", "40 % of the labels the next class")
_SUBSETS = (("clipart", "a tenth", 0.1), ("clipart", "a third", 0.333), ("emoji", "a tenth", 0.1))
SETTINGS = (
    Setting("shapes", "half of the labels wrong, brief captions", _NOISE, lambda: study("shapes-noise", "textteacher")),
    Setting(
        "shapes", "half of the labels wrong, captions tell everything", {**_NOISE, **_FULL},
        lambda: study("shapes-noise", "captions tell everything"),
    ),
    Setting(
        "shapes", "half of the labels wrong, captions tell the class", {**_NOISE, **_CLASS},
        lambda: study("shapes-noise", "captions tell the class only"),
    ),
    Setting(
        "shapes", "half of the labels wrong, captions shuffled", _NOISE,
        lambda: study("shapes-noise", "captions shuffled"), True,
    ),
    Setting("shapes", "clean labels, brief captions", _CLEAN, lambda: study("shapes-clean", "textteacher")),
    Setting(
        "shapes", "clean labels, captions tell everything", {**_CLEAN, **_FULL},
        lambda: study("shapes-clean", "captions tell everything"),
    ),
    Setting("shapes", "a tenth of the labels", _TENTH, lambda: comparison("shapes", "a tenth of the labels")),
    Setting("shapes", "a quarter of the images", _FEWER, lambda: comparison("shapes", "a quarter of the images")),
    Setting("emoji", "half of the labels wrong", _NOISE, lambda: study("emoji-noise", "textteacher")),
    Setting("emoji", "clean labels", _CLEAN, lambda: study("emoji-clean", "textteacher")),
    Setting("emoji", "a tenth of the labels", _TENTH, lambda: comparison("emoji", "a tenth of the labels")),
    Setting("emoji", "a quarter of the images", _FEWER, lambda: comparison("emoji", "a quarter of the images")),
    Setting("clipart", "clean labels", _CLEAN, lambda: helped("captions", "clipart", "20 epochs")),
    Setting(
        "clipart", "half of the labels wrong", _NOISE,
        lambda: helped("labels", "clipart", "half of the labels wrong"),
    ),
    Setting(
        "clipart", "clean labels, captions shuffled", _CLEAN,
        lambda: helped("captions", "clipart", "20 epochs", "captions shuffled"), True,
    ),
    *(
        Setting(data, name, does_it_help.NOISES[name], partial(helped, "labels", data, name))
        for name in _WRONG
        for data in ("clipart", "emoji", "shapes")
    ),
    *(
        Setting(
            data, f"{some} of the images", {**_CLEAN, "data.subset": share},
            partial(helped, "captions", data, f"{some} of the images, as many steps"),
        )
        for data, some, share in _SUBSETS
    ),
)  # fmt: skip


def configure(data: str, changes: Overrides, roots: dict[str, str], storage: Path) -> Config:
    """Built-in shapes or clip art, or an image folder with captions."""
    config = RECIPES["clipart_textteacher" if data == "clipart" else "shapes_textteacher"]()
    config = config.override("run.storage", str(storage))
    if data not in BUILT_IN:
        config = config.override({"data.source": "imagefolder", "data.root": roots[data]})
    return config.override(changes)


def known_noise(config: Config, noise: float, kind: str, display: Display) -> dict[str, Any]:
    """What the audit makes of labels of which so many are wrong."""
    config = config.override({"data.label_noise": noise, "data.label_noise_kind": kind})
    inputs = read_inputs(config, display)
    labels, data = inputs.images.labels, inputs.data
    learned = learn(data, display.show)
    found, suspects = learned.noise, learned.suspects
    right = open_images(taught(config).override("data.label_noise", 0.0))[0]
    clean = right.labels[pc.index_in(inputs.images.ids, value_set=right.ids).to_numpy()][suspects.rows]
    bad = labels[suspects.rows] != clean
    listed, fixed = suspects.wrong >= 0.5, suspects.right >= 0.9
    hits = suspects.suggestion == clean
    return {
        "noise": noise,
        "kind": kind,
        "confident": found.confident.value,
        "share": found.share.value,
        "low": found.share.low,
        "high": found.share.high,
        "auc": _auc(bad),
        "listed": int(listed.sum()),
        "precision": _mean(bad[listed]),
        "recall": _mean(listed[bad]),
        "suggestion_right": _mean(hits[listed & bad]),
        "corrected": int(fixed.sum()),
        "corrected_right": _mean(hits[fixed]),
    }


def _mean(values: npt.NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None


def _auc(bad: npt.NDArray[np.bool_]) -> float | None:
    """Share of pairs of a wrong and a right one that a ranking, the most suspicious first, puts the right way round."""
    wrong, right = bad.sum(), (~bad).sum()
    return float(np.cumsum(bad)[~bad].sum() / (wrong * right)) if wrong and right else None


def exchanged_captions(inputs: Inputs, config: Config, model: str, share: float, display: Display) -> dict[str, Any]:
    """How well images and captions that do not belong together are found, where so many are exchanged."""
    rows = draw(inputs.images.labels, np.arange(len(inputs.images)), 4000)
    swapped = uniform(rows, 1, 1)[:, 0] < share
    chosen = np.flatnonzero(swapped)
    table = inputs.data.rows[rows].copy()
    table[chosen] = table[np.roll(chosen, 1)]
    features = image_features(config, model, inputs.images.select(rows), display.show)
    score = suspicion(features, inputs.data.table[table].astype(np.float32), display.show)
    return {
        "images": len(rows),
        "exchanged": int(swapped.sum()),
        "auc": _auc(swapped[np.argsort(-score, kind="stable")]),
    }


def at_scale(rows: int, dim: int, classes: int, display: Display) -> dict[str, Any]:
    """Seconds and memory of an audit's sums on random embeddings around class centres, a tenth of the labels wrong."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(classes, dim)).astype(np.float32)
    clean = random.integers(0, classes, rows)
    labels = np.where(random.random(rows) < 0.1, random.integers(0, classes, rows), clean)
    with tempfile.TemporaryDirectory() as folder:

        def blocks() -> Any:
            for start in range(0, rows, 8192):
                part = clean[start : start + 8192]
                yield (centres[part] + 3 * random.standard_normal((len(part), dim), np.float32)).astype(np.float16)

        ids = pa.array([f"{number:07d}.jpg" for number in range(rows)])
        store = open_store(write_store(Path(folder) / "store", ids, blocks(), dim, "float16", {"id": "random"}).path)
        data = Embedded(store.embeddings, np.arange(rows), labels, classes)
        started, cpu = time.perf_counter(), time.process_time()
        learned = learn(data, display.show)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    share = learned.noise.share
    true = float((labels != clean).mean())
    return {
        "rows": rows,
        "dim": dim,
        "classes": classes,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "fitted": learned.guesses.fitted,
        "noise": true,
        "share": share.value,
        "low": share.low,
        "high": share.high,
    }


def measured(setting: Setting, roots: dict[str, str], storage: Path, display: Display) -> dict[str, Any]:
    """The audit's figures of a setting, and its gain."""
    inputs = read_inputs(configure(setting.data, setting.changes, roots, storage), display)
    data = inputs.data
    if setting.shuffled:
        mixed = uniform(np.arange(len(data)), 1, 2)[:, 0].argsort(kind="stable")
        data = Embedded(data.table, data.rows[mixed], data.labels, data.classes)
    known = knowledge_of(inputs, learn(data, display.show))
    gains = setting.gains()
    return {
        "data": setting.data,
        "setting": setting.name,
        "knows": known.knows,
        "accuracy": known.accuracy,
        "majority": known.majority,
        "noise": known.noise.value,
        "noise_low": known.noise.low,
        "left": known.left,
        "within": known.within,
        "gain": float(np.mean(gains)),
        "spread": spread(gains),
        "seeds": len(gains),
    }


def all_measured(roots: dict[str, str], storage: Path, out: Path, display: Display) -> list[dict[str, Any]]:
    """Writes the rows one by one; running again does what is missing."""
    rows: list[dict[str, Any]] = json.loads(out.read_text()) if out.exists() else []
    for setting in SETTINGS:
        there = any((row["data"], row["setting"]) == (setting.data, setting.name) for row in rows)
        if setting.data in (*BUILT_IN, *roots) and not there:
            row = measured(setting, roots, storage, display)
            rows.append({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()})
            out.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def noise_table(rows: list[dict[str, Any]]) -> str:
    """Known noise as the page has it."""
    lines = [
        "| data | wrong, % | confident joint | estimate (95 % interval) | AUC of the ranking | listed, of these wrong "
        "| suggestion right |",
        f"|{' --- |' * 7}",
    ]
    for row in rows:
        share, low, high = (f"{100 * row[name]:.1f}" for name in ("share", "low", "high"))
        auc = "" if row["auc"] is None else f"{row['auc']:.3f}"
        listed = f"{row['listed']:,}" + (f", {100 * row['precision']:.0f} %" if row["noise"] and row["listed"] else "")
        hits = "" if row["suggestion_right"] is None else f"{100 * row['suggestion_right']:.0f} %"
        wrong = f"{100 * row['noise']:g}" + ", next class" * (row["kind"] == "pair")
        cells = [row["data"], wrong, f"{100 * row['confident']:.1f}", f"{share} ({low} to {high})"]
        lines.append(f"| {' | '.join([*cells, auc, listed, hits])} |")
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of figures as Markdown."""
    head = list(rows[0])
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(_cell(row[name]) for name in head)} |" for row in rows)])


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("noise", "pairs", "scale", "settings"))
    parser.add_argument("--roots", nargs="*", default=[], metavar="NAME=DIR", help="image folders with captions")
    parser.add_argument("--model", default="runs/shapes_baseline", help="pairs: timm:NAME, a run or an export folder")
    parser.add_argument("--images", type=int, default=8192, help="built-in shapes")
    parser.add_argument("--rows", type=int, default=1_300_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--storage", type=Path, default=Path("runs"), help="folder that keeps embeddings")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    roots = dict(each.split("=", 1) for each in given.roots)
    sizes = {"data.shapes.train_size": given.images}
    with Display() as display:
        if given.part == "noise":
            rows = [
                {"data": name, **known_noise(configure(name, sizes, roots, given.storage), *noise, display)}
                for name in (*BUILT_IN, *roots)
                for noise in NOISES
            ]
        elif given.part == "pairs":
            rows = []
            for name in (*BUILT_IN, *roots):
                config = configure(name, {**sizes, **_CLEAN}, roots, given.storage)
                inputs = read_inputs(config, display)
                rows.append({"data": name, **exchanged_captions(inputs, config, given.model, 0.1, display)})
        elif given.part == "scale":
            rows = [at_scale(given.rows, given.dim, given.classes, display)]
        else:
            rows = all_measured(roots, given.storage, given.out or MEASURED, display)
    if given.out and given.part != "settings":
        given.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(noise_table(rows) if given.part == "noise" else table(rows))


if __name__ == "__main__":
    main()
