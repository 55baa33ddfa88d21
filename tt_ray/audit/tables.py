"""Tables that an audit writes: suspects, corrected labels, pairs of image and caption that disagree."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq

from tt_ray.audit.inputs import Inputs
from tt_ray.audit.out_of_fold import Floats, Ints
from tt_ray.audit.suspects import Suspects

# pyarrow makes these functions when it is imported: type checkers do not know them.
pc: Any = pyarrow.compute


def suspects_table(inputs: Inputs, suspects: Suspects, count: int) -> pa.Table:
    """The first `count` suspects: image_id, label, suggestion, probabilities and caption."""
    rows = suspects.rows[:count]
    return pa.table(
        {
            "image_id": inputs.images.ids.take(pa.array(rows)),
            "label": _names(inputs.images.classes, inputs.images.labels[rows]),
            "suggestion": _names(inputs.images.classes, suspects.suggestion[:count]),
            "wrong": _rounded(suspects.wrong[:count]),
            "suggestion_right": _rounded(suspects.right[:count]),
            "label_probability": _rounded(suspects.own[:count]),
            "margin": _rounded(suspects.margin[:count]),
            "caption": _texts(inputs.texts, rows),
        }
    )


def corrected_table(inputs: Inputs, suspects: Suspects, least: float) -> tuple[pa.Table, int]:
    """Labels for `--data.labels`, and how many suggestions are among them.

    A suggestion replaces a label where it is right with a probability of at least `least`. A row for each training
    image whose label is then another one than that of the data by themselves, those without a caption included: with
    the table and --data.label_noise 0 a run trains on the labels of the audit, corrections included. Images that
    data.labels has left out have an empty label.
    """
    every, original = inputs.every, inputs.original
    chosen = suspects.right >= least
    labels = inputs.seen.copy()
    corrected = inputs.images.ids.take(pa.array(suspects.rows[chosen]))
    labels[_places(corrected, every.ids)] = suspects.suggestion[chosen]
    place = _places(original.ids, every.ids)
    own = _names(original.classes, original.labels)
    now = pc.if_else(pa.array(place >= 0), _names(every.classes, labels[place]), pa.scalar("", pa.string()))
    differ = pc.not_equal(now, own)
    table = pa.table({"image_id": original.ids.filter(differ), "label": now.filter(differ)})
    return table, int(chosen.sum())


def pairs_table(inputs: Inputs, rows: Ints, suspicion: Floats) -> pa.Table:
    """Images by falling suspicion that their caption is another's: image_id, label, suspicion and caption."""
    order = np.argsort(-suspicion, kind="stable")
    rows = rows[order]
    return pa.table(
        {
            "image_id": inputs.images.ids.take(pa.array(rows)),
            "label": _names(inputs.images.classes, inputs.images.labels[rows]),
            "suspicion": _rounded(suspicion[order]),
            "caption": _texts(inputs.texts, rows),
        }
    )


def write_csv(table: pa.Table, path: Path) -> None:
    """Writes CSV with line feeds, quotes where they are needed."""
    options: Any = pyarrow.csv.WriteOptions(quoting_style="needed")
    pyarrow.csv.write_csv(table, path, options)


def write_both(table: pa.Table, folder: Path, name: str) -> None:
    """Writes NAME.csv and NAME.parquet."""
    write_csv(table, folder / f"{name}.csv")
    pq.write_table(table, folder / f"{name}.parquet", compression="zstd")


def _names(classes: Iterable[str], numbers: Ints) -> pa.StringArray:
    return pa.array(list(classes), pa.string()).take(pa.array(numbers))


def _places(names: pa.StringArray, among: pa.StringArray) -> Ints:
    """The row of `among` that equals each of `names`, -1 for none."""
    return pc.index_in(names, value_set=among).fill_null(-1).to_numpy().astype(np.int64)


def _texts(texts: pa.StringArray | None, rows: Ints) -> pa.Array:
    """Captions on one line each: programs that count lines read the table too."""
    if texts is None:
        return pa.nulls(len(rows), pa.string())
    return pc.replace_substring_regex(texts.take(pa.array(rows)), r"\s+", " ")


def _rounded(values: Floats) -> pa.Array:
    return pa.array(np.round(values.astype(np.float64), 4))
