"""Any caption table -> Parquet, with the image ids of a data set: `python -m tt_ray.convert_captions TABLE --out FILE`.

Official captions are named by file alone (n01440764_10026.JPEG), images by their path below the split's folder
(n01440764/n01440764_10026.JPEG).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import tyro

from tt_ray.io.one_writer import beside, one_writer
from tt_ray.io.resumable import disk_problems
from tt_ray.terminal.command import program, read_arguments, run_command
from tt_ray.terminal.errors import UserError
from tt_ray.text.caption_table import CaptionTable, read_captions, write_captions
from tt_ray.text.image_ids import match_ids, read_ids


def rename_images(table: CaptionTable, ids: pa.StringArray) -> tuple[CaptionTable, list[str]]:
    """Puts the captions of images under these images' ids.

    Args:
        table: Captions, by whole image id or by file name alone.
        ids: Image ids.

    Returns:
        The captions that belong to one of `ids`, and sentences on what was left over.

    Raises:
        UserError: A file name is that of several images, or no caption belongs to one of these images.
    """
    names = table.ids.unique()
    rows = match_ids(ids, names)
    found = np.flatnonzero(rows >= 0)
    if not len(found):
        raise UserError(f"no caption, such as that of {names[0]}, belongs to one of {len(ids)} images such as {ids[0]}")
    image_of = np.full(len(names), -1)
    image_of[rows[found]] = found
    image = image_of[table.ids.dictionary_encode().indices.to_numpy()]
    kept = pa.array(np.flatnonzero(image >= 0))
    counts = {
        "images have no caption": len(ids) - len(found),
        "captioned images are none of these and are left out": len(names) - len(found),
    }
    columns = ids.take(pa.array(image[image >= 0])), table.captions.take(kept), table.source.take(kept)
    notes = [f"{count} {what}" for what, count in counts.items() if count]
    return CaptionTable(*columns, problems=table.problems), notes


@dataclass(frozen=True)
class Arguments:
    """Read any caption table, list what is wrong with it, and write it as Parquet."""

    table: tyro.conf.Positional[Path]
    """Caption table: Parquet, CSV, TSV or JSONL with image_id and caption, or a folder of official CSV shards."""
    out: Path
    """Parquet file to write; must not exist."""
    ids: Path | None = None
    """A split's folder of images, or a table with image_id: captions get these ids, by file name if need be."""
    several: bool = False
    """Keep different captions of one image (their embeddings are averaged) instead of the first alone."""
    strict: bool = False
    """Refuse the table if any row is malformed; otherwise such rows are listed and left out."""


def main(arguments: list[str]) -> None:
    """Runs the command; raises UserError when its arguments, or what they name, cannot be used."""
    given = read_arguments(Arguments, arguments, program("tt_ray.convert_captions"))
    with one_writer(beside(given.out), f"caption table {given.out}"):
        _convert(given)


def _convert(given: Arguments) -> None:
    if given.out.exists():
        raise UserError(f"{given.out} exists: choose another --out")
    table, notes = read_captions(given.table, given.strict, given.several), []
    if given.ids is not None:
        table, notes = rename_images(table, read_ids(given.ids))
    with disk_problems(given.out):
        write_captions(table, given.out)
    for problem in table.problems[:10]:
        print(f"left out: {problem}")
    if len(table.problems) > 10:
        print(f"left out: {len(table.problems) - 10} rows more")
    for note in notes:
        print(f"note: {note}")
    print(f"wrote {given.out}: {len(table)} captions of {len(table.ids.unique())} images")


if __name__ == "__main__":
    run_command(main)
