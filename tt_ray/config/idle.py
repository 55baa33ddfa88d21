"""Fields that do nothing beside the others: a user who has set one is told so."""

from collections.abc import Callable
from typing import NamedTuple

from tt_ray.config.tree import Config
from tt_ray.losses import ALIGNMENT_LOSSES
from tt_ray.schedules import VL2

_TRANSFORMS = ("three_augment", "deit")
_OF_TEXT = (
    *("text.encoder", "text.max_missing", "text.normalize_mean", "text.normalize_std", "text.on_device"),
    "data.caption_column",
)
# Mixing follows it without text too.
_ALWAYS = "text.scope"


class Idle(NamedTuple):
    """Fields that do nothing with certain values of another field."""

    fields: tuple[str, ...]
    """Dotted paths, or a section's name with a dot at its end."""
    due_to: str
    """The other field, whose value is named."""
    when: Callable[[Config], bool]
    """Whether they do nothing."""


def _mixes(config: Config) -> bool:
    return bool(config.data.mixup or config.data.cutmix)


def _alone(config: Config) -> bool:
    """Whether there is one worker, in any case."""
    return config.workers[1] == 1


def _in_single_precision(config: Config) -> bool:
    """Whether autocast does nothing: on a CPU auto is fp32, and on a GPU only the GPU knows."""
    return config.train.precision == "fp32" or (config.train.precision == "auto" and not config.run.use_gpu)


def _built_in(config: Config, *sources: str) -> bool:
    """Whether the source is a built-in one other than these: those of a user's own may read any field."""
    return ":" not in config.data.source and config.data.source not in sources


IDLE = (
    # With weight 0 a command is the baseline of the one with text, as it stands: see `notes_on_idle_fields`.
    Idle(("text.", "head.", "teacher."), "text.weight", lambda config: not config.teaches),
    Idle(("head.",), "teacher.target", lambda config: config.teaches and not config.has_text_head),
    Idle(("text.negatives", "text.temperature"), "teacher.target", lambda c: c.teaches and not c.has_text_head),
    Idle(_OF_TEXT, "teacher.model", lambda config: config.teaches and not config.reads_text),
    Idle(("text.weight",), "text.schedule", lambda config: config.teaches and config.text.schedule == VL2),
    Idle(("text.mixed_class",), "data.cutmix", lambda config: not _mixes(config)),
    Idle(("text.loss_precision",), "train.precision", _in_single_precision),
    Idle(("text.scope",), "text.weight", lambda config: not config.teaches and not _mixes(config)),
    Idle(("data.label_noise_kind",), "data.label_noise", lambda config: not config.data.label_noise),
    Idle(("head.hidden_dim", "head.depth"), "head.kind", lambda config: config.head.kind == "linear"),
    Idle(
        ("teacher.target", "teacher.temperature", "teacher.image_size"), "teacher.model", lambda c: not c.teacher.model
    ),
    Idle(("teacher.temperature",), "teacher.target", lambda c: bool(c.teacher.model) and c.teacher.target != "logits"),
    Idle(
        ("text.negatives",),
        "text.loss",
        lambda c: c.text.loss in ALIGNMENT_LOSSES and not ALIGNMENT_LOSSES[c.text.loss].contrastive,
    ),
    Idle(
        ("text.encoder", "data.caption_column"),
        "text.embeddings",
        lambda config: config.reads_text and bool(config.text.embeddings),
    ),
    Idle(("data.caption_column",), "text.captions", lambda config: config.reads_text and bool(config.text.captions)),
    Idle(("data.shapes.",), "data.source", lambda config: _built_in(config, "shapes")),
    Idle(("data.index",), "data.source", lambda config: _built_in(config, "webdataset")),
    Idle(("data.name",), "data.source", lambda config: _built_in(config, "torchvision", "datasets")),
    Idle(("data.image_column", "data.id_column"), "data.source", lambda config: _built_in(config, "datasets")),
    Idle(("data.root",), "data.source", lambda config: config.data.source == "shapes"),
    Idle(("data.val_split",), "data.val_share", lambda config: config.data.val_share > 0),
    Idle(("data.group_column",), "data.val_share", lambda config: not config.data.val_share),
    Idle(("data.color_jitter",), "data.augment", lambda config: config.data.augment != "three_augment"),
    Idle(("data.augment_on", "data.decoder"), "data.augment", lambda config: config.data.augment not in _TRANSFORMS),
    Idle(("train.compile_mode",), "train.compile", lambda config: not config.train.compile),
    Idle(("optim.warmup_lr",), "optim.warmup_epochs", lambda config: not config.optim.warmup_epochs),
    # One worker's part is the whole batch.
    Idle(("text.scope", "text.negatives", "train.sync_batchnorm", "train.reduce_precision"), "run.num_workers", _alone),
    Idle(("run.resize_every",), "run.num_workers", lambda config: len({*config.workers}) == 1),
)
"""The table of them. Fields that contradict each other are refused instead: tt_ray/config/checks.py."""


def notes_on_idle_fields(config: Config) -> list[str]:
    """A sentence for each reason why fields that the user has set do nothing.

    Args:
        config: The run; a recipe's own values are not the user's (`Config.named`).

    Returns:
        Sentences without the field that is said of the first reason again. Nothing is said of a text.weight that the
        user has set to 0: that is how a command becomes its own baseline.
    """
    said = set[str]()
    notes = list[str]()
    for idle in IDLE:
        if not idle.when(config) or (idle.due_to == "text.weight" and "text.weight" in config.named):
            continue
        found = [path for path in Config.paths() if path in config.named and _is_of(path, idle) and path not in said]
        said.update(found)
        if found:
            verb = "does" if len(found) == 1 else "do"
            notes.append(f"{', '.join(found)} {verb} nothing with {_cause(idle, config)}")
    return notes


def why_idle(path: str, config: Config) -> str:
    """The field and its value with which the one at `path` does nothing; empty where it does something."""
    return next((_cause(idle, config) for idle in IDLE if _is_of(path, idle) and idle.when(config)), "")


def _cause(idle: Idle, config: Config) -> str:
    value = config.get(idle.due_to)
    return f"{idle.due_to} {value if value != '' else 'empty'}"


def _is_of(path: str, idle: Idle) -> bool:
    if path == idle.due_to:
        return False
    section = path != _ALWAYS and any(each.endswith(".") and path.startswith(each) for each in idle.fields)
    return section or path in idle.fields


def note_on_warm_up(config: Config) -> str:
    """A sentence where the training ends before its warm-up, so that optim.lr is never reached; or ""."""
    optim, epochs = config.optim, config.train.epochs
    # By epoch the rate is late by one: the last epoch, epochs - 1, has that of the one before it.
    share = (max(epochs - 2, 0) if optim.schedule_per == "epoch" else epochs) / (optim.warmup_epochs or 1)
    if not optim.warmup_epochs or share >= 1 or optim.warmup_lr >= optim.lr:
        return ""
    highest = optim.warmup_lr + share * (optim.lr - optim.warmup_lr)
    return (
        f"{epochs} {'epoch ends' if epochs == 1 else 'epochs end'} before the warm-up does (optim.warmup_epochs "
        f"{optim.warmup_epochs:g}, schedule_per {optim.schedule_per}): the rate reaches {highest:.2g}, not optim.lr "
        f"{optim.lr:g}; train for longer, or warm up for less"
    )
