"""What is wrong with a configuration, in one line: values out of range, and fields that cannot go together."""

import re
from math import inf
from typing import TYPE_CHECKING

from pydantic import ValidationError

from tt_ray.config.ranges import RANGES
from tt_ray.losses import ALIGNMENT_LOSSES, find_loss
from tt_ray.schedules import build_schedule
from tt_ray.terminal.errors import UserError, nearest

if TYPE_CHECKING:
    from tt_ray.config.tree import Config

_LARGEST = 3.4e38
# Arguments of timm.create_model that follow from the data, or that would load weights behind the recipe's back.
_OWN_KWARGS = ("num_classes", "in_chans", "pretrained", "checkpoint_path")


def check_config(config: "Config") -> None:
    """Raises UserError, naming the path, for values that no run could use."""
    for path, low, high in RANGES:
        value = config.get(path)
        if not low <= value <= high:
            raise UserError(f"{path} is {value}, but must be between {low:g} and {high:g}")
        if value > _LARGEST:
            raise UserError(f"{path} is {value:g}, but must be a finite number of single precision")
    for path, low in (("data.mean", -inf), ("data.std", 0)):
        if not all(low < value < inf for value in config.get(path)):
            raise UserError(f"{path} is {config.get(path)}, but all must be between {low:g} and inf")
    for key in _OWN_KWARGS:
        if key in config.model.kwargs:
            raise UserError(f"model.kwargs has {key}, which is not for choosing: leave it out")
    if not config.run.name.isprintable():
        raise UserError(f"run.name is {config.run.name!r}, but must have no line breaks or other control characters")
    find_loss(config.text.loss)
    build_schedule(config.text.schedule, config.text.weight, config.train.epochs)
    if config.run.strategy == "fsdp" and config.train.precision == "fp16":
        raise UserError("run.strategy fsdp does not scale fp16's losses: give --train.precision bf16")
    if config.teaches:
        _check_teachers(config)
    _check_batch(config)


def _check_teachers(config: "Config") -> None:
    text, teacher, loss = config.text, config.teacher, find_loss(config.text.loss)
    if text.temperature and not loss.contrastive:
        others = ", ".join(name for name, each in ALIGNMENT_LOSSES.items() if each.contrastive)
        raise UserError(f"text.loss {text.loss} has no text.temperature, as {others} have: leave it out")
    embeds = bool(teacher.model) and teacher.target == "embedding"
    if "teacher" in loss.needs and not embeds:
        raise UserError(
            f"text.loss {text.loss} compares with a vision teacher too: give --teacher.model, target embedding"
        )
    if "means" in loss.needs and embeds:
        raise UserError(f"text.loss {text.loss} needs the text of each class: leave out --teacher.model")
    if {"labels", "means"} & set(loss.needs) and config.data.unlabelled:
        raise UserError(f"text.loss {text.loss} needs the label of each image: leave out --data.unlabelled")
    if teacher.model and not config.reads_text:
        usual = {"text.captions": "", "text.embeddings": "", "text.control": "none", "head.out_dim": 0}
        for path, value in usual.items():
            if config.get(path) != value:
                raise UserError(f"{path} is about text, whose place teacher.model takes: leave out one of them")
    if teacher.model and teacher.target == "logits" and text.loss != "clip":
        raise UserError(f"teacher.target logits has a loss of its own: leave out --text.loss {text.loss}")


def _check_batch(config: "Config") -> None:
    size, mixes = config.train.batch_size, bool(config.data.mixup or config.data.cutmix)
    if mixes and size % 2:
        raise UserError(f"train.batch_size is {size}, but mixing pairs images: it must be even")
    if size < (1 + mixes) * config.workers[1]:
        of = f"{'2 x ' * mixes}run.num_workers, {config.workers[1]}"
        raise UserError(f"train.batch_size is {size}, but must be at least {of}")


def workers_range(num_workers: int | str) -> tuple[int, int]:
    """The fewest and the most workers; raises UserError when `num_workers` is neither N nor MIN:MAX."""
    found = re.fullmatch(r"(\d+)(?::(\d+))?", str(num_workers))
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high:
        raise UserError(f"run.num_workers is {num_workers!r}, but must be a number, or MIN:MAX such as 1:4")
    return low, high


def first_problem(cls: "type[Config]", error: ValidationError, where: str) -> str:
    """The first thing that pydantic has found, with its dotted path, behind `where`."""
    problem = error.errors()[0]
    path = ".".join(str(part) for part in problem["loc"] if isinstance(part, str) and part not in ("int", "float"))
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{where}no field {path}; {nearest(path, cls.paths())}"
    if path.startswith("model.kwargs."):
        key = ".".join(path.split(".")[:3])
        return f"{where}{key} is {problem['input']!r}, but must be a number, True, False, a text, or a list of numbers"
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return f"{where}{cause}"
    return f"{where}{path} is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
