"""Names of classes whose folders have none: from a table of the user's, such as ImageNet's own."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

from tt_ray.terminal.errors import UserError, one_line, reason, some

_WORDNET = re.compile(r"n\d{8}")


def name_classes(classes: Sequence[str], path: Path | None) -> list[str]:
    """Returns the name of each class; underscores become spaces.

    Args:
        classes: The classes, as folders or files call them.
        path: A JSON object {class: name}, a CSV of lines class,name, or ImageNet's LOC_synset_mapping.txt, of whose
            synonyms (n01440764 tench, Tinca tinca) the first is taken. None takes the classes themselves.

    Raises:
        UserError: The file cannot be read or lacks a class; or there is none, and classes are WordNet ids, which no
            text encoder knows.
    """
    if path is None:
        if found := [name for name in classes if _WORDNET.fullmatch(name)]:
            raise UserError(
                f"{len(found)} classes are WordNet ids, not names: {some(found, 3)}; pass --class_names, a JSON or CSV "
                "of their names, or ImageNet's LOC_synset_mapping.txt"
            )
        return [name.replace("_", " ") for name in classes]
    names = _read(path.expanduser())
    if missing := [name for name in classes if not names.get(name, "")]:
        raise UserError(f"{path} has no name for {len(missing)} of {len(classes)} classes: {some(missing, 3)}")
    return [names[name].replace("_", " ") for name in classes]


def _read(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from None
    suffix = path.suffix.lower()
    if suffix == ".json":
        try:
            names = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not JSON: {one_line(error)}") from None
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise UserError(f'{path} is not a JSON object of texts, such as {{"n01440764": "tench"}}')
    elif suffix == ".csv":
        try:
            rows = list(csv.reader(text.splitlines(), strict=True))
        except csv.Error as error:
            raise UserError(f'{path} has a quote at the wrong place ({error}): double quotes in names ("")') from None
        names = {row[0].strip(): row[1] for row in rows if len(row) > 1}
    elif suffix == ".txt":
        names = {
            line.split()[0]: line.split(None, 1)[1].split(",")[0] for line in text.splitlines() if " " in line.strip()
        }
    else:
        raise UserError(f"{path} is no table of class names: known are .json, .csv and .txt")
    return {key: name.strip() for key, name in names.items()}
