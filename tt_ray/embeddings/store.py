"""The embedding store: a folder of memory-mapped embeddings with ids, statistics and a manifest."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tt_ray.io.files import sha256, sync
from tt_ray.terminal.errors import UserError

FORMAT_VERSION = 1
_FILES = ("embeddings.npy", "ids.parquet", "stats.npy")
# Rows that are turned into float64 at a time: 64 MiB at D = 1024.
_BLOCK = 8192

Embeddings = npt.NDArray[np.float16] | npt.NDArray[np.float32]


class Encoder(Protocol):
    """What is needed of tt_ray.text.encoder.TextEncoder."""

    name: str
    revision: str
    pooling: str
    max_tokens: int
    dim: int
    truncated: int

    def encode(self, captions: list[str]) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True)
class EmbeddingStore:
    """An open store; made by `open_store`. Pickles as its path, so that processes share the mapped pages."""

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
        """Of embeddings.npy, as the manifest has it: names the store's content."""
        return self.manifest["files"]["embeddings.npy"]["sha256"]

    @property
    def ids(self) -> pa.StringArray:
        """Image ids, length N, read anew each time: training needs them once, and a million take 45 MB a process.

        Raises UserError when the file is damaged.
        """
        try:
            ids = pq.read_table(self.path / "ids.parquet", columns=["image_id"])["image_id"].combine_chunks()
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self.path / 'ids.parquet'} cannot be read: {' '.join(str(error).split())}") from None
        if len(ids) != len(self):
            raise UserError(f"embedding store {self.path} has {len(ids)} ids for {len(self)} rows: write it again")
        return ids

    def rows_of(self, ids: pa.StringArray) -> npt.NDArray[np.int64]:
        """The store's row of each image id, -1 where it has none, shape (len(ids),)."""
        found = pc.call_function("index_in", [ids], pc.SetLookupOptions(value_set=self.ids))
        rows = found.fill_null(-1).to_numpy().astype(np.int64)
        del found
        pa.default_memory_pool().release_unused()  # ids and the look-up's table: 125 MB a process at a million ids
        return rows


def write_store(
    path: str | Path,
    ids: pa.StringArray,
    blocks: Iterable[np.ndarray],
    rows: int,
    dim: int,
    dtype: Literal["float16", "float32"],
    encoder: dict[str, Any],
    stats: np.ndarray | None = None,
) -> EmbeddingStore:
    """Streams `blocks`, each (n, dim), `rows` in total and in the order of `ids`, into a new store at `path`.

    `encoder` tells where they come from: id, revision, pooling, max_tokens. `stats`, mean and std of shape (2, dim),
    stand in for those of the values as written. The folder appears complete or not at all; of several writers of the
    same path the first one wins. Raises UserError when `path` is taken, ids repeat, or a value is not finite in
    `dtype`, and OSError when the disk is full.
    """
    path = Path(path).expanduser().absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already: delete it or give another path for the embedding store")
    if dtype not in ("float16", "float32"):
        raise UserError(f"embedding stores are float16 or float32, not {dtype}")
    if rows < 1 or len(ids) != rows or ids.null_count or len(ids.unique()) != rows:
        raise UserError(f"embedding store {path} needs {rows} ids, at least one, none empty and none twice")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
    try:
        digest, own = _write_embeddings(temporary / "embeddings.npy", blocks, ids, dim, np.dtype(dtype))
        np.save(temporary / "stats.npy", own if stats is None else stats.astype(np.float32))
        pq.write_table(pa.table({"image_id": ids}), temporary / "ids.parquet")
        sums = {"embeddings.npy": digest} | {name: sha256(temporary / name) for name in _FILES[1:]}
        files = {name: {"bytes": (temporary / name).stat().st_size, "sha256": sums[name]} for name in _FILES}
        manifest = {"format_version": FORMAT_VERSION, "encoder": encoder, "rows": rows, "dim": dim, "dtype": dtype}
        (temporary / "manifest.json").write_text(json.dumps(manifest | {"files": files}, indent=2) + "\n")
        for name in (*_FILES, "manifest.json", "."):
            sync(temporary / name)
        temporary.chmod(0o755)  # mkdtemp's folders are for their owner alone
        try:
            temporary.rename(path)
        except OSError:
            if not (path / "manifest.json").is_file():
                raise
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return open_store(path)


def open_store(path: str | Path, verify: bool = False) -> EmbeddingStore:
    """Opens a store, memory-mapped; `verify` reads everything once and compares checksums.

    Raises UserError when there is no complete store of a known version, or its files are not as the manifest says.
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
        raise UserError(f"embedding store {path} is damaged: {' '.join(str(error).split())}; write it again") from None
    rows, dim, dtype = manifest["rows"], manifest["dim"], manifest["dtype"]
    fits = embeddings.shape == (rows, dim) and embeddings.dtype == dtype and embeddings.flags.c_contiguous
    if not fits or stats.shape != (2, dim):
        raise UserError(
            f"embedding store {path} is damaged: it is not {dtype} of shape ({rows}, {dim}); write it again"
        )
    return EmbeddingStore(path, manifest, embeddings, stats[0].astype(np.float32), stats[1].astype(np.float32))


def embed_captions(
    ids: pa.StringArray,
    captions: pa.StringArray,
    encoder: Encoder,
    path: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> EmbeddingStore:
    """Encodes each distinct caption once and writes a float16 store of all images that have one, or several.

    `progress` is called with the numbers of captions done and in all. Raises UserError as `write_store` does, and when
    there are no captions.
    """
    path = Path(path).expanduser().absolute()
    given = captions.is_valid()
    ids, captions = ids.filter(given), captions.filter(given)
    if not len(ids):
        raise UserError("there are no captions to embed")
    distinct = captions.dictionary_encode()
    blocks = _encode(distinct.dictionary, encoder, progress or (lambda done, total: None))
    return write_distinct(path, ids, distinct, blocks, encoder.dim, describe(encoder))


def describe(encoder: Encoder) -> dict[str, Any]:
    """What a store's manifest tells of its encoder."""
    about = {"id": encoder.name, "revision": encoder.revision}
    return about | {"pooling": encoder.pooling, "max_tokens": encoder.max_tokens}


def write_distinct(
    path: Path,
    ids: pa.StringArray,
    captions: pa.DictionaryArray,
    blocks: Iterable[np.ndarray],
    dim: int,
    encoder: dict[str, Any],
    show: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> EmbeddingStore:
    """A float16 store of all distinct `ids` from the embeddings of their distinct captions.

    `blocks`, each (n, dim), are those of `captions.dictionary`, in its order; `captions` has the length of `ids`. An
    id that occurs several times gets the average of its captions' embeddings, which is not normalised again. `show` is
    called with what is going on, how much is done, and of how much.
    Raises UserError as `write_store` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    images = ids.dictionary_encode()
    if ids.null_count:
        raise UserError(f"{ids.null_count} captions have no image id: leave them out")
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.tmp-", dir=path.parent) as scratch:
        if len(captions.dictionary) < len(ids) or len(images.dictionary) < len(ids):
            blocks = _counted(blocks, "embeddings gathered", len(captions.dictionary), show)
            held = _hold(blocks, len(captions.dictionary), dim, Path(scratch) / "distinct.npy")
            blocks = _average(held, captions.indices.to_numpy(), images.indices.to_numpy())
        blocks = _counted(blocks, "embeddings written", len(images.dictionary), show)
        return write_store(path, images.dictionary, blocks, len(images.dictionary), dim, "float16", encoder)


def _counted(
    blocks: Iterable[np.ndarray], what: str, of: int, show: Callable[[str, int, int], None]
) -> Iterator[np.ndarray]:
    """The blocks, telling how many rows of `of` have been taken."""
    done = 0
    for block in blocks:
        yield block
        done += len(block)
        show(what, done, of)


def _write_embeddings(
    path: Path, blocks: Iterable[np.ndarray], ids: pa.StringArray, dim: int, dtype: np.dtype[Any]
) -> tuple[str, npt.NDArray[np.float32]]:
    """Writes the .npy file; returns its SHA-256 and the statistics (2, dim) of the values as written, in one pass."""
    digest, rows = hashlib.sha256(), len(ids)
    done, mean, squares = 0, np.zeros(dim), np.zeros(dim)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, dim)}
        )
        file.flush()
        digest.update(path.read_bytes())
        for block in _parts(blocks):
            assert block.ndim == 2 and block.shape[1] == dim, (block.shape, dim)
            with np.errstate(over="ignore"):
                block = np.ascontiguousarray(block, dtype)
            if not (finite := np.isfinite(block).all(1)).all():
                image = ids[done + int(finite.argmin())]
                raise UserError(
                    f"the embedding of image {image} is not finite as {dtype}: it is NaN or infinite, or too large for "
                    "it; mend or leave out its caption, or write float32"
                )
            file.write(block.data)
            digest.update(block.data)
            # Chan, Golub and LeVeque's update (1979): sums of squares would cancel where the mean is large.
            exact = block.astype(np.float64)
            shift = exact.mean(0) - mean
            total = done + len(block)
            squares += ((exact - exact.mean(0)) ** 2).sum(0) + shift**2 * (done * len(block) / total)
            mean += shift * (len(block) / total)
            done = total
    assert done == rows, f"{done} embeddings for {rows} ids"
    return digest.hexdigest(), np.stack([mean, np.sqrt(squares / rows)]).astype(np.float32)


def _parts(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The blocks in pieces of at most _BLOCK rows, none empty."""
    for block in blocks:
        for start in range(0, len(block), _BLOCK):
            yield block[start : start + _BLOCK]


def _encode(captions: pa.StringArray, encoder: Encoder, progress: Callable[[int, int], None]) -> Iterator[np.ndarray]:
    progress(0, len(captions))
    for start in range(0, len(captions), _BLOCK):
        yield encoder.encode(captions.slice(start, _BLOCK).to_pylist())
        progress(min(start + _BLOCK, len(captions)), len(captions))


def _hold(blocks: Iterable[np.ndarray], rows: int, dim: int, file: Path) -> npt.NDArray[np.float32]:
    """The concatenated blocks, (rows, dim), in a file: they can be larger than memory."""
    held = np.lib.format.open_memmap(file, "w+", np.dtype(np.float32), (rows, dim))
    with file.open("r+b") as whole:  # a full disk is an error here, but a deadly signal when mapped pages meet it
        os.posix_fallocate(whole.fileno(), 0, file.stat().st_size)
    start = 0
    for block in blocks:
        held[start : start + len(block)] = block
        start += len(block)
    return held


def _average(
    held: npt.NDArray[np.float32], index: npt.NDArray[np.integer], images: npt.NDArray[np.integer]
) -> Iterator[np.ndarray]:
    """For each image 0..max(images), the average of those rows `index` of `held` that `images` gives to it."""
    order = images.argsort(kind="stable")
    starts = np.flatnonzero(np.diff(images[order], prepend=-1, append=len(images)))
    for first in range(0, len(starts) - 1, _BLOCK):
        edges = starts[first : first + _BLOCK + 1]
        captions = held[index[order[edges[0] : edges[-1]]]]
        yield np.add.reduceat(captions, edges[:-1] - edges[0], axis=0) / np.diff(edges)[:, None]


def _why_absent(path: Path) -> str:
    begun = (f".{path.name}.tmp-", f"{path.name}.unfinished")
    if path.parent.is_dir() and any(entry.name.startswith(begun) for entry in path.parent.iterdir()):
        return "it is being written, or its writer was stopped; wait for it, or write it again"
    return "there is no such folder"


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except FileNotFoundError:
        raise UserError(
            f"{path} is no embedding store, or is not complete (it has no manifest.json): "
            "give another, or write it again"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path / 'manifest.json'} cannot be read: write the embedding store again") from None
    if version != FORMAT_VERSION:
        raise UserError(f"embedding store {path} has format version {version}, but this tt-ray reads {FORMAT_VERSION}")
    if not {"encoder", "rows", "dim", "dtype", "files"} <= manifest.keys() or manifest["files"].keys() != set(_FILES):
        raise UserError(f"{path / 'manifest.json'} lacks entries: write the embedding store again")
    return manifest
