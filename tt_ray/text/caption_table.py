"""Caption tables: one caption per image id, read from Parquet, CSV, TSV, JSONL and the official sharded CSV."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tt_ray.data.sources.id_tables import ID_NAMES, SUFFIXES, IdTable, id_text, is_utf8
from tt_ray.data.sources.metadata import METADATA_NAMES
from tt_ray.io.files import new_file
from tt_ray.terminal.errors import UserError

_CAPTION_NAMES = ("caption", "text")
_SHARD = re.compile(r"(?P<name>.+)_(?P<i>\d+)_of_(?P<n>\d+)\.csv")
_COLON, _TAB = ":\t", "\t"
_FILE = re.compile(r"[^\t]*[^\t:]\.\w{2,5}")
# A bad first line must not hide a file's format, so that many lines are looked at for `<name>:\t<caption>`.
_SNIFF_LINES = 20
_MADE_OF = "tt_ray made of"

Row = tuple[str, str, str]
"""Image id, caption, source."""
Rows = Iterator[tuple[int, Row | str]]
"""Line number, counted from 1, with its row or with what is wrong with it."""


@dataclass(frozen=True)
class CaptionTable:
    """One caption per image, unless several were asked for; none is empty."""

    ids: pa.StringArray
    """Image ids, length N."""
    captions: pa.StringArray
    """Captions, length N."""
    source: pa.StringArray
    """Who or what wrote the caption (a captioner, a person), empty where the file does not say, length N."""
    problems: tuple[str, ...] = ()
    """What was left out, and why: one `file:line: what` per row."""

    def __len__(self) -> int:
        return len(self.ids)


def read_captions(path: str | Path, strict: bool = False, several: bool = False) -> CaptionTable:
    """Reads a caption table.

    Malformed rows, empty captions and further captions of the same image are left out and listed in `problems`; a
    repeated equal caption is no problem.

    Args:
        path: A Parquet, CSV, TSV or JSONL file with image_id (or file_name), caption (or text) and optionally source;
            an official CSV of `<image file name>:\\t<caption>` lines, with or without the colon; or a folder of such
            shards, named `<dataset>_<model>_<i>_of_<n>.csv`, or with a metadata.jsonl, .csv or .parquet.
        strict: Refuse the table if there is any problem.
        several: Keep further captions of an image as rows of their own, with the id repeated.

    Raises:
        UserError: There is no such file, no known format, a missing shard, no caption, or, if `strict`, a problem.
    """
    path = Path(path).expanduser()
    table, problems = _Captions(several), list[str]()
    for file in _files(path):
        for line, row in _rows(file):
            if problem := row if isinstance(row, str) else table.add(*row):
                problems.append(f"{file}:{line}: {problem}")
    if problems and (strict or not table.ids):
        raise UserError(f"{path} has {len(problems)} malformed rows, the first at {problems[0]}")
    if not table.ids:
        raise UserError(f"{path} holds no captions")
    columns = (pa.array(column, pa.string()) for column in (table.ids, table.captions, table.sources))
    return CaptionTable(*columns, problems=tuple(problems))


def find_captions(path: str | Path, ids: Sequence[str]) -> dict[str, str]:
    """The captions of a few images that `read_captions` would keep, without holding the table.

    Raises:
        UserError: As `read_captions`, where there is no such file or no known format.
    """
    wanted, found = set(ids), dict[str, str]()
    for file in _files(Path(path).expanduser()):
        for _, row in _rows(file):
            if isinstance(row, tuple) and row[0] in wanted and (caption := row[1].strip()):
                found[row[0]] = caption
                wanted.remove(row[0])
                if not wanted:
                    return found
    return found


class _Captions:
    """The rows that a table keeps."""

    def __init__(self, several: bool) -> None:
        self.ids: list[str] = []
        self.captions: list[str] = []
        self.sources: list[str] = []
        self._several = several
        self._first: dict[str, str] = {}
        """The first caption of each image."""
        self._further: set[tuple[str, str]] = set()
        """Images and captions after their first; few, so that a set of all would only cost memory."""

    def add(self, image: str, caption: str, source: str) -> str:
        """Keeps a row, unless it repeats another one; returns what is wrong with it, empty if nothing is."""
        caption = caption.strip()
        if not image or not caption:
            return f"no caption for {image}" if image else "no image id"
        first = self._first.get(image)
        if first == caption or (image, caption) in self._further:
            return ""
        if first is None:
            self._first[image] = caption
        elif self._several:
            self._further.add((image, caption))
        else:
            return f"a second, different caption for {image}"
        self.ids.append(image)
        self.captions.append(caption)
        self.sources.append(source)
        return ""


def write_captions(table: CaptionTable, path: str | Path, made_of: dict[str, Any] | None = None) -> None:
    """Writes Parquet with image_id, caption and source; the file appears complete or not at all.

    Args:
        table: The captions.
        path: The file.
        made_of: In JSON's types, a note in the file that `made_of` returns.
    """
    columns = {"image_id": table.ids, "caption": table.captions, "source": table.source}
    about = {_MADE_OF: json.dumps(made_of)} if made_of else None
    with new_file(Path(path)) as partial:
        pq.write_table(pa.table(columns, metadata=about), partial)


def made_of(path: Path) -> dict[str, Any] | None:
    """Reads the note that `write_captions` has put into a file; None without one, or if the file is no such table."""
    try:
        about = (pq.read_schema(path).metadata or {}).get(_MADE_OF.encode())
        return None if about is None else json.loads(about)
    except (OSError, ValueError, pa.ArrowException):
        return None


def _check_index(path: Path) -> None:
    """Raises UserError where a table is an index of shards in which an id stands for images of two splits.

    Their captions differ, and the first one may be that of the validation image.
    """
    if path.suffix.lower() not in (".parquet", ".pq"):
        return
    try:
        if not {"image_id", "caption", "shard", "offset"} <= set(pq.read_schema(path).names):
            return
        table = pq.read_table(path, columns=["image_id", "caption"])
    except (OSError, pa.ArrowException):
        return  # which reading the table reports
    pairs = table.filter(table["caption"].is_valid()).group_by(["image_id", "caption"]).aggregate([])
    counts = pairs.group_by("image_id").aggregate([([], "count_all")])
    several = counts.filter(pa.array(counts["count_all"].to_numpy() > 1))
    if len(several):
        raise UserError(
            f"{path} has {len(several)} images that have another caption in another split, such as "
            f"{several['image_id'][0]}: write an index of the training split's shards alone, `python -m tt_ray.pack "
            f"--data.root '{path.parent}/train-*.tar' --index-only --out DIR`, and pass DIR/index.parquet"
        )


def _files(path: Path) -> list[Path]:
    """The files of a table, in reading order; raises UserError, also when a shard is missing."""
    if path.is_file():
        _check_index(path)
        return [path]
    if not path.is_dir():
        raise UserError(f"no caption table {path}")
    shards: dict[tuple[str, int], dict[int, Path]] = {}
    for file in path.iterdir():
        if match := _SHARD.fullmatch(file.name):
            shards.setdefault((match["name"], int(match["n"])), {})[int(match["i"])] = file
    metadata = [path / name for name in METADATA_NAMES if (path / name).is_file()]
    if not shards and len(metadata) == 1:
        return metadata
    if not shards and metadata:
        raise UserError(f"{path} has {' and '.join(file.name for file in metadata)}: name one of them")
    if not shards:
        raise UserError(
            f"{path} has neither caption shards <name>_<i>_of_<n>.csv nor a metadata.jsonl, .csv or .parquet"
        )
    if len(shards) > 1:
        names = ", ".join(f"{name} (of {n})" for name, n in sorted(shards))
        raise UserError(f"{path} has shards of several caption tables, put each into its own folder: {names}")
    (name, total), files = next(iter(shards.items()))
    start = 0 if 0 in files else 1  # both ways of counting are in use
    missing = [str(i) for i in range(start, start + total) if i not in files]
    if missing or len(files) != total:
        raise UserError(f"{path} has {len(files)} of {total} shards of {name}: missing {', '.join(missing[:10])}")
    return [files[i] for i in sorted(files)]


def _rows(file: Path) -> Rows:
    """The file's rows in order; raises UserError when it cannot be read or its format is not known."""
    if file.suffix.lower() not in SUFFIXES:
        raise UserError(f"{file} is no caption table: known are .parquet, .csv, .tsv and .jsonl")
    table = IdTable(file)
    image, caption = (_first(names, table.columns) for names in (ID_NAMES, _CAPTION_NAMES))
    if table.has_header and not (image and caption):
        if file.suffix.lower() in (".csv", ".tsv"):
            return _official_rows(file)
        there = ", ".join(table.columns) or "none"
        raise UserError(f"{file} needs columns image_id and caption, but has {there}")
    rows = table.rows({*ID_NAMES, *_CAPTION_NAMES, "source"}.__contains__)
    if table.has_header:
        return ((line, row if isinstance(row, str) else _row(row, image, caption)) for line, row in rows)
    return ((line, row if isinstance(row, str) else _json_row(row)) for line, row in rows)


def _first(names: Sequence[str], there: Iterable[str]) -> str:
    """The first of `names` that is there; empty where none is."""
    return next((name for name in names if name in there), "")


def _json_row(row: dict[str, Any]) -> Row | str:
    """As `_row`; each row has columns of its own."""
    image, caption = (_first(names, row) for names in (ID_NAMES, _CAPTION_NAMES))
    return _row(row, image, caption) if image and caption else "needs image_id (or file_name) and caption (or text)"


def _row(row: dict[str, Any], id_column: str, column: str) -> Row | str:
    """Image id, caption and source of a row, or what is wrong with it."""
    image, caption, source = row[id_column], row[column], row.get("source")
    name = "" if image is None else id_text(image)
    if name is None:
        return f"{id_column} is {image!r:.40}, not a text or an integer"
    if not isinstance(caption, str | None):
        return f"{column} is {caption!r:.40}, not a text"
    return name, caption or "", source if isinstance(source, str) else ""


def _official_rows(file: Path) -> Rows:
    """`<image file name>:\\t<caption>` lines, or the same without the colon, no header.

    The form is that of most of the first lines. Without the colon any two columns would look so: names then need the
    suffix of a file. The source is the shard's <dataset>_<model>.
    """
    match = _SHARD.fullmatch(file.name)
    source = match["name"] if match else ""
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        head = [text.readline() for _ in range(_SNIFF_LINES)]
        counts = {mark: sum(bool(_names_image(line, mark)) for line in head) for mark in (_COLON, _TAB)}
        mark = max(counts, key=lambda mark: counts[mark])
        if not counts[mark]:
            kinds = "neither a header with image_id and caption nor lines of <image file>:<tab><caption>"
            raise UserError(f"{file} has {kinds}")
        text.seek(0)
        for number, line in enumerate(text, 1):
            line = line.rstrip("\r\n")
            if not is_utf8(line):
                yield number, "not UTF-8"
            elif _names_image(line, mark):
                image, _, caption = line.partition(mark)
                yield number, (image, caption, source)
            elif line.strip():
                yield number, f"not <image file name>{mark.replace(_TAB, '<tab>')}<caption>"


def _names_image(line: str, mark: str) -> bool:
    """Whether a line has the form of an official one with this mark after the image's name."""
    image, found, _ = line.partition(_TAB)
    return bool(found) and (image.endswith(":") if mark == _COLON else bool(_FILE.fullmatch(image)))
