"""Writes embedding stores: from blocks of embeddings, from those of distinct captions, or by an encoder."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tt_ray.embeddings.store import FILES, FORMAT_VERSION, MANIFEST, EmbeddingStore, open_store
from tt_ray.io.files import new_folder, sha256
from tt_ray.terminal.errors import UserError

# Rows that are turned into float64 at a time: 64 MiB at D = 1024.
_BLOCK = 8192

Dtype = Literal["float16", "float32"]
Show = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""


class Encoder(Protocol):
    """The part of tt_ray.text.encoder.TextEncoder that is used here."""

    name: str
    revision: str
    pooling: str
    max_tokens: int
    dim: int
    truncated: int

    def encode(self, captions: list[str]) -> npt.NDArray[np.float32]: ...


def write_store(
    path: str | Path,
    ids: pa.StringArray,
    blocks: Iterable[np.ndarray],
    dim: int,
    dtype: Dtype,
    encoder: dict[str, Any],
    stats: np.ndarray | None = None,
) -> EmbeddingStore:
    """Streams embeddings into a new store, which appears complete or not at all.

    Of several writers of the same path the first one wins.

    Args:
        path: Folder of the new store; it may exist if it is empty.
        ids: Image ids, at least one, none null and none twice.
        blocks: Embeddings in the order of `ids`, each block (n, dim), together as many rows as there are ids.
        dim: Length of an embedding.
        dtype: Kind of number that is written.
        encoder: Where the embeddings come from, for the manifest: id, revision, pooling, max_tokens.
        stats: Mean and standard deviation to keep, shape (2, dim), instead of those of the values as written.

    Returns:
        The new store, open; or the store of another writer that was faster.

    Raises:
        UserError: `path` is taken, ids repeat, or a value is not finite in `dtype`.
        OSError: The disk is full.
    """
    path = Path(path).expanduser().absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already: delete it or choose another path for the embedding store")
    if dtype not in ("float16", "float32"):
        raise UserError(f"embedding stores are float16 or float32, not {dtype}")
    if not len(ids) or ids.null_count or len(ids.unique()) != len(ids):
        raise UserError(f"embedding store {path} needs image ids, at least one, none empty and none twice")
    with new_folder(path, first_wins=True) as folder:
        digest, own = _write_embeddings(folder / "embeddings.npy", blocks, ids, dim, np.dtype(dtype))
        np.save(folder / "stats.npy", own if stats is None else stats.astype(np.float32))
        pq.write_table(pa.table({"image_id": ids}), folder / "ids.parquet")
        files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in FILES[1:]}
        files = {FILES[0]: {"bytes": (folder / FILES[0]).stat().st_size, "sha256": digest}} | files
        manifest = {"format_version": FORMAT_VERSION, "encoder": encoder, "rows": len(ids), "dim": dim, "dtype": dtype}
        (folder / MANIFEST).write_text(json.dumps(manifest | {"files": files}, indent=2) + "\n")
    return open_store(path)


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
    present = captions.is_valid()
    ids, captions = ids.filter(present), captions.filter(present)
    if not len(ids):
        raise UserError("there are no captions to embed")
    distinct = captions.dictionary_encode()
    blocks = _encode(distinct.dictionary, encoder, progress or (lambda done, total: None))
    return write_distinct(path, ids, distinct, blocks, encoder.dim, describe(encoder))


def describe(encoder: Encoder) -> dict[str, Any]:
    """An encoder as the manifest of its store names it."""
    about = {"id": encoder.name, "revision": encoder.revision}
    return about | {"pooling": encoder.pooling, "max_tokens": encoder.max_tokens}


def write_distinct(
    path: Path,
    ids: pa.StringArray,
    captions: pa.DictionaryArray,
    blocks: Iterable[np.ndarray],
    dim: int,
    encoder: dict[str, Any],
    show: Show = lambda what, done, of: None,
) -> EmbeddingStore:
    """Writes a float16 store of all distinct `ids` from the embeddings of their distinct captions.

    An id that occurs several times gets the average of its captions' embeddings, which is not normalised again.

    Args:
        path: Folder of the new store.
        ids: Image ids, none null; an image with several captions occurs several times.
        captions: The caption of each of `ids`.
        blocks: Embeddings of `captions.dictionary` in its order, each block (n, dim).
        dim: Length of an embedding.
        encoder: Where the embeddings come from, for the manifest.
        show: Called after each block.

    Raises:
        UserError: As `write_store` does, and when an id is null.
        OSError: The disk is full.
    """
    images = ids.dictionary_encode()
    if ids.null_count:
        raise UserError(f"{ids.null_count} captions have no image id: leave them out")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent) as scratch:  # without a name, so that a kill leaves nothing
        if len(captions.dictionary) < len(ids) or len(images.dictionary) < len(ids):
            blocks = _counted(blocks, "embeddings gathered", len(captions.dictionary), show)
            held = _hold(blocks, len(captions.dictionary), dim, scratch)
            blocks = _average(held, captions.indices.to_numpy(), images.indices.to_numpy())
        blocks = _counted(blocks, "embeddings written", len(images.dictionary), show)
        return write_store(path, images.dictionary, blocks, dim, "float16", encoder)


def _counted(blocks: Iterable[np.ndarray], what: str, of: int, show: Show) -> Iterator[np.ndarray]:
    """The blocks; `show` is called with the number of rows of `of` that have been taken."""
    done = 0
    for block in blocks:
        yield block
        done += len(block)
        show(what, done, of)


@dataclass
class _Moments:
    """Count, mean (D,) and summed squared deviations from it (D,) of the rows so far."""

    mean: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]
    rows: int = 0

    def add(self, block: npt.NDArray[np.float64]) -> None:
        """Takes rows (n, D) in by the update of Chan, Golub and LeVeque (1979).

        Plain sums of squares would cancel where the mean is large.
        """
        own = block.mean(0)
        shift = own - self.mean
        total = self.rows + len(block)
        self.squares += ((block - own) ** 2).sum(0) + shift**2 * (self.rows * len(block) / total)
        self.mean += shift * (len(block) / total)
        self.rows = total


def _write_embeddings(
    path: Path, blocks: Iterable[np.ndarray], ids: pa.StringArray, dim: int, dtype: np.dtype[Any]
) -> tuple[str, npt.NDArray[np.float32]]:
    """Writes the .npy file; returns its SHA-256 and the statistics (2, dim) of the values as written, in one pass."""
    digest, moments = hashlib.sha256(), _Moments(np.zeros(dim), np.zeros(dim))
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (len(ids), dim)}
        )
        file.flush()
        digest.update(path.read_bytes())
        for block in _parts(blocks):
            assert block.ndim == 2 and block.shape[1] == dim, (block.shape, dim)
            written = _as_written(block, dtype, ids, moments.rows)
            file.write(written.data)
            digest.update(written.data)
            moments.add(written.astype(np.float64))
    assert moments.rows == len(ids), f"{moments.rows} embeddings for {len(ids)} ids"
    std = np.sqrt(moments.squares / len(ids))
    return digest.hexdigest(), np.stack([moments.mean, std]).astype(np.float32)


def _as_written(block: np.ndarray, dtype: np.dtype[Any], ids: pa.StringArray, first: int) -> np.ndarray:
    """The block in `dtype`; raises UserError naming the image of a row that is not finite then.

    The block's first row belongs to the id at `first`.
    """
    with np.errstate(over="ignore"):
        written = np.ascontiguousarray(block, dtype)
    if not (finite := np.isfinite(written).all(1)).all():
        image = ids[first + int(finite.argmin())]
        raise UserError(
            f"the embedding of image {image} is not finite as {dtype}: it is NaN or infinite, or too large for "
            "it; fix or leave out its caption, or write float32"
        )
    return written


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


def _hold(blocks: Iterable[np.ndarray], rows: int, dim: int, file: IO[bytes]) -> npt.NDArray[np.float32]:
    """The concatenated blocks, (rows, dim), in a file: they can be larger than memory."""
    # A full disk is an error here, but a deadly signal where mapped pages find it full.
    os.posix_fallocate(file.fileno(), 0, rows * dim * np.dtype(np.float32).itemsize)
    held = np.memmap(file, np.float32, "r+", shape=(rows, dim))
    start = 0
    for block in blocks:
        held[start : start + len(block)] = block
        start += len(block)
    return held


def _average(
    held: npt.NDArray[np.float32], index: npt.NDArray[np.integer], images: npt.NDArray[np.integer]
) -> Iterator[np.ndarray]:
    """For each image 0..max(images), the average of the rows `index` of `held` that `images` assigns to it."""
    order = images.argsort(kind="stable")
    starts = np.flatnonzero(np.diff(images[order], prepend=-1, append=len(images)))
    for first in range(0, len(starts) - 1, _BLOCK):
        edges = starts[first : first + _BLOCK + 1]
        captions = held[index[order[edges[0] : edges[-1]]]]
        yield np.add.reduceat(captions, edges[:-1] - edges[0], axis=0) / np.diff(edges)[:, None]
