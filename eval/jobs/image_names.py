"""Names of a task's classes and test images, kept once for all jobs that were tested on them: OUT/images/KEY.parquet.

One row an image, in the order of predictions; the names of classes are in the schema's metadata. A file is named after
its content, and never changes.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tt_ray.io.files import new_file

_CLASSES = b"classes"


class ImageNames(NamedTuple):
    """What people call the test images of a task and their classes."""

    classes: tuple[str, ...]
    """Names in the order of the classes' numbers."""
    ids: pa.StringArray
    """One for each image."""

    def key(self, task: str) -> str:
        """Name of its file: the same for the same content."""
        digest = hashlib.sha256(json.dumps([self.classes, self.ids.to_pylist()]).encode()).hexdigest()[:12]
        return f"{re.sub(r'[^A-Za-z0-9_-]', '_', task[:60])}-{digest}"


def keep_names(out: Path, task: str, names: ImageNames) -> str:
    """Writes the names, unless they are there already, and returns the key by which `read_names` finds them.

    Raises OSError when the disk is full.
    """
    key = names.key(task)
    file = _file(out, key)
    if not file.exists():
        schema = pa.schema([("id", pa.string())], {_CLASSES: json.dumps(names.classes).encode()})
        with new_file(file) as partial:
            pq.write_table(pa.Table.from_arrays([names.ids.cast(pa.string())], schema=schema), partial)
    return key


def read_names(out: Path, key: str) -> ImageNames | None:
    """The names; None where there are none of this key, or only a damaged file: a report can do without."""
    try:
        table = pq.read_table(_file(out, key))
        classes = json.loads((table.schema.metadata or {})[_CLASSES])
        return ImageNames(tuple(map(str, classes)), table["id"].combine_chunks())
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def _file(out: Path, key: str) -> Path:
    return Path(out) / "images" / f"{key}.parquet"
