"""The record of a run's data, kept in its folder: resuming on other data is reported, or refused.

`data.parquet` is what `record_data` returns. Resuming compares digests alone; rows are read to say what has changed.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from tt_ray.config import Config
from tt_ray.data.prepare import Data, find_store, join, open_images
from tt_ray.data.sources.base import Source
from tt_ray.embeddings.store import open_store
from tt_ray.io.files import new_file, sha256
from tt_ray.io.resumable import digest_of
from tt_ray.io.storage import Storage
from tt_ray.terminal.errors import UserError, one_line, reason

# pyarrow makes these functions when it is imported: type checkers do not know them.
pc: Any = pyarrow.compute
FILE = "data.parquet"
_DIGEST, _CLASSES, _TEXT, _TEACHER, _NOTES = b"digest", b"classes", b"text", b"teacher", b"notes"
_SPLITS = ("training", "validation")


def record_data(config: Config, data: Data) -> pa.Table:
    """The record of a run's data: rows (split, image_id, label) of both splits, the rest as metadata of the schema.

    Labels are those after data.label_noise, null where an image has none. Text targets are identified by the checksums
    of their store; a vision teacher in a folder by the checksum of its weights.
    """
    tables = [_images(split, name) for split, name in zip((data.train, data.val), _SPLITS, strict=True)]
    text = [each for each in (data.targets, data.class_texts and data.class_texts.targets) if each is not None]
    about = {
        _CLASSES: json.dumps(data.train.classes).encode(),
        _TEXT: b"".join(json.dumps(targets.store.manifest["files"]).encode() for targets in text),
        _TEACHER: _teacher(config).encode(),
    }
    digest = hashlib.sha256(repr((sorted(about.items()), digest_of(data.train.ids, data.val.ids))).encode())
    for split in (data.train, data.val):
        digest.update(split.labels.tobytes())
    return pa.concat_tables(tables).replace_schema_metadata({_DIGEST: digest.hexdigest().encode(), **about})


def open_record(config: Config) -> pa.Table:
    """The record of what a run of this configuration would train on now."""
    train, val, notes = open_images(config)
    store = find_store(config, train)
    return record_data(config, join(config, train, val, None if store is None else open_store(store), notes))


def check_data(folder: Path, record: pa.Table, accept: bool) -> list[str]:
    """Returns notes on changes of the data that a run in `folder` accepts now or has accepted before.

    Nothing is compared with a run that keeps no record: one that has yet to start, or of an older version.

    Raises:
        UserError: The data differ from those in the folder, and `accept` is false.
    """
    path = folder / FILE
    if not path.exists():
        return []
    try:
        before = pq.read_schema(path).metadata
        notes: list[str] = json.loads(before.get(_NOTES, b"[]"))
        if before[_DIGEST] == record.schema.metadata[_DIGEST]:
            return notes
        changed = ", ".join(_changes(pq.read_table(path), record))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        changed = f"{path} cannot be read ({one_line(error)})"
        notes = []
    if not accept:
        raise UserError(
            f"{folder} was begun on other data: {changed}. Restore the data, write to another folder, or continue with "
            "--run.accept_changed_data True"
        )
    return [*notes, f"the data changed between interruptions (run.accept_changed_data): {changed}"]


def keep_data(folder: Path, record: pa.Table, notes: list[str], storage: Storage | None = None) -> None:
    """Writes the record and the notes of `check_data`, unless the folder has it. Raises UserError on a full disk."""
    path = folder / FILE
    metadata = {**record.schema.metadata, _NOTES: json.dumps(notes).encode()}
    try:
        if path.exists() and pq.read_schema(path).metadata == metadata:
            return
    except (OSError, pa.ArrowException):
        pass  # damaged, and accepted as it is now
    try:
        with new_file(path) as partial:
            pq.write_table(record.replace_schema_metadata(metadata), partial, compression="zstd")
        if storage is not None:
            storage.push(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}: choose another --run.storage") from None


def same_images(first: Path, second: Path) -> bool:
    """Whether two run folders keep a record of the same images with the same labels, in both splits."""
    one, other = (pq.read_table(folder / FILE) for folder in (first, second))
    return one.equals(other)


def _images(split: Source, name: str) -> pa.Table:
    names = pa.array(split.classes, pa.string())
    labels = pa.DictionaryArray.from_arrays(pa.array(split.labels, pa.int32(), mask=split.labels < 0), names)
    return pa.table(
        {
            "split": pa.array([name]).take(pa.array(np.zeros(len(split), np.int8))),
            "image_id": split.ids,
            "label": labels.cast(pa.string()),
        }
    )


def _teacher(config: Config) -> str:
    """Checksum of a local teacher's weights; its name where the weights are a hub's."""
    model = config.teacher.model if config.teaches else ""
    folder = Path(model).expanduser()
    folders = (folder / "export", folder)
    weights = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))] if model else []
    return sha256(weights[0]) if weights else model


def _changes(before: pa.Table, now: pa.Table) -> list[str]:
    """The differences, in words; at least one."""
    found: list[str] = []
    for split in _SPLITS:
        old, new = (table.filter(pc.equal(table["split"], split)).combine_chunks() for table in (before, now))
        found += _image_changes(old, new, split)
    was, classes = (json.loads(table.schema.metadata[_CLASSES]) for table in (before, now))
    if was != classes:
        found.append(_class_changes(was, classes))
    for key, what in ((_TEXT, "captions or embedding store differ"), (_TEACHER, "the teacher's weights differ")):
        if before.schema.metadata[key] != now.schema.metadata[key]:
            found.append(what)
    return found or ["it differs"]


def _image_changes(old: pa.Table, new: pa.Table, split: str) -> Iterator[str]:
    if old["image_id"].equals(new["image_id"]) and old["label"].equals(new["label"]):
        return
    place = pc.index_in(new["image_id"], value_set=old["image_id"].combine_chunks())
    added = place.null_count
    gone = len(old) - (len(new) - added)
    both = pc.is_valid(place)
    labels = new["label"].filter(both), old["label"].take(place.drop_null())
    differ = pc.sum(pc.not_equal(*(pc.fill_null(each, "") for each in labels))).as_py() or 0
    counts = {f"{split} images added": added, f"{split} images gone": gone, f"{split} labels differ": differ}
    yield from (f"{count} {what}" for what, count in counts.items() if count)
    if not (added or gone or differ):
        yield f"the order of {split} images differs"


def _class_changes(was: list[str], now: list[str]) -> str:
    added, gone = [name for name in now if name not in was], [name for name in was if name not in now]
    parts = [
        f"{word} {', '.join(names[:5])}{', ...' * (len(names) > 5)}"
        for word, names in (("new:", added), ("gone:", gone))
        if names
    ]
    return f"classes differ ({'; '.join(parts) or 'their order'})"
