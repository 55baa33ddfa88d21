"""Embedding store -> Hugging Face data set: a folder of Parquet files with image_id and embedding."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tt_ray.embeddings.build import Show
from tt_ray.embeddings.importers import ABOUT
from tt_ray.embeddings.store import EmbeddingStore
from tt_ray.io.files import new_folder
from tt_ray.io.resumable import disk_problems
from tt_ray.terminal.errors import UserError

# Half of a GiB, as on the hub: large enough to read well, small enough to fetch again.
_FILE_BYTES = 1 << 29
_BLOCK = 8192

_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---

{rows} caption embeddings of {dim} numbers ({dtype}), by {encoder}. `embedding` belongs to the image `image_id`.
"""


def export_dataset(store: EmbeddingStore, out: Path, show: Show) -> int:
    """Writes a store as `data/train-<i>-of-<n>.parquet`, a card, and the manifest's entry about the encoder.

    `datasets.load_dataset(OUT)` reads it, and `import_dataset` makes an equal store of it. The folder appears complete
    or not at all.

    Returns:
        The number of Parquet files.

    Raises:
        UserError: `out` is taken, or the disk is full.
    """
    if out.exists():
        raise UserError(f"{out} exists already: choose another --out")
    per_file = max(_FILE_BYTES // (store.dim * store.embeddings.itemsize), 1)
    files, ids = -(-len(store) // per_file), store.ids
    with disk_problems(out), new_folder(out) as folder:
        (folder / "data").mkdir()
        for number in range(files):
            rows = range(number * per_file, min((number + 1) * per_file, len(store)))
            _write(store, ids, rows, folder / "data" / f"train-{number:05d}-of-{files:05d}.parquet")
            show("embeddings exported", rows.stop, len(store))
        encoder = store.manifest["encoder"]
        (folder / ABOUT).write_text(json.dumps(encoder, indent=2) + "\n")
        card = _CARD.format(
            rows=len(store), dim=store.dim, dtype=store.embeddings.dtype, encoder=encoder.get("id") or "an encoder"
        )
        (folder / "README.md").write_text(card)
    return files


def _write(store: EmbeddingStore, ids: pa.StringArray, rows: range, file: Path) -> None:
    kind = pa.list_(pa.from_numpy_dtype(store.embeddings.dtype), store.dim)
    schema = pa.schema([("image_id", pa.string()), ("embedding", kind)])
    # Embeddings hardly repeat and hardly compress: both would only cost time.
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        for start in range(rows.start, rows.stop, _BLOCK):
            block = store.embeddings[start : min(start + _BLOCK, rows.stop)]
            values = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), type=kind)
            writer.write_table(pa.table([ids.slice(start, len(block)), values], schema=schema))
