"""Arms of a comparison: how they are written, and whether they can be compared at all."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tt_ray.cli import read_config, refuse_own
from tt_ray.config import Config
from tt_ray.terminal.errors import UserError

_NAME_SIGNS = "letters, digits, _, . and -"
_SAME = (
    *("train.epochs", "train.batch_size", "data.source", "data.root", "data.name", "data.val_split", "data.val_share"),
    *("data.label_column", "data.shapes.label", "data.shapes.seed", "data.shapes.val_size"),
)
"""Fields that must agree for a comparison to be one: of another split, or other labels, top-1 is another figure."""
_HELD_OUT = ("data.train_split", "data.group_column", "data.id_column", "data.shapes.train_size")
"""Fields that decide which training images data.val_share holds out to validate on: they must agree with it, too."""
OWN = {"train.seed": "--seeds", "run.name": "--out", "run.storage": "--out", "run.overwrite": "another --out"}
"""Fields that a run has of the comparison, see `configure`, and the option that sets each."""
_SOME_CLASSES = 10
"""Classes that models are tried with before the data are open: their number makes no difference to that."""


class Arm(NamedTuple):
    """One side of the comparison."""

    name: str
    config: Config


def read_arms(texts: Sequence[str], common: Sequence[str] = ()) -> list[Arm]:
    """Arms with the changes of `common`; raises UserError on anything unknown in them."""
    arms: list[Arm] = []
    for text in texts:
        name, equals, rest = text.partition("=")
        if not (equals and rest and name.replace("_", "").replace("-", "").replace(".", "").isalnum()):
            raise UserError(f"--arms {text!r} must be NAME=RECIPE[+PATH=VALUE ...], NAME of {_NAME_SIGNS}")
        # A plus may be part of a value, as in text.encoder=MODEL+projection.
        base, *changes = _split_changes(rest)
        words = [word for change in [*common, *changes] for word in as_words(change)]
        config = read_config([base, *words], f"--arms {name}")
        refuse_own(config, OWN, "a comparison")
        arms.append(Arm(name, config))
    return arms


def _split_changes(text: str) -> list[str]:
    parts: list[str] = []
    for part in text.split("+"):
        if parts and "=" not in part:
            parts[-1] += f"+{part}"
        else:
            parts.append(part)
    return parts


def as_words(change: str) -> list[str]:
    """PATH=VALUE as words of a command line; raises UserError when it is not of that form."""
    path, equals, value = change.partition("=")
    if not equals:
        raise UserError(f"{change!r} must be PATH=VALUE, such as train.epochs=10")
    return [f"--{path}", *(value.split() or [""])]


def check(arms: Sequence[Arm], seeds: Sequence[int]) -> None:
    """Raises UserError where the arms cannot be compared."""
    names = [arm.name for arm in arms]
    if len(arms) < 2:
        raise UserError("--arms needs at least two: the baseline first")
    for what, values in (("--arms", names), ("--seeds", list(seeds))):
        if not values or len(set(values)) < len(values):
            raise UserError(f"{what} is empty or has something twice: {' '.join(map(str, values))}")
    first = arms[0]
    for arm in arms[1:]:
        teacher = arm.config.teacher.model if arm.config.teaches else ""
        if (
            teacher
            and not teacher.startswith(("timm:", "hf:", "open_clip:"))
            and not Path(teacher).expanduser().exists()
        ):
            raise UserError(
                f"arm {arm.name} learns from {teacher}, which does not exist: train it first "
                f"(python -m tt_ray.train {shlex.quote(Path(teacher).name)}), or pass +teacher.model=MODEL"
            )
        for path in (*_SAME, *(_HELD_OUT if first.config.data.val_share else ())):
            here, there = (
                value if value != "" else "empty" for value in (arm.config.get(path), first.config.get(path))
            )
            if here != there:
                raise UserError(
                    f"arm {arm.name} has {path} {here}, but {first.name} has {there}: pass --set {path}=VALUE for all"
                )


def try_models(arms: Sequence[Arm]) -> None:
    """Raises UserError where an arm's model cannot be trained, before hours have gone into the other arms."""
    from tt_ray.training.trainable import check_model  # takes seconds to import

    tried: list[Any] = []
    for arm in arms:
        config = arm.config
        what = (config.model, config.optim, config.train.batch_size, config.train.max_batch_per_worker, config.data)
        if what not in tried:
            tried.append(what)
            check_model(config, _SOME_CLASSES)


def configure(arm: Arm, seed: int, epochs: int, out: Path) -> Config:
    """The configuration of one run, whose name has arm, epochs and seed in it."""
    settings = {
        "train.seed": seed,
        "train.epochs": epochs,
        "run.storage": str(out / "runs"),
        "run.name": f"{arm.name}-{epochs}-{seed}",
        "run.overwrite": False,
    }
    return arm.config.override(settings)
