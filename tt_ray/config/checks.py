"""Checks of a configuration: values out of range, and fields that contradict each other; errors are one line."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from math import inf
from typing import Any, get_type_hints

from pydantic import ValidationError

from tt_ray.config.sections import (
    DataConfig,
    HeadConfig,
    ModelConfig,
    OptimConfig,
    Range,
    RunConfig,
    TeacherConfig,
    TextConfig,
    TrainConfig,
)
from tt_ray.config.sources import check_source
from tt_ray.losses import ALIGNMENT_LOSSES, find_loss
from tt_ray.schedules import build_schedule
from tt_ray.terminal.errors import UserError, nearest

_LARGEST = 3.4e38
# Arguments of timm.create_model that follow from the data, or that would load weights behind the recipe's back.
_OWN_KWARGS = ("num_classes", "in_chans", "pretrained", "checkpoint_path")


def check_ranges(sections: Mapping[str, Any]) -> None:
    """Checks every number against the `Range` of its field.

    Args:
        sections: Sections of a configuration by name.

    Raises:
        UserError: A number is out of range, by its dotted path.
    """
    for group, section in sections.items():
        for path, allowed in ranges(type(section)):
            value = section
            for name in path.split("."):
                value = getattr(value, name)
            if not allowed.low <= value <= allowed.high:
                raise UserError(f"{group}.{path} is {value}, but must be between {allowed.low:g} and {allowed.high:g}")
            if value > _LARGEST:
                raise UserError(f"{group}.{path} is {value:g}, but must be a finite number of single precision")


@cache
def ranges(section: type) -> Sequence[tuple[str, Range]]:
    """The ranges of a section's fields, by their path inside the section."""
    return list(_ranges(section))


def _ranges(section: type) -> Iterator[tuple[str, Range]]:
    for name, hint in get_type_hints(section, include_extras=True).items():
        if is_dataclass(hint):
            yield from ((f"{name}.{path}", allowed) for path, allowed in _ranges(hint))  # type: ignore[arg-type]
        yield from ((name, each) for each in getattr(hint, "__metadata__", ()) if isinstance(each, Range))


def check_fields(data: DataConfig, model: ModelConfig, optim: OptimConfig, train: TrainConfig, run: RunConfig) -> None:
    """Checks what a range cannot express.

    Raises:
        UserError: A value is one that no run can use.
    """
    check_source(data.source)
    if data.sampling == "balanced" and data.unlabelled:
        raise UserError("data.sampling balanced needs the label of each image: leave out --data.unlabelled")
    if optim.small_loss and data.unlabelled:
        raise UserError("optim.small_loss needs the label of each image: leave out --data.unlabelled")
    if optim.small_loss and optim.class_weights != "none":
        raise UserError("optim.small_loss compares losses of images, which optim.class_weights scales: leave out one")
    if data.sampling == "balanced" and optim.class_weights == "balanced":
        raise UserError(
            "data.sampling balanced and optim.class_weights balanced would each make up for small classes, and count "
            "them twice: leave out one of them"
        )
    for path, values, low in (("data.mean", data.mean, -inf), ("data.std", data.std, 0)):
        if not all(low < value < inf for value in values):
            raise UserError(f"{path} is {values}, but all must be between {low:g} and inf")
    for key in _OWN_KWARGS:
        if key in model.kwargs:
            raise UserError(f"model.kwargs has {key}, which is not for choosing: leave it out")
    if not run.name.isprintable():
        raise UserError(f"run.name is {run.name!r}, but must have no line breaks or other control characters")
    if run.strategy != "ddp" and train.precision == "fp16":
        raise UserError(f"run.strategy {run.strategy} does not scale fp16's losses: choose --train.precision bf16")
    if train.replays_graphs:
        _check_graphs(train, run)


def _check_graphs(train: TrainConfig, run: RunConfig) -> None:
    """Raises UserError where the step of a run cannot be replayed as CUDA graphs."""
    # A graph replays the same kernels on the same addresses, and a replay overwrites the results of the one before.
    unfit = {
        "train.max_batch_per_worker": ("adds up gradients of several replays", bool(train.max_batch_per_worker)),
        "train.sync_batchnorm": ("exchanges statistics in the forward pass", train.sync_batchnorm),
        "run.strategy": ("gathers weights to new addresses", run.strategy != "ddp"),
    }
    for path, (does, used) in unfit.items():
        if used:
            raise UserError(
                f"train.compile_mode {train.compile_mode} replays CUDA graphs, but {path} {does}: leave out one of "
                "them, or choose --train.compile_mode max-autotune-no-cudagraphs"
            )


def check_schedules(text: TextConfig, optim: OptimConfig, epochs: int) -> None:
    """Raises UserError where text.schedule is unknown, or a schedule does not fit its epochs."""
    build_schedule(text.schedule, text.weight, epochs)
    if optim.schedule_per == "epoch" and optim.warmup_epochs % 1:
        raise UserError(
            f"optim.schedule_per epoch changes the rate between whole epochs, but optim.warmup_epochs is "
            f"{optim.warmup_epochs:g}: choose a whole number"
        )


def check_teachers(text: TextConfig, teacher: TeacherConfig, head: HeadConfig, data: DataConfig) -> None:
    """Checks the language and the vision teacher of a run that has one, against each other and against the data.

    Raises:
        UserError: Two fields contradict each other.
    """
    loss = find_loss(text.loss)
    for name, unset in (("class_embeddings", ""), ("class_variance", "population"), ("mixed_class", "shares")):
        if getattr(text, name) != unset and "means" not in loss.needs:
            others = ", ".join(other for other, each in ALIGNMENT_LOSSES.items() if "means" in each.needs)
            raise UserError(f"text.loss {text.loss} has no text.{name}, as {others} has: leave it out")
    if text.temperature and not loss.contrastive:
        others = ", ".join(name for name, each in ALIGNMENT_LOSSES.items() if each.contrastive)
        raise UserError(f"text.loss {text.loss} has no text.temperature, as {others} have: leave it out")
    embeds = bool(teacher.model) and teacher.target == "embedding"
    if "teacher" in loss.needs and not embeds:
        raise UserError(
            f"text.loss {text.loss} compares with a vision teacher too: set --teacher.model, target embedding"
        )
    if "means" in loss.needs and embeds:
        raise UserError(f"text.loss {text.loss} needs the text of each class: leave out --teacher.model")
    if {"labels", "means"} & set(loss.needs) and data.unlabelled:
        raise UserError(f"text.loss {text.loss} needs the label of each image: leave out --data.unlabelled")
    if teacher.model and "teacher" not in loss.needs:
        about_text = {
            "text.captions": text.captions != "",
            "text.embeddings": text.embeddings != "",
            "text.control": text.control != "none",
            "head.out_dim": head.out_dim != 0,
        }
        for path, changed in about_text.items():
            if changed:
                raise UserError(f"{path} is about text, which teacher.model replaces: leave out one of them")
    if teacher.model and teacher.target == "logits" and text.loss != "clip":
        raise UserError(f"teacher.target logits has a loss of its own: leave out --text.loss {text.loss}")


def check_text(text: TextConfig) -> None:
    """Raises UserError where a run that reads text has two sources of it, of which one would not be read."""
    if text.captions and text.embeddings:
        raise UserError(
            f"text.embeddings {text.embeddings} are of captions already, and text.captions {text.captions} would not "
            "be read: leave out one of them"
        )


def check_batch(train: TrainConfig, data: DataConfig, most_workers: int) -> None:
    """Raises UserError when a batch cannot be divided among so many workers, in pairs where images are mixed."""
    size, mixes = train.batch_size, bool(data.mixup or data.cutmix)
    if mixes and size % 2:
        raise UserError(f"train.batch_size is {size}, but mixing pairs images: it must be even")
    if size < (1 + mixes) * most_workers:
        of = f"{'2 x ' * mixes}run.num_workers, {most_workers}"
        raise UserError(f"train.batch_size is {size}, but must be at least {of}")


def workers_range(num_workers: int | str) -> tuple[int, int]:
    """The fewest and the most workers; raises UserError when `num_workers` is neither N nor MIN:MAX."""
    found = re.fullmatch(r"(\d+)(?::(\d+))?", str(num_workers))
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high:
        raise UserError(f"run.num_workers is {num_workers!r}, but must be a number, or MIN:MAX such as 1:4")
    return low, high


def first_problem(paths: Sequence[str], error: ValidationError, where: str) -> str:
    """The first problem that pydantic has found, in one line.

    Args:
        paths: All dotted paths of the configuration, for the nearest to an unknown one.
        error: pydantic's error.
        where: Beginning of the line, such as the file's name.
    """
    problem = error.errors()[0]
    path = ".".join(str(part) for part in problem["loc"] if isinstance(part, str) and part not in ("int", "float"))
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{where}no field {path}; {nearest(path, paths)}"
    if path.startswith("model.kwargs."):
        key = ".".join(path.split(".")[:3])
        return f"{where}{key} is {problem['input']!r}, but must be a number, True, False, a text, or a list of numbers"
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return f"{where}{cause}"
    return f"{where}{path} is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
