"""Caption tables: one caption per image id, read from Parquet, CSV, TSV, JSONL and the official sharded CSV."""

import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tt_ray.io.csv_rows import csv_rows
from tt_ray.terminal.errors import UserError

_ID_NAMES = ("image_id", "file_name")
_CAPTION_NAMES = ("caption", "text")
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""What Hugging Face's imagefolder calls tables of images, next to them."""
_SHARD = re.compile(r"(?P<name>.+)_(?P<i>\d+)_of_(?P<n>\d+)\.csv")
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
    """What wrote the caption (a captioner, a person), empty where the file does not tell, length N."""
    problems: tuple[str, ...] = ()
    """What was left out, and why: one `file:line: what` per row."""

    def __len__(self) -> int:
        return len(self.ids)


def read_captions(path: str | Path, strict: bool = False, several: bool = False) -> CaptionTable:
    """Reads a caption table.

    `path` is a Parquet, CSV, TSV or JSONL file with image_id (or file_name), caption (or text) and optionally source;
    an official CSV of `<image file name>:\\t<caption>` lines; or a folder of such shards, named
    `<dataset>_<model>_<i>_of_<n>.csv`, or with a metadata.jsonl, .csv or .parquet. Malformed rows,
    empty captions and further captions of the same image are left out and listed in `problems`; a repeated equal
    caption is no problem. With `several`, further captions are kept as rows of their own, with the id repeated.

    Raises UserError when there is no such file, no known format, a missing shard, no caption at all, or, with
    `strict`, any problem.
    """
    path = Path(path).expanduser()
    ids: list[str] = []
    captions: list[str] = []
    sources: list[str] = []
    problems: list[str] = []
    first: dict[str, int] = {}
    further: set[tuple[str, str]] = set()
    for file in _files(path):
        for line, row in _rows(file):
            problem = row if isinstance(row, str) else _problem(row)
            if isinstance(row, tuple) and not problem:
                image, caption, source = row[0], row[1].strip(), row[2]
                known = first.setdefault(image, len(ids))
                again = known < len(ids)
                if again and (captions[known] == caption or (image, caption) in further):
                    continue
                if again and not several:
                    problem = f"a second, different caption for {image}"
                else:
                    ids.append(image)
                    captions.append(caption)
                    sources.append(source)
                if again and several:
                    further.add((image, caption))
            if problem:
                problems.append(f"{file}:{line}: {problem}")
    if problems and (strict or not ids):
        raise UserError(f"{path} has {len(problems)} malformed rows, the first at {problems[0]}")
    if not ids:
        raise UserError(f"{path} holds no captions")
    arrays = (pa.array(column, pa.string()) for column in (ids, captions, sources))
    return CaptionTable(*arrays, problems=tuple(problems))


def write_captions(table: CaptionTable, path: str | Path, made_of: dict[str, Any] | None = None) -> None:
    """Writes Parquet (image_id, caption, source): to a temporary name, then renamed, so no reader sees half a file.

    `made_of`, in JSON's types, is what `made_of` gives back.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    columns = {"image_id": table.ids, "caption": table.captions, "source": table.source}
    about = {_MADE_OF: json.dumps(made_of)} if made_of else None
    try:
        pq.write_table(pa.table(columns, metadata=about), temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def made_of(path: Path) -> dict[str, Any] | None:
    """What `write_captions` was told of a table; None where it was not, or the file is no such table."""
    try:
        about = (pq.read_schema(path).metadata or {}).get(_MADE_OF.encode())
        return None if about is None else json.loads(about)
    except (OSError, ValueError, pa.ArrowException):
        return None


def _problem(row: Row) -> str:
    """What is wrong with the row's values; empty if nothing is."""
    if not row[0]:
        return "no image id"
    if not row[1].strip():
        return f"no caption for {row[0]}"
    text = "".join(row)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # files are read with surrogateescape, so one bad byte costs one row only
            return "not UTF-8"
    return ""


def _files(path: Path) -> list[Path]:
    """The files behind `path`, in reading order; raises UserError, also when a shard is missing."""
    if path.is_file():
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
        raise UserError(f"{path} has {' and '.join(file.name for file in metadata)}: give one of them")
    if not shards:
        raise UserError(
            f"{path} has neither caption shards <name>_<i>_of_<n>.csv nor a metadata.jsonl, .csv or .parquet"
        )
    if len(shards) > 1:
        names = ", ".join(f"{name} (of {n})" for name, n in sorted(shards))
        raise UserError(f"{path} has shards of several caption tables, give each its own folder: {names}")
    (name, total), files = next(iter(shards.items()))
    start = 0 if 0 in files else 1  # both ways of counting are in use
    missing = [str(i) for i in range(start, start + total) if i not in files]
    if missing or len(files) != total:
        raise UserError(f"{path} has {len(files)} of {total} shards of {name}: missing {', '.join(missing[:10])}")
    return [files[i] for i in sorted(files)]


def _rows(file: Path) -> Rows:
    """The file's rows in order; raises UserError when it cannot be read or its format is not known."""
    suffix = file.suffix.lower()
    try:
        if suffix in (".parquet", ".pq"):
            yield from _parquet_rows(file)
            return
        reader = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _json_rows, ".ndjson": _json_rows}.get(suffix)
        if reader is None:
            raise UserError(f"{file} is no caption table: known are .parquet, .csv, .tsv and .jsonl")
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            yield from reader(file, text)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {file}: {' '.join(str(error).split())}") from None


def _parquet_rows(file: Path) -> Rows:
    parquet = pq.ParquetFile(file)
    names = parquet.schema_arrow.names
    wanted = _columns(names, file)
    line = 0
    for batch in parquet.iter_batches(columns=[name for name in wanted if name]):
        # Whole columns are cast at once: row by row it would take minutes at ImageNet's size.
        if pa.types.is_floating(batch.column(wanted[0]).type):
            raise UserError(f"{file}: column {wanted[0]} holds decimals: image ids are texts or integers")
        columns = [_texts(batch.column(name)) if name else None for name in wanted]
        ids, captions, sources = columns
        assert ids is not None and captions is not None  # _columns refuses a table without them
        for row, (image, caption) in enumerate(zip(ids, captions, strict=True)):
            line += 1
            yield line, (image or "", caption or "", (sources[row] or "") if sources else "")


def _texts(column: pa.Array) -> list[str | None]:
    """A column's texts; bytes that are not UTF-8 become surrogates, so that they cost one row only."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        return pc.cast(column, pa.string()).to_pylist()
    except (UnicodeDecodeError, pa.ArrowInvalid):
        values = pc.cast(column, pa.large_binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "surrogateescape") for value in values]


def _columns(names: list[str], file: Path) -> tuple[str, str, str]:
    """The names of the columns of id, caption and source ("" for none)."""
    image = next((name for name in _ID_NAMES if name in names), None)
    caption = next((name for name in _CAPTION_NAMES if name in names), None)
    if image is None or caption is None:
        raise UserError(f"{file} needs columns image_id and caption, but has {', '.join(names) or 'none'}")
    return image, caption, "source" if "source" in names else ""


def _csv_rows(file: Path, text: TextIO) -> Rows:
    head = [text.readline() for _ in range(_SNIFF_LINES)]
    text.seek(0)
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    names = [name.strip() for name in next(csv.reader(head[:1], delimiter=delimiter), [])]
    if set(names) & set(_ID_NAMES) and set(names) & set(_CAPTION_NAMES):
        return _table_rows(text, delimiter, [names.index(name) if name else -1 for name in _columns(names, file)])
    if any(":\t" in line for line in head):
        return _official_rows(file, text)
    raise UserError(f"{file} has neither a header with image_id and caption nor lines of <image file>:<tab><caption>")


def _table_rows(text: TextIO, delimiter: str, columns: list[int]) -> Rows:
    """Rows of a CSV with a header."""
    image, caption, source = columns
    for number, row in csv_rows(text, delimiter, image):
        if isinstance(row, list):
            yield number, (row[image], row[caption], row[source] if source >= 0 else "")
        else:
            yield number, row


def _official_rows(file: Path, text: TextIO) -> Rows:
    """`<image file name>:\\t<caption>` lines, no header; the source is the shard's <dataset>_<model>."""
    match = _SHARD.fullmatch(file.name)
    source = match["name"] if match else ""
    for number, line in enumerate(text, 1):
        line = line.rstrip("\r\n")
        image, separator, caption = line.partition(":\t")
        if separator:
            yield number, (image, caption, source)
        elif line.strip():
            yield number, "not <image file name>:<tab><caption>"


def _json_rows(file: Path, text: TextIO) -> Rows:
    for number, line in enumerate(text, 1):
        if line.strip():
            yield number, _json_row(line)


def _json_row(line: str) -> Row | str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at column {error.colno}"
    except (RecursionError, ValueError) as error:  # nested too deeply; numbers of thousands of digits
        return f"not JSON that can be read: {error}"
    if not isinstance(record, dict):
        return "not a JSON object"
    image, caption = (next((record[n] for n in names if n in record), None) for names in (_ID_NAMES, _CAPTION_NAMES))
    source = record.get("source")
    if type(image) is int:  # decimals are no ids: 1.0 and 1 would be two images
        image = str(image)
    if not isinstance(image, str) or not isinstance(caption, str):
        return "needs image_id (or file_name), a text or an integer, and caption (or text), a text"
    return image, caption, source if isinstance(source, str) else ""
