"""Class numbers: from labels as users write them to 0..C-1, the same in both splits."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tt_ray.data.source import Source
from tt_ray.errors import UserError, nearest, shown

Labels = npt.NDArray[np.int64]
_MAX_CLASSES = 1_000_000
"""Integer labels above this are taken for ids, not for class numbers: each number gets a row of the classifier."""


def number_classes(values: Sequence[int | str], names: Mapping[int, str], where: str) -> tuple[Labels, tuple[str, ...]]:
    """Class numbers (N,) and class names.

    Integers are class numbers already, with `names` where given and the number itself as name elsewhere; texts are
    numbered in sorted order. Raises UserError, starting with `where`, on other or mixed values and on numbers that
    cannot be class numbers.
    """
    kinds = {type(value) for value in values}
    if kinds == {str}:
        classes = sorted({str(value) for value in values})
        number = {name: i for i, name in enumerate(classes)}
        return np.fromiter((number[str(value)] for value in values), np.int64, len(values)), tuple(classes)
    if kinds != {int}:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(f"{where}: labels must be all integers or all text, but are {found}; see --data.label_column")
    low, high = min(map(int, values)), max(map(int, values))
    if low < 0 or high >= _MAX_CLASSES:
        raise UserError(
            f"{where}: label {low if low < 0 else high} is not a class number from 0 to {_MAX_CLASSES - 1:,}; "
            "leave out unlabelled images, or give labels as text"
        )
    classes = [names.get(number, str(number)) for number in range(high + 1)]
    return np.array(values, np.int64), tuple(classes)


def common_classes(train: Source, val: Source, where: str, declared: bool, split: str = "validation") -> Source:
    """Validation, or what `split` calls it, with training's class numbers; classes are matched by name.

    `declared` says that the source lists its classes, so that one may have no training image. Raises UserError,
    starting with `where`, when validation has a class that training lacks.
    """
    number = {name: i for i, name in enumerate(train.classes)}
    if train.classes != val.classes and len(number) < len(train.classes):
        twice = next(name for i, name in enumerate(train.classes) if number[name] != i)
        raise UserError(f"{where}: two classes are called {twice!r}, so the splits' classes cannot be matched by name")
    if train.classes == val.classes:
        to_train = np.arange(len(val.classes))
    else:
        to_train = np.array([number.get(name, -1) for name in val.classes])
    trained = (np.bincount(train.labels, minlength=len(train.classes)) > 0) | declared
    counts = np.bincount(val.labels, minlength=len(val.classes))
    lacking = np.flatnonzero((counts > 0) & ((to_train < 0) | ~trained[to_train]))
    if len(lacking):
        found = some([f"{val.classes[i]!r} ({counts[i]} images)" for i in lacking])
        raise UserError(f"{where}: {len(lacking)} of {split}'s classes are not in training: {found}; check the splits")
    return dataclasses.replace(val, labels=to_train[val.labels], classes=train.classes)


def absent(kind: str, name: str, names: Iterable[str], where: str, options: str) -> UserError:
    """The error about a column, folder or split `name` that is not among `names`; `options` can change it."""
    known = sorted(names)
    close = nearest(name, known)
    hint = f", {close}" if close.startswith("did") else "."
    return UserError(f"{where} has no {kind} {name!r}{hint} There are: {some(known, 20) or 'none'}; set {options}")


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first few names in one line."""
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shown(name) for name in names[:limit]) + more
