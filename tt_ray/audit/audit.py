"""The audit itself: reads, measures, judges, and writes a folder."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import tt_ray
from tt_ray.audit.captions import count_cut, describe_captions, find_neighbours
from tt_ray.audit.findings import Found, Options
from tt_ray.audit.inputs import Inputs, labels_of_data, read_inputs
from tt_ray.audit.learning import knowledge_of, learn
from tt_ray.audit.noise import FEW
from tt_ray.audit.out_of_fold import draw
from tt_ray.audit.page import thumbnail, to_html, to_markdown, to_thumbnails
from tt_ray.audit.tables import corrected_table, pairs_table, suspects_table, write_both, write_csv
from tt_ray.audit.verdict import judge
from tt_ray.audit.words import sections
from tt_ray.config import Config
from tt_ray.io.files import new_folder, refuse_own_place, sha256
from tt_ray.io.one_writer import beside, one_writer
from tt_ray.io.resumable import OTHERWISE, disk_problems
from tt_ray.logistic.design import read_blocks
from tt_ray.terminal.errors import UserError, some
from tt_ray.terminal.progress import Display
from tt_ray.terminal.python_calls import from_python

FIGURES = "audit.json"
"""Its presence says that a folder is an audit."""
_FORMAT_VERSION = 1
_PAIRS_SHOWN = 1000


@dataclass(frozen=True)
class Audit:
    """A finished audit."""

    folder: Path
    """audit.html, audit.md, audit.json, suspects.csv and .parquet, corrected.csv, and more where it was asked for."""
    figures: dict[str, Any]
    """What audit.json holds: verdict, captions, knowledge, noise, classes, ..."""

    @property
    def verdict(self) -> str:
        """What to expect, in a sentence."""
        return self.figures["verdict"]["headline"]

    @property
    def suspects(self) -> pa.Table:
        """Images by falling probability that their label is wrong, with the class that their caption suggests."""
        return pq.read_table(self.folder / "suspects.parquet")


@from_python()
def audit(
    config: Config,
    out: str | Path = "audit",
    *,
    images: str = "",
    thumbnails: int = 0,
    corrected: float = 0.9,
    overwrite: bool = False,
) -> Audit:
    """Says before any training what captions know, and which labels look wrong, as `python -m tt_ray.audit` does.

    Args:
        config: Data and text, such as `tt_ray.recipe("shapes_textteacher").override("data.root", "IMAGES")`.
        out: Folder to write.
        images: A timm model (timm:NAME), or a run or export folder, to look for captions of other images with.
        thumbnails: Images to show of the most suspicious labels; none is decoded with 0 and no `images`.
        corrected: Least probability of a suggestion for its place in corrected.csv.
        overwrite: Whether an earlier audit at `out` is replaced. A folder that holds anything else never is.

    Raises:
        UserError: Images, labels, captions or embeddings cannot be read, or `out` cannot be written.
    """
    with Display() as display:
        return run_audit(config, Path(out), Options(images, thumbnails, corrected, overwrite), display)


def run_audit(config: Config, out: Path, options: Options, display: Display) -> Audit:
    """`audit`, for the command: its errors name options."""
    out = out.expanduser().absolute()
    if not 0.5 <= options.corrected <= 1:
        raise UserError(f"--corrected is {options.corrected:g}, but must be a probability from 0.5 to 1")
    if options.thumbnails < 0:
        raise UserError(f"--thumbnails is {options.thumbnails}, but must be at least 0")
    with one_writer(beside(out), f"audit {out}", say=display.say):
        _check_out(out, options.overwrite)
        found = measure(config, options, display)
        figures = _write(out, found, options)
    return Audit(out, figures)


def _check_out(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    refuse_own_place(out)
    if out.is_dir() and not any(out.iterdir()):
        return
    if not (out / FIGURES).is_file():
        raise UserError(f"{out} exists, and holds something else than an audit: choose another --out")
    if not overwrite:
        raise UserError(f"{out} holds an audit: choose another --out, or --overwrite to replace it")
    if changed := _changed(out):
        raise UserError(
            f"{out} holds files that were changed or added since the audit, and --overwrite would delete them: "
            f"{some(changed)}; move them, or choose another --out"
        )


def _changed(out: Path) -> list[str]:
    """What is in the folder of an audit, such as labels that somebody has edited, and is not what the audit wrote."""
    try:
        written = json.loads((out / FIGURES).read_bytes()).get("files", {})
    except (OSError, ValueError, AttributeError):
        written = {}
    others = sorted(path for path in out.iterdir() if path.name != FIGURES)
    return [path.name for path in others if not path.is_file() or sha256(path) != written.get(path.name)]


def measure(config: Config, options: Options, display: Display) -> Found:
    """Everything that is measured; raises UserError as `audit` does."""
    inputs = read_inputs(config, display)
    data, images = inputs.data, inputs.images
    captions = cut = None
    if inputs.captions is not None:
        captions = describe_captions(inputs.captions, labels_of_data(inputs), images.classes)
        cut = count_cut(inputs.store.manifest["encoder"], inputs.captions)
    pairs, compared = _agreement(config, inputs, options.images, display)
    learned = learn(data, display.show)
    knowledge = knowledge_of(inputs, learned, captions)
    neighbours = find_neighbours(inputs.store, data.rows, images.labels)
    return Found(inputs, captions, cut, neighbours, learned, knowledge, judge(knowledge), pairs, compared)


def _agreement(config: Config, inputs: Inputs, model: str, display: Display) -> tuple[pa.Table | None, int]:
    if not model:
        return None, 0
    from tt_ray.audit.agreement import MOST, image_features, suspicion

    rows = draw(inputs.images.labels, np.arange(len(inputs.images)), MOST)
    features = image_features(config, model, inputs.images.select(rows), display.show)
    texts = np.concatenate([block for _, block in read_blocks(inputs.data.table, inputs.data.rows[rows])])
    return pairs_table(inputs, rows, suspicion(features, texts, display.show)), len(rows)


def _write(out: Path, found: Found, options: Options) -> dict[str, Any]:
    """Writes the folder and returns the figures."""
    inputs, suspects = found.inputs, found.learned.suspects
    listed = int((suspects.wrong >= 0.5).sum())
    corrected, replaced = corrected_table(inputs, suspects, options.corrected)
    figures = {"format_version": _FORMAT_VERSION, "tt_ray": tt_ray.__version__, "command": options.command}
    figures |= figures_of(found, listed, replaced, options.corrected)
    page = sections(found, figures, options)
    with disk_problems(out, OTHERWISE), new_folder(out) as folder:
        write_both(suspects_table(inputs, suspects, max(listed, min(len(suspects.rows), 100))), folder, "suspects")
        write_csv(corrected, folder / "corrected.csv")
        if found.pairs is not None:
            write_both(found.pairs, folder, "pairs")
        if options.thumbnails:
            (folder / "suspects.html").write_text(_thumbnails(found, options.thumbnails), encoding="utf-8")
        (folder / "audit.html").write_text(to_html(page), encoding="utf-8")
        (folder / "audit.md").write_text(to_markdown(page), encoding="utf-8")
        figures["files"] = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        (folder / FIGURES).write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return figures


def figures_of(found: Found, listed: int, replaced: int, least: float) -> dict[str, Any]:
    """All figures, in JSON's types."""
    noise, guesses, inputs = found.learned.noise, found.learned.guesses, found.inputs
    labels, names = inputs.images.labels, inputs.images.classes
    right = guesses.classes[:, 0] == labels
    counts = np.bincount(labels, minlength=len(names))
    accuracy = np.bincount(labels, right, len(names)) / np.maximum(counts, 1)
    apart = noise.joint - np.diag(np.diag(noise.joint))
    suspected = apart.sum(1) / np.maximum(counts, 1)
    largest = np.argsort(-apart, axis=None, kind="stable")[:20]
    confusions = [divmod(int(place), len(names)) for place in largest if apart.flat[place]]
    return {
        "verdict": asdict(found.verdict),
        "knowledge": asdict(found.knowledge),
        "captions": None if found.captions is None else asdict(found.captions),
        "cut_off": None if found.cut is None else asdict(found.cut),
        "directions": asdict(found.learned.directions),
        "model": {"C": guesses.strength, "folds": guesses.folds, "fitted": guesses.fitted},
        "noise": {"share": asdict(noise.share), "confident_joint": asdict(noise.confident), "anchors": noise.anchors},
        "suspects": {"listed": listed, "corrected": replaced, "corrected_from": least},
        "classes": [
            {
                "name": names[number],
                "images": int(counts[number]),
                "accuracy": float(accuracy[number]),
                "suspected": float(suspected[number]) if counts[number] >= FEW else None,
                "noise": None if (own := noise.by_class[number]) is None else asdict(own),
            }
            for number in np.flatnonzero(counts)
        ],
        "confusions": [
            {"label": names[given], "likely": names[likely], "images": int(apart[given, likely])}
            for given, likely in confusions
        ],
        "images_compared": found.compared,
        "notes": list(inputs.notes),
    }


def _thumbnails(found: Found, count: int) -> str:
    suspects, images, names = found.learned.suspects, found.inputs.images, found.inputs.images.classes
    shown = []
    for place, row in enumerate(suspects.rows[:count].tolist()):
        text = found.inputs.texts[row].as_py() if found.inputs.texts is not None else ""
        says = f"label {names[images.labels[row]]}, suggestion {names[suspects.suggestion[place]]}"
        shown.append(thumbnail(images, row, (says, f"wrong with probability {suspects.wrong[place]:.2f}", text)))
    return to_thumbnails("Labels that look wrong, the most suspicious first", shown)
