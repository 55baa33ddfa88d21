"""Does text help? With wrong labels, against correcting them; with clean labels, over sizes, lengths and captions.

    python -m benchmarks.does_it_help labels --roots emoji=EMOJI
    python -m benchmarks.does_it_help captions --roots emoji=EMOJI

`labels` replaces training labels, and trains without and with text, on these labels and on those that the audit has
corrected from captions, and without text by small-loss selection and with more smoothing. `captions` trains on clean
labels. All arms of a setting see as many images, at the recipe's learning rate, which nobody tuned for any of them. An
emoji folder and clip art joined are a data set of 21 classes. The second encoder is WordLlama, whose wheel holds its
weights (pip install wordllama). Rows go to OUT one by one; running again does what is missing.
"""

import argparse
import csv
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.what_text_buys import read, run_all
from tt_ray.config import Config
from tt_ray.data.prepare import open_images
from tt_ray.data.sources.clipart import FOLDER
from tt_ray.recipes import RECIPES
from tt_ray.statistics import paired_differences, spread, t_interval
from tt_ray.terminal.progress import Display

RESULTS = Path(__file__).parent / "results"
Overrides = dict[str, Any]
_EMOJI = {
    "data.source": "imagefolder",
    "data.augment": "crop_flip",
    "data.label_noise": 0.0,
    "optim.warmup_epochs": 2.0,
}
DATA: dict[str, tuple[str, Overrides]] = {
    "shapes": ("shapes_textteacher", {"data.label_noise": 0.0}),
    "emoji": ("shapes_textteacher", {**_EMOJI, "train.epochs": 8}),
    "clipart": ("clipart_textteacher", {"train.epochs": 20}),
    "joined": ("shapes_textteacher", {**_EMOJI, "data.label_column": "label_name", "train.epochs": 8}),
}


class Setting(NamedTuple):
    """What arms share, and the arms."""

    data: str
    name: str
    shared: Overrides
    arms: dict[str, Overrides]


BASELINE: Overrides = {"text.weight": 0.0}
TAUGHT: Overrides = {}
SHUFFLED: Overrides = {"text.control": "shuffle"}
_PAIR = {"data.label_noise": 0.4, "data.label_noise_kind": "pair"}
NOISES: dict[str, Overrides] = {
    "half of the labels wrong": {"data.label_noise": 0.5},
    "clean labels": {},
    "40 % of the labels the next class": _PAIR,
    "a fifth of the labels wrong": {"data.label_noise": 0.2},
}


_TIMES = "epochs times"
_IN_THE_BASELINES_TIME = {_TIMES: 1 / 1.03}
"""Whole epochs of text that take no longer than the baseline's: an epoch with text takes 1.03 times as long."""


def _against_noise(name: str) -> dict[str, Overrides]:
    noise = NOISES[name]
    # The share of wrong labels is known to the selection, as no user knows it.
    small = {"small loss": {**BASELINE, "optim.small_loss": noise["data.label_noise"]}} if noise else {}
    equal_time = {
        "TextTeacher, in the baseline's time": _IN_THE_BASELINES_TIME,
        "TextTeacher, corrected labels, in the baseline's time": {"corrected": 0.9, **_IN_THE_BASELINES_TIME},
    }
    return {
        "baseline": BASELINE,
        "TextTeacher": TAUGHT,
        "baseline, corrected labels": {**BASELINE, "corrected": 0.9},
        "TextTeacher, corrected labels": {"corrected": 0.9},
        **small,
        "label smoothing 0.3": {**BASELINE, "optim.label_smoothing": 0.3},
        **(equal_time if name.startswith("half") else {}),
    }


LABELS = [
    Setting(data, name, noise, _against_noise(name))
    for name, noise in NOISES.items()
    for data in ("clipart", "emoji", "shapes")
]
_PLAIN = {"baseline": BASELINE, "TextTeacher": TAUGHT, "captions shuffled": SHUFFLED}
_FIRST = {
    **_PLAIN,
    "random vector per class": {"text.control": "random_class"},
    "lambda 0.25": {"text.weight": 0.25},
    "lambda 0.75": {"text.weight": 0.75},
    "lambda 0.5, falling as a cosine": {"text.schedule": "cos"},
    "second encoder": {"encoder": "wordllama"},
}
_CONTENT = {
    "titles": {"caption": "title"},
    "keywords": {"caption": "keywords"},
    "captions without the class's words": {"caption": "no class"},
    "captions of the class alone": {"caption": "class"},
}
CAPTIONS = [
    Setting("clipart", "20 epochs", {}, {**_FIRST, **_CONTENT}),
    Setting("emoji", "8 epochs", {}, _FIRST),
    Setting("clipart", "40 epochs", {_TIMES: 2}, _PLAIN),
    Setting("clipart", "a tenth of the images, as many steps", {"data.subset": 0.1, _TIMES: 10}, _PLAIN),
    Setting("clipart", "a third of the images, as many steps", {"data.subset": 0.333, _TIMES: 3}, _PLAIN),
    Setting("emoji", "a tenth of the images, as many steps", {"data.subset": 0.1, _TIMES: 10}, _PLAIN),
    Setting("joined", "8 epochs", {}, _PLAIN),
    Setting("emoji", "24 epochs", {_TIMES: 3}, _PLAIN),
    Setting("clipart", "80 epochs", {_TIMES: 4}, _PLAIN),
    Setting("joined", "24 epochs", {_TIMES: 3}, _PLAIN),
    Setting("emoji", "80 epochs", {_TIMES: 10}, _PLAIN),
    Setting("clipart", "200 epochs", {_TIMES: 10}, _PLAIN),
]
PARTS = {"labels": LABELS, "captions": CAPTIONS}


def configure(setting: Setting, arm: str, seed: int, roots: dict[str, str], storage: Path) -> Config:
    """The configuration of one run; what it reads besides the data is made here, where it is not there yet."""
    recipe, base = DATA[setting.data]
    config = RECIPES[recipe]().override({**base, "run.storage": str(storage), "run.overwrite": True})
    config = config.override({"train.seed": seed, "optim.lr": 1e-3})
    if setting.data in ("emoji", "joined"):
        config = config.override("data.root", roots[setting.data])
    changes = {**setting.shared, **setting.arms[arm]}
    epochs = int(config.train.epochs * changes.pop(_TIMES, 1))
    corrected, caption, encoder = (changes.pop(name, None) for name in ("corrected", "caption", "encoder"))
    name = f"{setting.data}-{setting.name}-{arm}-{seed}".replace(" ", "_").replace(",", "")
    config = config.override({**changes, "train.epochs": epochs, "train.eval_every": epochs, "run.name": name})
    if caption:
        config = config.override("text.captions", str(caption_table(config, caption, storage)))
    if encoder:
        config = config.override("text.embeddings", str(word_vectors(config, storage / f"wordllama-{setting.data}")))
    if corrected:
        config = config.override({"data.labels": str(corrected_labels(config, storage)), "data.label_noise": 0.0})
    return config


def corrected_labels(config: Config, storage: Path) -> Path:
    """Labels that an audit of the captions has corrected; the noise is in them."""
    from tt_ray.audit.audit import run_audit
    from tt_ray.audit.findings import Options

    data = config.data
    noise = f"{data.label_noise:g}-{data.label_noise_kind}"
    kind = "clipart" if data.source == "clipart" else Path(data.root).name or data.source
    # Of other data, such as fewer images, it would leave the rest uncorrected, and so without the noise.
    of = blake2b(json.dumps(config.to_dict()["data"], sort_keys=True).encode(), digest_size=4).hexdigest()
    out = storage / "audits" / f"{kind}-{noise}-{config.train.seed}-{of}"
    if not (out / "audit.json").exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        taught = config.override("text.weight", 0.5)
        started = time.process_time()
        with Display() as display:
            run_audit(taught, out, Options(), display)
        print(f"audit {out.name}: {time.process_time() - started:.1f} CPU-seconds", flush=True)
    return out / "corrected.csv"


def caption_table(config: Config, kind: str, storage: Path) -> Path:
    """A table of captions made of the data's own, which are a title and keywords, separated by commas."""
    out = storage / f"captions-{config.data.source}-{kind.replace(' ', '_')}.csv"
    if not out.exists():
        every = open_images(config)[0]
        assert every.captions is not None
        with out.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("image_id", "caption"))
            names = (every.classes[label] for label in every.labels)
            for key, text, name in zip(every.ids.to_pylist(), every.captions.to_pylist(), names, strict=True):
                rows.writerow((key, CONTENT[kind](text, name) or "picture"))
    return out


def _without_class(text: str, name: str) -> str:
    words = [word.rstrip("s")[:5] for word in name.replace("_", " ").replace("&", " ").split() if len(word) > 2]
    return ", ".join(part for part in text.split(", ") if not any(word.lower() in part.lower() for word in words))


CONTENT: dict[str, Callable[[str, str], str]] = {
    "title": lambda text, name: text.partition(", ")[0],
    "keywords": lambda text, name: text.partition(", ")[2],
    "no class": _without_class,
    "class": lambda text, name: f"a drawing of {name}",
}


def word_vectors(config: Config, out: Path) -> Path:
    """An embedding store by WordLlama, the mean of static vectors of tokens, 256 dimensions."""
    from tt_ray.embeddings.build import write_store

    if not out.exists():
        import wordllama  # pyright: ignore[reportMissingImports]

        every = open_images(config)[0]
        assert every.captions is not None
        # Its tokenizer lies in the package in a folder that it looks for in its cache alone.
        package = Path(wordllama.__file__).parent
        model = wordllama.WordLlama.load(cache_dir=package, dim=256, disable_download=True)
        vectors = np.asarray(model.embed(every.captions.to_pylist()), np.float32)
        about = {"id": "wordllama l2_supercat_256", "revision": wordllama.__version__}
        write_store(out, every.ids, [vectors], vectors.shape[1], "float16", about)
    return out


def join_emoji_and_clipart(emoji: Path, out: Path) -> Path:
    """An image folder of both, split as they are."""
    if out.exists():
        return out
    half = out.with_name(f"{out.name}.half")
    for split in ("train", "test"):
        (half / split).mkdir(parents=True, exist_ok=True)
        lines = list[dict[str, Any]]()
        for line in (emoji / split / "metadata.jsonl").read_text().splitlines():
            row = json.loads(line)
            target = half / split / "emoji" / row["file_name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to((emoji / split / row["file_name"]).absolute())
            lines.append({**row, "file_name": f"emoji/{row['file_name']}", "label_name": f"emoji {row['label_name']}"})
        for image, row in _clipart(split):
            target = half / split / "clipart" / row["image_id"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(image)
            label, caption = f"clipart {row['label']}", row["caption"]
            lines.append({"file_name": f"clipart/{row['image_id']}", "label_name": label, "caption": caption})
        kept = ({name: line[name] for name in ("file_name", "label_name", "caption")} for line in lines)
        (half / split / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in kept))
    half.rename(out)
    return out


def _clipart(split: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
    files = dict[str, bytes]()
    for shard in sorted(FOLDER.glob(f"{split}-*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                stream = tar.extractfile(member) or io.BytesIO()
                files[member.name] = stream.read()
    for name in sorted(name for name in files if name.endswith(".json")):
        yield files[name.replace(".json", ".jpg")], json.loads(files[name])


def table(rows: list[dict[str, Any]], settings: list[Setting], least: int = 1) -> str:
    """Mean and standard deviation of top-1, and the paired difference to the baseline with its 95 % interval.

    Of arms that have run with at least so many seeds, where these are several.
    """
    lines = ["| data | setting | arm | seeds | top-1 | over the baseline |", f"|{' --- |' * 6}"]
    for setting in settings:
        found = {
            arm: scores
            for arm in setting.arms
            if len(scores := scores_of(rows, setting.data, setting.name, arm)) >= least
        }
        for arm, top1 in found.items() if len(found) > 1 else ():
            first = (setting.data, setting.name) if arm == "baseline" else ("", "")
            gain = "" if arm == "baseline" else _gain(top1, found["baseline"])
            lines.append(f"| {' | '.join([*first, arm, str(len(top1)), _mean(top1), gain])} |")
    return "\n".join(lines)


def wide(rows: list[dict[str, Any]], settings: list[Setting], least: int = 1) -> str:
    """The same of settings with the same arms, a line for each; `seeds` are those of the arm that has fewest."""
    arms = list(settings[0].arms)
    lines = [f"| data | setting | seeds | {' | '.join(arms)} |", f"|{' --- |' * (3 + len(arms))}"]
    for setting in settings:
        base, *others = (scores_of(rows, setting.data, setting.name, arm) for arm in arms)
        run = [len(each) for each in (base, *others) if len(each) >= least]
        if len(base) >= least and len(run) > 1:
            cells = [_gain(each, base) if len(each) >= least else "not run" for each in others]
            lines.append(f"| {' | '.join([setting.data, setting.name, str(min(run)), _mean(base), *cells])} |")
    return "\n".join(lines)


def scores_of(rows: list[dict[str, Any]], data: str, setting: str, arm: str) -> dict[int, float]:
    """Top-1 by seed."""
    key = {"data": data, "setting": setting, "arm": arm}
    return {row["seed"]: row["top1"] for row in rows if key.items() <= row.items()}


def _mean(top1: dict[int, float]) -> str:
    return f"{np.mean(list(top1.values())):.1f} ± {spread(list(top1.values())) or 0:.1f}"


def _gain(own: dict[int, float], base: dict[int, float]) -> str:
    gains = paired_differences(own, base)
    if not gains:  # no seed in common
        return ""
    if not any(gains):
        return "none: equal in each seed"  # nothing to correct, say
    interval = t_interval(gains)
    return f"{np.mean(gains):+.1f}" + (f" ({interval[0]:+.1f} to {interval[1]:+.1f})" if interval else "")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--roots", nargs="*", default=[], metavar="NAME=DIR", help="emoji=DIR, an image folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--settings", nargs="+", help="only settings of these names")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), help="only these data")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--storage", type=Path, default=Path("runs", "does-it-help"), help="folder of the runs")
    parser.add_argument("--out", type=Path, help="rows, default benchmarks/results/does-it-help-PART.jsonl")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    storage = given.storage.absolute()
    storage.mkdir(parents=True, exist_ok=True)
    roots = {
        name: str(Path(folder).expanduser().absolute()) for name, folder in (each.split("=", 1) for each in given.roots)
    }
    if "emoji" in roots:
        roots["joined"] = str(join_emoji_and_clipart(Path(roots["emoji"]), storage / "joined"))
    out = given.out or RESULTS / f"does-it-help-{given.part}.jsonl"
    settings = [
        setting
        for setting in PARTS[given.part]
        if setting.data in ("shapes", "clipart", *roots)
        and setting.data in given.data
        and setting.name in (given.settings or [setting.name])
    ]
    for setting in settings:  # one after the other: a setting with all of its seeds can be read
        every = [(seed, arm) for seed in given.seeds for arm in setting.arms]
        keys = [{"data": setting.data, "setting": setting.name, "arm": arm, "seed": seed} for seed, arm in every]
        there = read(out)
        left = [key for key in keys if not any(key.items() <= row.items() for row in there)]
        jobs = [(configure(setting, key["arm"], key["seed"], roots, storage), key) for key in left]
        for _ in run_all(jobs, out, given.workers, probes=False):
            pass
    rows = read(out)
    print(table(rows, settings))
    for _, alike in groupby(settings, lambda setting: list(setting.arms)):
        print(f"\n{wide(rows, list(alike))}")


if __name__ == "__main__":
    main()
