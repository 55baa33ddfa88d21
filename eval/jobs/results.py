"""Results of finished jobs: a folder to which every job adds one Parquet file of rows and one file of predictions.

    OUT/predictions/JOB.npy   int32 (1 + draws, n): the true classes, then the predicted ones; written first
    OUT/confidence/JOB.npy    floats (draws, n): the probability of each predicted class, where the protocol has some
    OUT/rows/JOB.parquet      one row a metric; its presence means that the job has ended

Nothing is locked and nothing is rewritten, but for failed jobs, which a later success replaces: any number of processes
may write at once, and a killed one leaves at most a hidden temporary file, which readers ignore.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tt_ray.io.files import new_file
from tt_ray.terminal.errors import UserError, one_line

Status = Literal["done", "failed"]
_KEY = re.compile(r"[A-Za-z0-9_=+@-][A-Za-z0-9._=+@-]{0,199}")


@dataclass(frozen=True)
class ResultRow:
    """One metric of one job; a failed job has one row, without a metric."""

    model: str
    """The user's name for the model."""
    model_spec: str
    """What the name stood for: a folder, timm:NAME, random:NAME."""
    weights: str
    """SHA-256 of weights and preprocessing; empty where the job failed before it had them."""
    task: str
    task_version: int
    protocol: str
    protocol_hash: str
    """Hash of the protocol's name, version and recipe."""
    seed: int
    metric: str = ""
    """top1, mean_per_class, ...; shares are in per cent."""
    value: float = float("nan")
    n: int = 0
    """Number of test images."""
    seconds: float = float("nan")
    """Wall time of the whole job."""
    chosen: str = "{}"
    """JSON: what was selected on validation images, the protocol's `options`, the `batch_size` in the end, and the
    `precision` of forward passes (fp32, tf32 or bf16); `image_names`: the key of `eval.jobs.image_names`."""
    status: str = "done"
    """done or failed."""
    reason: str = ""
    """Why it failed, in one line."""
    versions: str = "{}"
    """JSON: packages and their versions, and the git commit of a checkout."""
    command: str = ""
    """The command line that asked for the job."""
    created: str = ""
    """UTC, ISO 8601."""
    task_metric: str = ""
    """The metric that the task's authors define: what tables of the report show. Empty: top1, or the first row's."""
    job: str = ""
    """The job's key, filled in by `write_result`."""


_TYPES: dict[type, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64()}
SCHEMA = pa.schema([pa.field(field.name, _TYPES[field.type], nullable=False) for field in fields(ResultRow)])  # type: ignore[index]


class Predictions(NamedTuple):
    """Predictions of one job."""

    labels: npt.NDArray[np.int32]
    """True classes of the test images, (n,)."""
    predictions: npt.NDArray[np.int32]
    """Predicted classes, one row a draw, (draws, n)."""


class Table(NamedTuple):
    """All rows that could be read, and the files that could not."""

    rows: pa.Table
    """Rows of SCHEMA, by job."""
    damaged: list[str]
    """One line for each file that is left out: its path and what is wrong with it."""


def write_result(
    out: Path,
    job: str,
    rows: Sequence[ResultRow],
    predictions: npt.NDArray[np.integer] | None = None,
    labels: npt.NDArray[np.integer] | None = None,
    confidence: npt.NDArray[np.floating] | None = None,
) -> None:
    """Adds a job's rows and, where it has them, predictions (n,) or (draws, n), labels (n,), and confidence as Result.

    The job appears complete or not at all. A failure never replaces a success. Raises OSError when the disk is full.
    """
    _check(job, rows, predictions, labels)
    if confidence is not None and (predictions is None or confidence.shape != predictions.shape):
        raise ValueError(f"job {job} has confidence {confidence.shape} that does not fit its predictions")
    file = _rows_folder(out) / f"{job}.parquet"
    if rows[0].status == "failed" and _status(file) == "done":
        return
    if predictions is not None and labels is not None:
        stacked = np.vstack([labels, predictions]).astype(np.int32)
        # Before the rows, whose presence means that the job has ended.
        _save(_confidence_file(out, job), None if confidence is None else np.atleast_2d(confidence))
        _save(_predictions_file(out, job), stacked)
    table = pa.Table.from_pylist([vars(replace(row, job=job)) for row in rows], schema=SCHEMA)
    # Dictionaries and statistics serve large files; a file of five rows reads twice as fast without.
    with new_file(file) as partial:
        pq.write_table(table, partial, use_dictionary=False, write_statistics=False)


def read_table(out: Path) -> Table:
    """All rows, in the order of the jobs' keys; files that cannot be read are reported and left out."""
    tables: list[pa.Table] = []
    damaged: list[str] = []
    for file in _row_files(out):
        try:
            tables.append(_read(file))
        except (OSError, ValueError, pa.ArrowException) as error:
            damaged.append(f"{file}: {one_line(error)}")
    return Table(pa.concat_tables(tables) if tables else SCHEMA.empty_table(), damaged)


def read_rows(out: Path) -> list[ResultRow]:
    """Rows as `read_table` returns them, one `ResultRow` each; damaged files are left out."""
    return [ResultRow(**row) for row in read_table(out).rows.to_pylist()]


def finished_keys(out: Path) -> set[str]:
    """Keys of the jobs that are done: those that failed, or whose file is damaged, are to be run again."""
    return {file.stem for file in _row_files(out) if _status(file) == "done"}


def read_predictions(out: Path, job: str) -> Predictions | None:
    """A job's predictions, None where it kept none; raises UserError when the file is damaged."""
    file = _predictions_file(out, job)
    if (stacked := _load(file)) is None:
        return None
    if stacked.dtype != np.int32 or stacked.ndim != 2 or len(stacked) < 2:
        raise UserError(f"{file} is damaged: {stacked.dtype} of shape {stacked.shape} instead of int32 (1 + draws, n)")
    return Predictions(stacked[0], stacked[1:])


def read_confidence(out: Path, job: str, shape: tuple[int, ...]) -> npt.NDArray[np.floating] | None:
    """Probability of each of a job's predicted classes, (draws, n).

    Args:
        out: Folder of results.
        job: The job's key.
        shape: (draws, n) of the job's predictions.

    Returns:
        None where none were kept: the protocol has no probabilities, or the results are older than this file.

    Raises:
        UserError: The file is damaged.
    """
    file = _confidence_file(out, job)
    if (found := _load(file)) is None:
        return None
    # Not all(): comparisons with NaN are false. Sums of float32 probabilities may exceed 1 by their rounding.
    if found.dtype.kind != "f" or found.shape != shape or not ((found >= 0) & (found <= 1 + 1e-4)).all():
        raise UserError(f"{file} is damaged: it must hold probabilities of shape {shape}")
    return found


def _save(file: Path, values: npt.NDArray[Any] | None) -> None:
    """Writes an array in place of an earlier one; None leaves no file."""
    if values is None:
        file.unlink(missing_ok=True)
        return
    with new_file(file) as partial, partial.open("xb") as stream:
        np.save(stream, values, allow_pickle=False)


def _load(file: Path) -> npt.NDArray[Any] | None:
    """An array; None where there is no file. Raises UserError when it cannot be read."""
    try:
        return np.load(file, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file} cannot be read: {one_line(error)}") from None


def _check(
    job: str,
    rows: Sequence[ResultRow],
    predictions: npt.NDArray[np.integer] | None,
    labels: npt.NDArray[np.integer] | None,
) -> None:
    if not _KEY.fullmatch(job):
        raise ValueError(f"a job's key names its files, so it cannot be {job!r}")
    if not rows or {row.status for row in rows} not in ({"done"}, {"failed"}):
        raise ValueError(f"job {job} needs rows that are all one of {get_args(Status)}")
    if (predictions is None) != (labels is None):
        raise ValueError(f"job {job} has predictions without labels, or labels without predictions")
    if predictions is not None and labels is not None:
        fits = labels.ndim == 1 and predictions.ndim in (1, 2) and predictions.shape[-1] == len(labels)
        if not fits or not predictions.size:
            raise ValueError(f"job {job} has predictions {predictions.shape} for labels {labels.shape}")


def _read(file: Path, columns: list[str] | None = None) -> pa.Table:
    """One file's rows; raises ValueError when it has other columns. Several times faster than pq.read_table."""
    with pa.OSFile(str(file)) as stream:
        parquet = pq.ParquetFile(stream)
        if not parquet.schema_arrow.equals(SCHEMA) or not parquet.metadata.num_rows:
            raise ValueError("its columns are not those of this version's results: move it away and run the job again")
        return parquet.read(columns=columns, use_threads=False).replace_schema_metadata()


def _status(file: Path) -> str | None:
    """done or failed; None where there is no file, or a damaged one."""
    try:
        return _read(file, ["status"])["status"][0].as_py()
    except (OSError, ValueError, pa.ArrowException):
        return None


def _row_files(out: Path) -> Iterable[Path]:
    folder = _rows_folder(out)
    if not folder.is_dir():
        return []
    return [folder / name for name in sorted(os.listdir(folder)) if name.endswith(".parquet") and name[0] != "."]


def _rows_folder(out: Path) -> Path:
    return Path(out) / "rows"


def _predictions_file(out: Path, job: str) -> Path:
    return Path(out) / "predictions" / f"{job}.npy"


def _confidence_file(out: Path, job: str) -> Path:
    return Path(out) / "confidence" / f"{job}.npy"
