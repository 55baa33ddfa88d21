"""Class numbers: from labels as users write them to 0..C-1, the same in both splits. A label is its name."""

import dataclasses
import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from tt_ray.data.sources.base import NOBODY, Source
from tt_ray.terminal.errors import UserError, some

# pyarrow makes these functions when it is imported: type checkers do not know them.
pc: Any = pyarrow.compute
Labels = npt.NDArray[np.int64]
_MAX_CLASSES = 1_000_000
"""Integer labels above this are taken for ids, not for class numbers: each number gets a row of the classifier."""


@dataclasses.dataclass(frozen=True)
class LabelPlace:
    """Where labels come from, for errors about them."""

    where: str
    """The file, folder or data set."""
    column: str
    row: Callable[[int], str]
    """What a row is called: its file and line, or its image."""

    def refuse_missing(self, missing: npt.NDArray[np.bool_], hint: str = "") -> None:
        """Raises UserError naming the first rows that `missing` (N,) marks, if there are any."""
        if missing.any():
            rows = np.flatnonzero(missing)
            named = ", ".join(self.row(int(row)) for row in rows[:5]) + f", and {len(rows) - 5} more" * (len(rows) > 5)
            raise UserError(
                f"{self.where}: {len(rows)} images have no {self.column}{hint}: {named}; add it, or leave them out"
            )


class ClassNames:
    """Class names, numbered in the order in which they were added.

    Surrounding whitespace is not part of a name, and texts that Unicode calls equivalent (an umlaut as one or as two
    code points) are one name. Names that differ in nothing but surrounding whitespace or leading zeros may be a
    mistake, so two of them are refused.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._numbers: dict[str, int] = {}
        self._written: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order of their numbers."""
        return tuple(self._numbers)

    def add(self, text: str) -> int:
        """The number of a name, which is added where it is new; -1 where it is blank.

        Raises UserError when it differs from another name in surrounding whitespace or leading zeros alone.
        """
        written = unicodedata.normalize("NFC", text)
        name = written.strip()
        if not name:
            return NOBODY
        key = (name.lstrip("0") or "0") if name.isascii() and name.isdecimal() else name
        other = self._written.setdefault(key, written)
        if other != written:
            raise UserError(
                f"{self._where}: labels {other!r} and {written!r} differ in spaces around them or leading zeros alone: "
                "write the class one way, or give the classes names that differ"
            )
        return self._numbers.setdefault(name, len(self._numbers))


def label_array(values: Sequence[Any], place: LabelPlace) -> pa.Array:
    """Labels from JSON or CSV as integers or texts; raises UserError when they are neither, or both."""
    kinds = {type(value) for value in values} - {type(None)}
    if len(kinds) > 1 or kinds - {int, str}:
        first = type(next(value for value in values if value is not None))
        odd = first if first not in (int, str) else next(iter(kinds - {first}))
        row = next(row for row, value in enumerate(values) if type(value) is odd)
        raise _wrong_kind(place, ", ".join(sorted(kind.__name__ for kind in kinds)), row, values[row])
    try:
        return pa.array(values, pa.int64() if kinds == {int} else pa.string())
    except OverflowError:
        row = next(row for row, value in enumerate(values) if value is not None and abs(value) >= _MAX_CLASSES)
        raise _no_number(place, row, values[row]) from None


def number_classes(
    values: pa.Array | pa.ChunkedArray, place: LabelPlace, called: pa.Array | pa.ChunkedArray | None = None
) -> tuple[Labels, tuple[str, ...]]:
    """Class numbers (N,) and class names of labels (N,).

    Integers are class numbers already, with the names that `called` (N,) says, and the number itself as name where it
    says none; texts are numbered in sorted order. Raises UserError on missing labels (null or blank), on values that
    are neither integers nor texts, on numbers that cannot be class numbers, and where a number has two names or a name
    two numbers.
    """
    if pa.types.is_dictionary(values.type):
        values = pc.cast(values, values.type.value_type)
    if not len(values):
        return np.zeros(0, np.int64), ()
    if not _is_text(values.type):
        place.refuse_missing(np.asarray(values.is_null()))
    if pa.types.is_integer(values.type):
        numbers = _checked_numbers(values, place)
        return numbers, _names_of_numbers(numbers, called, place)
    if not _is_text(values.type):
        raise _wrong_kind(place, str(values.type), 0, values[0].as_py())
    numbers, names = _encode(values, place)
    place.refuse_missing(numbers == NOBODY)
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank[numbers], tuple(names[number] for number in order)


def match_numbers(
    values: pa.Array | pa.ChunkedArray, lists: Sequence[Sequence[str]], which: npt.NDArray[np.int64], place: LabelPlace
) -> tuple[Labels, tuple[str, ...]]:
    """Class numbers (N,) and class names of integer labels (N,), each a place in one of several `lists` of names.

    `which` (N,) says in which; the classes are all names, those of the first list first. Null and -1, which is Hugging
    Face's "no label", and numbers whose name is blank are missing. Raises UserError on these and on numbers that have
    no name.
    """
    classes = ClassNames(place.where)
    known = [np.array([classes.add(name) for name in names], np.int64) for names in lists]
    # Unsafe: what is beyond 64 bits becomes negative, and is refused below.
    numbers = np.asarray(pc.fill_null(pc.cast(values, pa.int64(), safe=False), NOBODY))
    labels = np.full(len(numbers), NOBODY, np.int64)
    for number, to_class in enumerate(known):
        own = np.flatnonzero(which == number) if len(known) > 1 else slice(None)
        drawn = numbers[own]
        outside = np.flatnonzero((drawn < NOBODY) | (drawn >= len(to_class)))
        if len(outside):
            row = int(np.arange(len(numbers))[own][outside[0]])
            raise UserError(
                f"{place.row(row)}: {place.column} is {numbers[row]}, but it names {len(to_class)} classes, "
                f"0 to {len(to_class) - 1} ({len(outside)} such rows): correct the labels or the names"
            )
        labels[own] = np.append(to_class, NOBODY)[drawn]  # -1 is the last place
    place.refuse_missing(labels == NOBODY, " (null, -1 or a blank name)")
    return labels, classes.names


def declared_names(path: str | Path, schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """The class names that a file of Hugging Face `datasets` declares for a column; None where it declares none."""
    about = (schema.metadata or {}).get(b"huggingface")
    try:
        features = (json.loads(about or b"{}").get("info") or {}).get("features") or {}
        feature = features.get(column) or {}
        if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
            return None
        return tuple(str(name) for name in feature["names"])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: its features, written by `datasets`, cannot be read: write the file again") from None


def text_labels(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Labels as texts, as class names are compared: surrounding whitespace gone, null where nothing is left."""
    values = pc.utf8_normalize(pc.utf8_trim_whitespace(pc.cast(values, pa.string())), form="NFC")
    return pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _encode(values: pa.Array | pa.ChunkedArray, place: LabelPlace) -> tuple[Labels, tuple[str, ...]]:
    """Numbers (N,) of texts in the order in which they occur, -1 for null and blank ones, and the names."""
    chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
    encoded: Any = pa.chunked_array(chunks, values.type).cast(pa.large_string()).combine_chunks().dictionary_encode()
    classes = ClassNames(place.where)
    # Names are compared once for each class, not once for each image.
    numbers = np.array([classes.add(name) for name in encoded.dictionary.to_pylist()] + [NOBODY], np.int64)
    return numbers[np.asarray(encoded.indices.fill_null(NOBODY))], classes.names


def _checked_numbers(values: pa.Array | pa.ChunkedArray, place: LabelPlace) -> Labels:
    bounds = pc.min_max(values).as_py()
    if bounds["min"] < 0 or bounds["max"] >= _MAX_CLASSES:
        wrong = bounds["min"] if bounds["min"] < 0 else bounds["max"]
        raise _no_number(place, pc.index(values, pa.scalar(wrong, values.type)).as_py(), wrong)
    return np.asarray(pc.cast(values, pa.int64()))


def _names_of_numbers(numbers: Labels, called: pa.Array | pa.ChunkedArray | None, place: LabelPlace) -> tuple[str, ...]:
    names: dict[int, str] = {}
    if called is not None:
        code, texts = _encode(pc.cast(called, pa.large_string()), place)
        rows = np.flatnonzero(code != NOBODY)
        # Each pair of number and name once: as one integer, which sorts ten times as fast as two.
        pairs, first = np.unique(numbers[rows] * len(texts) + code[rows], return_index=True)
        seen: dict[str, int] = {}
        for pair, row in zip(pairs.tolist(), rows[first].tolist(), strict=True):
            number, name = pair // len(texts), texts[pair % len(texts)]
            if number in names:
                both = f"{names[number]!r} and {name!r}"
                raise UserError(f"{place.row(row)}: label {number} is called both {both}; give it one name")
            if name in seen:
                both = f"{seen[name]} and {number}"
                raise UserError(
                    f"{place.row(row)}: labels {both} are both called {name!r}; give each a name of its own"
                )
            names[number], seen[name] = name, number
    taken = set(names.values())
    classes: list[str] = []
    used = np.bincount(numbers) > 0
    for number in range(len(used)):
        name = names.get(number, str(number))
        if number not in names and name in taken:
            if used[number]:
                raise UserError(f"{place.where}: label {number} has no name, and {name!r} is another label's: name it")
            name = f"class {number}"  # no image has it
        classes.append(name)
    return tuple(classes)


def _wrong_kind(place: LabelPlace, found: str, row: int, value: object) -> UserError:
    return UserError(
        f"{place.where}: labels must be all integers or all text, but are {found} ({place.row(row)}: {value!r:.80}); "
        "see --data.label_column"
    )


def _no_number(place: LabelPlace, row: int, value: int) -> UserError:
    return UserError(
        f"{place.row(row)}: label {str(value)[:30]} is not a class number from 0 to {_MAX_CLASSES - 1:,}; "
        "leave out unlabelled images, or write labels as text"
    )


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
