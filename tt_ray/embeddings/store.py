"""The embedding store: a folder of memory-mapped embeddings with ids, statistics and a manifest."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tt_ray.io.files import partials, sha256
from tt_ray.terminal.errors import UserError, one_line

FORMAT_VERSION = 1
FILES = ("embeddings.npy", "ids.parquet", "stats.npy")
MANIFEST = "manifest.json"
"""Its presence says that the store is complete."""

Embeddings = npt.NDArray[np.float16] | npt.NDArray[np.float32]


@dataclass(frozen=True)
class EmbeddingStore:
    """An open store, as `open_store` returns it. It pickles as its path, so that processes share the mapped pages."""

    path: Path
    manifest: dict[str, Any]
    """encoder (id, revision, pooling, max_tokens), rows, dim, dtype, files."""
    embeddings: Embeddings
    """Memory-mapped, read-only, shape (N, D)."""
    mean: npt.NDArray[np.float32]
    """Mean of each dimension, shape (D,)."""
    std: npt.NDArray[np.float32]
    """Population standard deviation of each dimension, shape (D,)."""

    def __len__(self) -> int:
        return len(self.embeddings)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path,)

    @property
    def dim(self) -> int:
        """Length D of an embedding."""
        return self.embeddings.shape[1]

    @property
    def sha256(self) -> str:
        """SHA-256 of embeddings.npy as the manifest has it; it names the store's content."""
        return self.manifest["files"]["embeddings.npy"]["sha256"]

    @property
    def ids(self) -> pa.StringArray:
        """Image ids, length N, read again each time: training needs them once, and a million take 45 MB a process.

        Raises UserError when the file is damaged.
        """
        try:
            ids = pq.read_table(self.path / "ids.parquet", columns=["image_id"])["image_id"].combine_chunks()
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self.path / 'ids.parquet'} cannot be read: {one_line(error)}") from None
        if len(ids) != len(self):
            raise UserError(f"embedding store {self.path} has {len(ids)} ids for {len(self)} rows: write it again")
        return ids

    def rows_of(self, ids: pa.StringArray | Sequence[str]) -> npt.NDArray[np.int64]:
        """The store's row of each image id, shape (len(ids),); -1 where it has none."""
        wanted = ids if isinstance(ids, pa.Array) else pa.array(ids, pa.string())
        found = pc.call_function("index_in", [wanted], pc.SetLookupOptions(value_set=self.ids))
        rows = found.fill_null(-1).to_numpy().astype(np.int64)
        del found
        pa.default_memory_pool().release_unused()  # ids and the look-up's table: 125 MB a process at a million ids
        return rows


def open_store(path: str | Path, verify: bool = False) -> EmbeddingStore:
    """Opens a store, memory-mapped.

    Args:
        path: Folder of the store.
        verify: Read everything once and compare checksums.

    Raises:
        UserError: There is no complete store of a known version, or its files are not as the manifest says.
    """
    path = Path(path).expanduser().absolute()
    if not path.is_dir():
        raise UserError(f"no embedding store {path}: {_why_absent(path)}")
    manifest = _read_manifest(path)
    for name, expected in manifest["files"].items():
        size = (path / name).stat().st_size if (path / name).is_file() else -1
        if size != expected["bytes"]:
            has = "is missing" if size < 0 else f"has {size} bytes instead of {expected['bytes']}"
            raise UserError(f"embedding store {path} is damaged: {name} {has}; write it again")
        if verify and sha256(path / name) != expected["sha256"]:
            raise UserError(f"embedding store {path} is damaged: wrong checksum of {name}; write it again")
    try:
        embeddings = np.load(path / "embeddings.npy", mmap_mode="r", allow_pickle=False)
        stats = np.load(path / "stats.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"embedding store {path} is damaged: {one_line(error)}; write it again") from None
    rows, dim, dtype = manifest["rows"], manifest["dim"], manifest["dtype"]
    fits = embeddings.shape == (rows, dim) and embeddings.dtype == dtype and embeddings.flags.c_contiguous
    if not fits or stats.shape != (2, dim):
        raise UserError(
            f"embedding store {path} is damaged: it is not {dtype} of shape ({rows}, {dim}); write it again"
        )
    return EmbeddingStore(path, manifest, embeddings, stats[0].astype(np.float32), stats[1].astype(np.float32))


def _why_absent(path: Path) -> str:
    if partials(path) or path.with_name(f"{path.name}.unfinished").exists():
        return "it is being written, or its writer was stopped; wait for it, or write it again"
    return "there is no such folder"


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except FileNotFoundError:
        raise UserError(
            f"{path} is no embedding store, or is not complete (it has no manifest.json): "
            "choose another, or write it again"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path / 'manifest.json'} cannot be read: write the embedding store again") from None
    if version != FORMAT_VERSION:
        raise UserError(f"embedding store {path} has format version {version}, but this tt-ray reads {FORMAT_VERSION}")
    if not {"encoder", "rows", "dim", "dtype", "files"} <= manifest.keys() or manifest["files"].keys() != set(FILES):
        raise UserError(f"{path / 'manifest.json'} lacks entries: write the embedding store again")
    return manifest
