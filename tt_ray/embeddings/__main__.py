"""Inspects, imports and exports embedding stores: `python -m tt_ray.embeddings COMMAND`."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import tyro

from tt_ray.embeddings.build import Dtype
from tt_ray.embeddings.ensure import store_here
from tt_ray.embeddings.exporter import export_dataset
from tt_ray.embeddings.importers import Imported, Target, import_dataset, import_zip
from tt_ray.embeddings.inspection import NEIGHBOURS, Report, Sample, draw_sample, inspect, nearest, plot
from tt_ray.embeddings.store import EmbeddingStore, open_store
from tt_ray.io.one_writer import beside, one_writer
from tt_ray.io.resumable import disk_problems
from tt_ray.terminal.command import program, read_arguments, run_command
from tt_ray.terminal.progress import Display
from tt_ray.text.caption_table import read_captions
from tt_ray.text.image_ids import read_ids, read_labels


@dataclass(frozen=True)
class Inspect:
    """Print figures on a store's embeddings, and their nearest others."""

    store: tyro.conf.Positional[str]
    """Embedding store: a folder or URI."""
    labels: Path | None = None
    """Classes of images: a table (Parquet, CSV, TSV, JSONL) with image_id and label, or a split's folder, whose
    metadata.jsonl or class folders are then read."""
    captions: Path | None = None
    """Caption table, to show the captions of near embeddings; without it their image ids are shown."""
    sample: int = 20_000
    """Number of rows, drawn at random, on which everything but size and duplicates is measured."""
    examples: int = 3
    """Number of embeddings whose nearest others are shown."""
    plot: Path | None = None
    """PNG to write: the sample on its first two principal components, coloured by class."""


@dataclass(frozen=True)
class ImportZip:
    """Make a store of TextTeacher's all_encodings.zip. Killed, the same command continues where it stopped."""

    archive: tyro.conf.Positional[Path]
    """Zip file of <image file name>.emb.npy."""
    out: Path
    """Folder of the new store."""
    ids: Path | None = None
    """A split's folder of images, or a table with image_id, whose images get embeddings by file name; without it the
    names in the archive are the image ids. Images without an embedding of their own get their class's, if any."""
    stats: Path | None = None
    """Mean and standard deviation to keep; by default the stats.npy next to the archive, else they are computed."""
    dtype: Dtype = "float16"
    """Kind of number in the store."""
    encoder: str = ""
    """Name of the text encoder, for the store's manifest."""


@dataclass(frozen=True)
class ImportDataset:
    """Make a store of a column of a Hugging Face data set."""

    source: tyro.conf.Positional[str]
    """Folder of Parquet files, folder of save_to_disk, or an id on the hub."""
    out: Path
    """Folder of the new store."""
    split: str = "train"
    """Split of the data set."""
    id_column: str = "image_id"
    """Column of image ids."""
    embedding_column: str = "embedding"
    """Column of embeddings: lists of equally many floats."""
    dtype: Dtype = "float16"
    """Kind of number in the store."""
    encoder: str = ""
    """Name of the text encoder, for the store's manifest; exported stores have it with them."""


@dataclass(frozen=True)
class Export:
    """Write a store as a Hugging Face data set folder, which datasets.load_dataset reads."""

    store: tyro.conf.Positional[str]
    """Embedding store: a folder or URI."""
    out: Path
    """Folder to write; must not exist."""


Command = (
    Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[ImportZip, tyro.conf.subcommand("import-zip")]
    | Annotated[ImportDataset, tyro.conf.subcommand("import-dataset")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(arguments: list[str]) -> None:
    """Runs the command; raises UserError when its arguments, or what they name, cannot be used."""
    form: Any = Command
    given = read_arguments(form, arguments, program("tt_ray.embeddings"))
    with Display() as display, ExitStack() as alone:
        if isinstance(given, Inspect):
            print("\n".join(_inspect(given, display)))
            return
        alone.enter_context(one_writer(beside(given.out), str(given.out), say=display.say))
        if isinstance(given, Export):
            files = export_dataset(open_store(store_here(given.store)), _absolute(given.out), display.show)
            lines = [f"exported {given.store} as {files} Parquet files: datasets.load_dataset({str(given.out)!r})"]
        else:
            lines = _import(given, display)
    print("\n".join(lines))


def _import(given: ImportZip | ImportDataset, display: Display) -> list[str]:
    target = Target(_absolute(given.out), given.dtype, given.encoder)
    if isinstance(given, ImportZip):
        ids = None if given.ids is None else read_ids(given.ids)
        archive, stats = _absolute(given.archive), given.stats and _absolute(given.stats)
        made = import_zip(archive, target, ids, stats, display.show)
    else:
        columns = (given.split, given.id_column, given.embedding_column)
        made = import_dataset(given.source, *columns, target, display.show)
    return [_size(made), *(f"note: {note}" for note in made.notes)]


def _size(made: Imported) -> str:
    store = made.store
    return f"embedding store {store.path}: {len(store)} images, {store.dim} numbers each, {store.embeddings.dtype}"


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _inspect(given: Inspect, display: Display) -> list[str]:
    store = open_store(store_here(given.store, show=display.show))
    labels = None if given.labels is None else read_labels(given.labels, store.ids)
    captions = None if given.captions is None else read_captions(given.captions)
    sample = draw_sample(store, labels, given.sample)
    report = inspect(store, sample, display.show)
    lines = _describe(store, sample, report)
    texts = None if captions is None else (captions.ids, captions.captions)
    lines += _neighbours(store, sample, texts, min(given.examples, len(sample.rows)))
    if given.plot is not None:
        with disk_problems(given.plot):
            plot(sample, report, store.path.name, given.plot)
        lines.append(f"plot: {given.plot}")
    return lines


def _describe(store: EmbeddingStore, sample: Sample, report: Report) -> list[str]:
    n, encoder = len(sample.rows), store.manifest["encoder"]
    gib = store.embeddings.nbytes / 2**30
    of = "all rows" if n == len(store) else f"{n} rows drawn at random"
    lines = [
        f"embedding store {store.path}",
        f"size: {len(store)} rows of {store.dim} numbers, {store.embeddings.dtype}, {gib:.3g} GiB",
        f"encoder: {', '.join(f'{key} {value}' for key, value in encoder.items() if value)}",
        f"duplicates: {report.duplicates} rows ({report.duplicates / len(store):.1%}) repeat another, bit for bit",
        f"norms: {', '.join(f'{norm:.4g}' for norm in report.norms)} (minimum, quartiles, maximum; {of})",
        f"effective rank: {report.effective_rank:.1f} of {store.dim} ({of}, mean subtracted)",
    ]
    if n < 5 * store.dim:
        lines[-1] += "; a larger sample would have more"
    if report.knn is not None:
        lines.append(
            f"classes: {report.knn:.1%} recognised by the {min(NEIGHBOURS, n - 1)} nearest others, "
            f"{report.knn_distinct:.1%} without those that are equal, {report.chance:.1%} by naming the most frequent "
            f"of {len(sample.classes)} ({of})"
        )
    return lines


def _neighbours(
    store: EmbeddingStore, sample: Sample, texts: tuple[pa.StringArray, pa.StringArray] | None, examples: int
) -> list[str]:
    """A few rows of the sample with the three nearest others that differ from them."""
    if examples < 1:
        return []
    queries = np.linspace(0, len(sample.rows) - 1, examples).astype(np.int64)
    ids = store.ids
    found, cosines = nearest(sample.units, sample.groups, queries, min(3, len(sample.rows) - 1))

    def name(row: int) -> str:
        image = ids[int(sample.rows[row])].as_py()
        at = texts[0].index(image).as_py() if texts else -1
        return f"{image}: {texts[1][at].as_py()}" if texts and at >= 0 else image

    lines = ["nearest others that differ, by cosine:"]
    for query, others, values in zip(queries, found, cosines, strict=True):
        lines.append(f"  {name(query)}")
        lines += [f"    {value:.3f} {name(other)}" for other, value in zip(others, values, strict=True) if value > -1.1]
    return lines


if __name__ == "__main__":
    run_command(main)
