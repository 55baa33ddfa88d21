"""Opens data sets with Hugging Face `datasets`, and knows which file each row comes from and what it calls classes.

`datasets` takes the features of a data set from one of its files, or from its card, and reads the numbers of all
others as if their classes had the same order.
"""

import dataclasses
import glob
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.data_files import get_data_patterns
from datasets.exceptions import DatasetsError

from tt_ray.data.sources.labels import declared_names
from tt_ray.terminal.errors import UserError, absent, one_line

_BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}
"""The builder of `datasets` for a single file."""
_ON_HUB = re.compile(r"hf://datasets/(?P<id>[^@]+)@(?P<at>[^/]+)/(?P<file>.+)")
_PARQUET, _ARROW = (".parquet", ".geoparquet", ".gpq"), ".arrow"
_TABLES = (*_PARQUET, _ARROW, ".csv", ".tsv", ".json", ".jsonl", ".ndjson")
_OPTIONS = "--data.root, --data.name, --data.train_split or --data.val_split"


@dataclasses.dataclass(frozen=True)
class TableFile:
    """One file of a split."""

    path: str
    rows: int
    schema: pa.Schema

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """The class names that the file itself declares for a column; None where it declares none."""
        return declared_names(self.path, self.schema, column)


@dataclasses.dataclass(frozen=True)
class Table:
    """One split of a data set, and the files that it comes from."""

    rows: datasets.Dataset
    files: tuple[TableFile, ...] = ()
    """Files that hold the rows; empty where that is not known."""
    numbers: npt.NDArray[np.int64] | None = None
    """Place of each row in the files, counted through all of them, (N,); None where files hold these rows, in order."""
    first: TableFile | None = None
    """The file whose features `datasets` has taken for all rows; it may be one of another split."""

    def file_of_row(self) -> npt.NDArray[np.int64]:
        """The number of each row's file, (N,)."""
        ends = np.cumsum([file.rows for file in self.files])
        numbers = np.arange(len(self.rows)) if self.numbers is None else self.numbers
        return np.searchsorted(ends, numbers, side="right")

    def row_name(self, row: int) -> str:
        """The file of a row, and its number there, counted from 0; its number in the split where no file is known."""
        if not self.files:
            return f"row {row}"
        number = row if self.numbers is None else int(self.numbers[row])
        for file in self.files:
            if number < file.rows:
                return f"{Path(file.path).name}, row {number}"
            number -= file.rows
        raise AssertionError("files hold as many rows as the split")


def load_table(root: str, name: str, split: str, called: str) -> Table:
    """A split of the data set in a local folder or file, or on the hub; `called` is what errors call its root.

    Raises UserError when there is no such data set or split, or it cannot be read.
    """
    path = Path(root).expanduser().absolute()
    if not path.exists() and (root.startswith((".", "/", "~")) or root.count("/") > 1):
        raise UserError(f"data.root {called} does not exist: check --data.root")
    if path.is_file() and path.suffix not in _BUILDERS:
        raise UserError(f"data.root {called} is neither a folder nor a .parquet or .arrow file: check --data.root")
    if path.exists() and "::" in str(path):
        raise UserError(f"data.root {called}: `datasets` cannot read paths with '::' in them: rename it")
    try:
        with _quiet():
            if _is_saved(path) or (path.is_dir() and any(map(_is_saved, path.iterdir()))):
                return _load_saved(path, split)
            builder = dataset_builder(path, root, name)
            _refuse_empty(builder)
            builder.download_and_prepare()
            return _read(builder, split, called)
    except UserError:
        raise
    # StopIteration is how `datasets` fails on JSON without rows.
    except (ValueError, OSError, StopIteration, DatasetsError, huggingface_hub.errors.HfHubHTTPError) as error:
        cause = error.__cause__ or error
        problem = one_line(cause) if str(cause) else "it has no rows"
        raise UserError(f"cannot load {called} ({split}): {problem}; check {_OPTIONS}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no warnings of `datasets` and the hub's client; what was set before comes back."""
    levels = [(log, log.get_verbosity()) for log in (datasets.logging, huggingface_hub.logging)]
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    for log, _ in levels:
        log.set_verbosity_error()
    try:
        yield
    finally:
        for log, level in levels:
            log.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def dataset_builder(path: Path, root: str, name: str = "") -> datasets.DatasetBuilder:
    """The builder of `datasets` for the data set at an absolute path, or at `root` on the hub if there is no such path.

    It takes paths for patterns, so those that look like one are escaped.
    """
    escaped = glob.escape(str(path))
    if path.is_file():
        return datasets.load_dataset_builder(_BUILDERS[path.suffix], data_files=escaped)
    if not path.exists():
        return datasets.load_dataset_builder(root, name or None)
    if escaped == str(path):
        return datasets.load_dataset_builder(str(path), name or None)
    patterns = get_data_patterns(escaped)
    files = {split: [f"{escaped}/{pattern}" for pattern in several] for split, several in patterns.items()}
    return datasets.load_dataset_builder(str(path), name or None, data_files=files)


def _refuse_empty(builder: datasets.DatasetBuilder) -> None:
    """Raises UserError on files without rows, at which `datasets` fails with the words of other libraries."""
    for path in (path for paths in _data_files(builder).values() for path in paths):
        if not path.endswith(_TABLES) or not Path(path).is_file():  # an empty image is the business of its reader
            continue
        path = Path(path)
        what = "" if path.stat().st_size else "the file is empty"
        if not what and path.suffix in _PARQUET:
            about = pq.read_metadata(path)
            if about.num_row_groups and not about.row_group(0).num_rows:
                what = "the first of its row groups has no rows: write it again" if about.num_rows else "it has no rows"
        if what:
            raise UserError(f"cannot read {path}: {what}; remove it, or check --data.root")


def _data_files(builder: datasets.DatasetBuilder) -> Mapping[str, Sequence[str]]:
    """The files of each split, in the order in which they are read."""
    files = builder.config.data_files
    return files if isinstance(files, Mapping) else {}


def _read(builder: datasets.DatasetBuilder, split: str, called: str) -> Table:
    """The rows of a split that has been prepared, with the files that they come from."""
    infos: Any = builder.info.splits
    sizes = {name: info.num_examples for name, info in infos.items()}
    parts = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    if not sum(part.to - part.from_ for part in parts):
        raise UserError(f"{called} ({split}) has no rows: check {_OPTIONS}")
    rows = builder.as_dataset(split=split)
    assert isinstance(rows, datasets.Dataset)
    listed = _data_files(builder)
    first = next((path for paths in listed.values() for path in paths), "")
    if not first.endswith((*_PARQUET, _ARROW)):
        return Table(rows)
    files: list[TableFile] = []
    numbers: list[npt.NDArray[np.int64]] = []
    start = 0
    for part in parts:
        paths, size = listed.get(part.splitname, ()), sizes[part.splitname]
        own = [read_file(path) for path in paths]
        if (found := sum(file.rows for file in own)) != size:
            raise UserError(
                f"{called} ({part.splitname}): {len(own)} files hold {found} rows, but {size} were read from them "
                "before: clear the cache of `datasets`"
            )
        numbers.append(np.arange(part.from_, part.to) + start)
        start += size
        files += own
    return Table(rows, tuple(files), np.concatenate(numbers), read_file(first))


def read_file(path: str) -> TableFile:
    """Rows and schema of a Parquet or Arrow file on this machine or, as `datasets` writes its address, of the hub."""
    source: Any = path if Path(path).is_file() else _remote(path)
    if path.endswith(_PARQUET):
        about = pq.read_metadata(source)
        return TableFile(path, about.num_rows, about.schema.to_arrow_schema())
    source = pa.memory_map(source) if isinstance(source, str) else source
    try:
        reader = pa.ipc.open_stream(source)
        return TableFile(path, sum(batch.num_rows for batch in reader), reader.schema)
    except pa.ArrowInvalid:
        file = pa.ipc.open_file(source)
        return TableFile(path, sum(file.get_batch(i).num_rows for i in range(file.num_record_batches)), file.schema)


def _remote(path: str) -> Any:
    """A copy of a file elsewhere, or, where the hub's cache has none any more, the file itself, read in parts."""
    found = _ON_HUB.fullmatch(path)
    if found is None:
        return datasets.DownloadManager().download(path)
    cached = huggingface_hub.try_to_load_from_cache(
        found["id"], found["file"], revision=found["at"], repo_type="dataset"
    )
    return cached if isinstance(cached, str) else huggingface_hub.HfFileSystem().open(path)


def _is_saved(path: Path) -> bool:
    return (path / "state.json").is_file()


def _state(path: Path) -> dict[str, Any]:
    """The state of a data set, as `save_to_disk` wrote it."""
    state = json.loads((path / "state.json").read_text())
    if not isinstance(state, dict):
        raise ValueError(f"{path}/state.json is not what save_to_disk writes")
    return state


def _load_saved(path: Path, split: str) -> Table:
    """A `save_to_disk` folder: one data set for each split, or a single one, which is called train if not named."""
    if _is_saved(path):
        names = {str(_state(path).get("_split") or "train"): path}
    else:
        names = {folder.name: folder for folder in path.iterdir() if _is_saved(folder)}
    if split not in names:
        raise absent("split", split, names, str(path), _OPTIONS)
    if not _state(names[split]).get("_data_files"):
        raise UserError(f"{names[split]} has no rows: check {_OPTIONS}")
    rows = datasets.load_from_disk(str(names[split]))
    assert isinstance(rows, datasets.Dataset)
    return Table(rows, tuple(read_file(file["filename"]) for file in rows.cache_files))
