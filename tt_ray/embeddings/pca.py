"""Principal components of an embedding store, for text targets of fewer dimensions.

Mean and standard deviation cost nothing when a store is written, as each value is in hand then. The covariance takes
2 N D^2 operations, minutes at D = 4096, so it is left to the runs that reduce: one pass over the written store.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from tt_ray.embeddings.store import EmbeddingStore
from tt_ray.io.files import new_file
from tt_ray.terminal.errors import UserError

# Rows that are turned into float64 at a time: 64 MiB at D = 1024.
_BLOCK = 8192

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pca:
    """Principal components of a store."""

    mean: F64
    """Mean of the embeddings, shape (D,)."""
    components: F64
    """Orthonormal rows, by falling variance, shape (out_dim, D)."""
    variance: F64
    """Variance along each component, shape (out_dim,)."""


def fit_pca(store: EmbeddingStore, out_dim: int, std: Literal["none", "full"] = "none") -> Pca:
    """The first `out_dim` principal components of the store's embeddings, streamed in float64.

    With std `full` each dimension is divided by its own standard deviation (plus 1e-6) first; mean and components are
    then those of the divided embeddings. The sign is fixed: a component's largest entry is positive. All D components
    are kept in the store's folder, named after its content; a file that does not fit is made again. The first call
    takes 2 N D^2 operations: make it before starting processes that need it. Raises UserError when out_dim is
    not within 1..D.
    """
    dim = store.dim
    if not 1 <= out_dim <= dim:
        raise UserError(f"head.out_dim is {out_dim}, but embeddings of {store.path} have only {dim} dimensions")
    scale = store.std.astype(np.float64) + 1e-6 if std == "full" else np.ones(dim)
    cache = store.path / f"pca_{std}_{store.sha256[:16]}.npy"
    table = _load_pca(cache, dim, out_dim)
    if table is None:
        table = _principal_axes(store, scale)
        # A store that cannot be written to is read all the same.
        with suppress(OSError), new_file(cache) as partial, partial.open("wb") as file:
            np.save(file, table)
    return Pca(store.mean / scale, table[1 : out_dim + 1], table[0, :out_dim])


def _principal_axes(store: EmbeddingStore, scale: F64) -> F64:
    """Variances in row 0, then the D components, shape (D + 1, D)."""
    products = np.zeros((store.dim, store.dim))
    rest = np.zeros(store.dim)
    for start in range(0, len(store), _BLOCK):
        block = store.embeddings[start : start + _BLOCK]
        centred = (block.astype(np.float64) - store.mean) / scale
        products += centred.T @ centred
        rest += centred.sum(0)
    rest /= len(store)  # what rounding the mean to float32 has left
    variance, vectors = np.linalg.eigh(products / len(store) - np.outer(rest, rest))
    components = vectors.T[::-1]
    largest = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], 1)
    return np.concatenate([np.maximum(variance[::-1], 0)[None], components * np.sign(largest)])


def _load_pca(cache: Path, dim: int, out_dim: int) -> F64 | None:
    """The first rows of a cached table, (out_dim + 1, D); None when there is none that fits."""
    try:
        table = np.load(cache, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if table.shape != (dim + 1, dim) or table.dtype != np.float64:
        return None
    head = np.array(table[: out_dim + 1])
    return head if np.allclose(np.linalg.norm(head[1:], axis=1), 1) else None
