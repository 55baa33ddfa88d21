"""The model card of an export: README.md, as the Hugging Face hub shows it. It names no folders of this machine."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tt_ray.cli import as_words
from tt_ray.config import Config
from tt_ray.io.hub import is_id
from tt_ray.io.provenance import versions
from tt_ray.io.storage import is_uri
from tt_ray.statistics import difference_interval
from tt_ray.terminal.errors import UserError, one_line
from tt_ray.training.metrics_log import read_rows
from tt_ray.training.run_folder import changed_paths, read_result
from tt_ray.training.same_data import same_images

TAG = "tt-ray"
_OF_TEACHERS = ("text.", "teacher.", "head.", "data.caption_column", "data.shapes.caption")
_OWN_SETTINGS = (*_OF_TEACHERS, "optim.")
"""Fields in which a run and its baseline may differ: their teacher, and the optimiser, which suits each."""
_PAPER = "https://arxiv.org/abs/2605.22098"


@dataclass(frozen=True)
class Baseline:
    """A finished run beside another one that differs from it in having no teacher."""

    result: dict[str, Any]
    others: int
    """Further runs that would do as well; this one has the highest top-1 of all."""
    optimiser: str
    """In which settings of the optimiser it differs; empty where in none."""


def model_card(checkpoint: Path, hub_id: str = "") -> str:
    """The card of a checkpoint's deployed model.

    Args:
        checkpoint: Its folder; figures are there where it lies in the folder of its run.
        hub_id: USER/NAME on the hub, where it goes there.

    Raises:
        UserError: The checkpoint's files cannot be read.
    """
    config = Config.from_yaml(checkpoint / "config.yaml")
    try:
        state = json.loads((checkpoint / "state.json").read_text())
        position, classes = state["position"], len(state["extra"]["classes"])
    except (KeyError, ValueError, OSError) as error:
        raise UserError(f"{checkpoint} is no checkpoint of this version of tt-ray: {one_line(error)}") from None
    run, scores = checkpoint.parent.parent, None
    if checkpoint.parent.name == "checkpoints":  # and not a copy that lies elsewhere
        rows = [row for row in read_rows(run / "metrics.jsonl") if row["kind"] == "validation"]
        scores = next((row for row in rows if row["step"] == position["step"]), None)
    result = read_result(run) if scores is not None and (run / "result.json").is_file() else {}
    finished = result.get("steps") == position["step"]
    baseline = find_baseline(run, config) if finished and config.teaches else None
    shown = public(config)
    sections = [
        _front_matter(shown),
        f"# {shown.model.name} on {_data_name(shown)}\n\n{_about(shown, classes)}",
        f"## Use\n\n{_use(hub_id)}",
        f"## Accuracy\n\n{_accuracy(shown, scores, baseline)}",
        f"## Training\n\n{_training(shown, position, config, state['extra'].get('precision', ''))}",
        f"## Versions\n\n{_versions(result.get('versions') if finished else None)}",
    ]
    return "\n\n".join(sections) + "\n"


# --- the baseline -----------------------------------------------------------------------------------------------------


def find_baseline(run: Path, config: Config) -> Baseline | None:
    """The run without a teacher that was trained beside `run`, in the same storage, on the same images.

    Every field that changes what a run computes is the same, train.seed included, but for those of teachers and of the
    optimiser, which has a best setting for each. Of several the one with the highest top-1.
    """
    found = list[tuple[float, str, Baseline]]()
    for folder in run.parent.iterdir():
        try:
            if folder == run or not (folder / "result.json").is_file():
                continue
            other, result = Config.from_yaml(folder / "config.yaml"), read_result(folder)
            changed = changed_paths(config, other)
            if other.teaches or not all(path.startswith(_OWN_SETTINGS) for path in changed):
                continue
            if not same_images(run, folder):
                continue
            own = [f"`{path} {other.get(path)}`" for path in changed if path.startswith("optim.")]
            found.append((result["top1"], folder.name, Baseline(result, 0, ", ".join(own))))
        except (UserError, OSError, ValueError, KeyError):  # no run, or one that is being deleted
            continue
    if not found:
        return None
    best = max(found, key=lambda each: each[:2])[2]
    return Baseline(best.result, len(found) - 1, best.optimiser)


# --- what is public ---------------------------------------------------------------------------------------------------


def public(config: Config) -> Config:
    """The configuration without folders of this machine: of a path or URI the last name is left, ids of a hub stay."""
    ids = {"data.root": config.data.source == "datasets", "text.encoder": True}
    texts = ("text.captions", "text.embeddings", "text.class_embeddings", "text.encoder")
    for path in ("data.root", "data.labels", *texts, "teacher.model"):
        config = config.override(path, _public(config.get(path), ids.get(path, False)))
    return config


def _public(value: str, may_be_id: bool) -> str:
    for prefix in ("timm:", "hf:", "open_clip:"):
        if value.startswith(prefix):
            return prefix + _public(value.removeprefix(prefix), True)
    name, plus, projection = value.partition("+projection")
    if may_be_id and is_id(name) and not Path(name).exists():
        return value
    if is_uri(name):
        name = name.partition("?")[0]
    return Path(name).name + plus + projection


# --- the sections -----------------------------------------------------------------------------------------------------


def _front_matter(config: Config) -> str:
    from huggingface_hub import ModelCardData

    is_hub_data = config.data.source == "datasets" and "/" in config.data.root
    data = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", TAG],
        datasets=[config.data.root] if is_hub_data else None,
        metrics=["accuracy"],
    )
    return f"---\n{data.to_yaml().strip()}\n---"


def _data_name(config: Config) -> str:
    data = config.data
    if data.source == "torchvision":  # whose root is the folder that the set was downloaded to
        return data.name
    return " ".join(filter(None, (data.root or data.source, data.name)))


def _about(config: Config, classes: int) -> str:
    size = f"{config.data.image_size} px"
    model = f"An image classifier: timm's `{config.model.name}` for images of {size} and {classes} classes"
    if not config.teaches:
        return f"{model}, trained with tt-ray without a teacher."
    teachers = [f"the vision teacher `{config.teacher.model}`"] if config.teacher.model else []
    if config.reads_text:
        # Of a store of one's own the encoder is not known here.
        text = "" if config.text.embeddings else f", captions embedded by `{config.text.encoder}`"
        teachers.append(f"a language teacher ([TextTeacher]({_PAPER}){text})")
    taught = f"{model}, trained with tt-ray and {' and '.join(teachers)}"
    return f"{taught}. The teacher was used in training alone: this is the plain timm model."


def _use(hub_id: str) -> str:
    name = f"hf-hub:{hub_id}" if hub_id else "local-dir:FOLDER"
    load = f'import timm\n\nmodel = timm.create_model("{name}", pretrained=True).eval()\n'
    transform = "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
    names = 'names = model.pretrained_cfg["label_names"]'
    return f"```python\n{load}{transform}{names}\n```"


def _accuracy(config: Config, scores: dict[str, Any] | None, baseline: Baseline | None) -> str:
    if scores is None:
        return "No validation of this checkpoint is known."
    count = scores["val_images"]
    data = config.data
    split = (
        f"a share of {data.val_share:g} of split `{data.train_split}`"
        if data.val_share
        else f"split `{data.val_split}`"
    )
    rows = [f"In per cent of {count} validation images, {split}.", "", "| | top-1 | top-5 |", "| --- | --- | --- |"]
    rows.append(_row("this model", scores))
    if baseline is None:
        return "\n".join([*rows, *(["", "No baseline was trained beside it."] if config.teaches else [])])
    other = baseline.result
    rows.append(_row("the same without its teacher", other))
    low, high = difference_interval(scores["top1"] / 100, other["top1"] / 100, count, other["val_images"])
    gain = f"{scores['top1'] - other['top1']:+.2f} points of top-1, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}"
    return "\n".join([*rows, "", f"Gain: {gain}.", "", _how(baseline)])


def _row(name: str, scores: dict[str, Any]) -> str:
    top5 = f"{scores['top5']:.2f}" if "top5" in scores else "—"
    return f"| {name} | {scores['top1']:.2f} | {top5} |"


def _how(baseline: Baseline) -> str:
    sentences = ["The baseline is one run with the same data, model, epochs and seed, but `text.weight 0`"]
    if baseline.optimiser:
        sentences[0] += f" and {baseline.optimiser}"
    if baseline.others:
        sentences.append(f"It is the best of {baseline.others + 1} such runs")
    sentences.append(
        "The interval is Newcombe's for the difference of two proportions: it treats the two results as independent "
        "samples, though both are on the same images, and knows nothing of other seeds"
    )
    return ". ".join(sentences) + "."


def _training(config: Config, position: dict[str, int], own: Config, precision: str) -> str:
    data, kept = config.data, list[str]()
    if data.label_noise:
        how = "at random" if data.label_noise_kind == "symmetric" else "by the next class's name"
        kept.append(f"{data.label_noise:.4g} of the training labels were made wrong {how}")
    if data.unlabelled:
        kept.append(f"{data.unlabelled:.4g} of the training images were used without their label")
    if data.subset < 1:
        kept.append(f"{data.subset:.4g} of the training images were used")
    about = f"Data: {_data_name(config)} (`data.source {data.source}`)" + "".join(f"; {each}" for each in kept)
    epochs = f"{position['epoch']} of {config.train.epochs} epochs, {position['step']} steps"
    words = shlex.join(["python", "-m", "tt_ray.train", *as_words(config)])
    places = (
        "" if config == own else " Files and folders are given by their name alone: put your own paths in their place."
    )
    return (
        f"{about}. {epochs} of {config.train.batch_size} images{f', in {precision}' if precision else ''}.\n\n"
        f"```bash\n{words}\n```\n\n"
        f"A recipe of tt-ray, and what differs from it.{places}"
    )


def _versions(trained: dict[str, str] | None) -> str:
    def shown(found: dict[str, str]) -> str:
        return ", ".join(f"{name} {version}" for name, version in found.items())

    lines = [f"Trained with {shown(trained)}."] if trained else []
    if trained != versions():
        lines.append(f"Exported with {shown(versions())}.")
    return "\n\n".join(lines)
