"""Targets of the text head: a split joined with an embedding store, once; then rows in, tensors out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tt_ray.config import Config, TextConfig
from tt_ray.data.sources.base import Source
from tt_ray.embeddings.pca import fit_pca
from tt_ray.embeddings.store import EmbeddingStore
from tt_ray.stateless_random import uniform
from tt_ray.terminal.errors import UserError, some

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_SHUFFLE_KEY, _RANDOM_CLASS_KEY = 0x5EED5, 0x5EEDC
_EXAMPLES = 5
_EPS = 1e-6
# Rows that are copied to a device at a time: 16 MiB of float16 at D = 1024.
_BLOCK = 8192

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Missing:
    """Images and embeddings that the join of a split with a store has left over."""

    images: int
    """Images without an embedding."""
    image_ids: tuple[str, ...]
    """The first five of them."""
    embeddings: int
    """Embeddings without an image."""
    embedding_ids: tuple[str, ...]
    """The first five of them."""
    rows: Ints
    """The source's rows that have an embedding, rising; `source.select(rows)` is what the targets belong to."""


@dataclass(frozen=True)
class TextTargets:
    """Targets (n, D') of a split's rows. Pickles without the embeddings: the store is opened again by its path."""

    store: EmbeddingStore
    index: npt.NDArray[np.int32]
    """Row of the store, or of `table`, of each image, shape (N,)."""
    shift: Floats
    """Subtracted from embeddings, shape (D,)."""
    scale: Floats
    """Multiplied with them then, shape (D,)."""
    projection: Floats | None = None
    """Principal components that reduce them last, shape (D', D)."""
    table: Floats | None = None
    """Embeddings that stand in for the store's, shape (classes, D): control random_class."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def dim(self) -> int:
        """Length D' of a target."""
        return self.store.dim if self.projection is None else len(self.projection)

    def __getitem__(self, rows: npt.ArrayLike) -> "Tensor":
        """Targets of the rows, float32, shape (len(rows), D')."""
        import torch  # takes two seconds, which the driver saves, as it only joins

        chosen = self.index[np.asarray(rows)]
        embeddings = (self.store.embeddings if self.table is None else self.table)[chosen].astype(np.float32)
        embeddings -= self.shift
        embeddings *= self.scale
        if self.projection is not None:
            embeddings = embeddings @ self.projection.T
        return torch.from_numpy(embeddings)


def build_targets(
    store: EmbeddingStore, source: Source, clean_labels: Ints, config: Config
) -> tuple[TextTargets, Missing]:
    """Joins a split with a store and prepares normalisation, reduction and controls as the config asks.

    `clean_labels` (len(source),) are the true classes, untouched by label noise; only control random_class reads them.
    The targets belong to `source.select(missing.rows)`. Raises UserError when more than text.max_missing of the
    images, or all of them, have no embedding, and when head.out_dim is larger than the embeddings.
    """
    found = store.rows_of(source.ids)
    missing = _missing(store, source.ids, found)
    _check_missing(missing, store, source, config.text.max_missing)
    index = found[missing.rows].astype(np.int32)
    table = None
    seed = config.train.seed
    if config.text.control == "shuffle":
        index = index[uniform(np.arange(len(index)), 1, seed, _SHUFFLE_KEY)[:, 0].argsort(kind="stable")]
    elif config.text.control == "random_class":
        labels = clean_labels[missing.rows]
        if labels.min() < 0:
            raise UserError("text.control random_class needs a class for each image, but some have none")
        index = labels.astype(np.int32)
        table = _class_vectors(store, int(labels.max()) + 1, seed)
    shift, scale = _normalisation(store, config.text)
    return TextTargets(store, index, shift, scale, _projection(store, config), table), missing


def targets_of_rows(store: EmbeddingStore, config: Config) -> TextTargets:
    """Targets of the store's own rows, prepared as `build_targets` does; `config.text.control` is ignored.

    Raises:
        UserError: head.out_dim is larger than the embeddings.
    """
    shift, scale = _normalisation(store, config.text)
    return TextTargets(store, np.arange(len(store), dtype=np.int32), shift, scale, _projection(store, config))


class ClassTexts(NamedTuple):
    """Targets of texts about classes."""

    targets: TextTargets
    labels: Ints
    """The class of each target, (N,)."""


def build_class_texts(store: EmbeddingStore, classes: Sequence[str], dim: int, config: Config) -> ClassTexts:
    """Targets of the texts in a store whose ids are CLASS or CLASS/ANYTHING, prepared by the store's own statistics.

    Raises:
        UserError: A class has no text, or targets have another length than `dim`, that of the images'.
    """
    path = config.text.class_embeddings
    number = {name: place for place, name in enumerate(classes)}
    ids = store.ids.to_pylist()
    ways = ([name, name.rpartition("/")[0], name.partition("/")[0]] for name in ids)
    found = np.array([next((number[way] for way in each if way in number), -1) for each in ways], np.int64)
    rows = np.flatnonzero(found >= 0)
    there = set(found.tolist())
    if lacking := [name for place, name in enumerate(classes) if place not in there]:
        raise UserError(
            f"text.class_embeddings {path} has no text of {len(lacking)} of {len(classes)} classes: {some(lacking)}; "
            "its ids must be CLASS or CLASS/ANYTHING"
        )
    targets = targets_of_rows(store, config)
    if targets.dim != dim:
        raise UserError(
            f"text.class_embeddings {path} are of {targets.dim} dimensions, but images' embeddings of {dim}: embed "
            "both with the same encoder"
        )
    return ClassTexts(replace(targets, index=targets.index[rows]), found[rows])


def _missing(store: EmbeddingStore, ids: pa.StringArray, found: Ints) -> Missing:
    rows = np.flatnonzero(found >= 0)
    used = np.zeros(len(store), bool)
    used[found[rows]] = True
    images, embeddings = np.flatnonzero(found < 0), np.flatnonzero(~used)
    return Missing(
        images=len(images),
        image_ids=tuple(ids.take(pa.array(images[:_EXAMPLES])).to_pylist()),
        embeddings=len(embeddings),
        embedding_ids=tuple(store.ids.take(pa.array(embeddings[:_EXAMPLES])).to_pylist()),
        rows=rows,
    )


def _check_missing(missing: Missing, store: EmbeddingStore, source: Source, accepted: float) -> None:
    total = len(source)
    examples = ", ".join(missing.image_ids)
    if not len(missing.rows):
        raise UserError(
            f"none of the {total} images has an embedding in {store.path}: image ids such as {examples} "
            f"match none such as {', '.join(missing.embedding_ids)}; embed this data set's captions"
        )
    if missing.images > accepted * total:
        raise UserError(
            f"{missing.images} of {total} images have no embedding in {store.path}, such as {examples}: embed their "
            f"captions, or leave them out with --text.max_missing {_round_up(missing.images / total)}"
        )


def _round_up(share: float) -> float:
    """The share with two digits, never less than it."""
    return min(1.0, np.ceil(share * 100) / 100)


def _class_vectors(store: EmbeddingStore, classes: int, seed: int) -> Floats:
    """One Gaussian vector per class with the store's mean and standard deviation, shape (classes, D)."""
    first, second = np.split(uniform(np.arange(classes), 2 * store.dim, seed, _RANDOM_CLASS_KEY), 2, axis=1)
    # Box and Muller (1958); 1 - u is in (0, 1], where the logarithm is finite.
    normal = np.sqrt(-2 * np.log(1 - first)) * np.cos(2 * np.pi * second)
    return (store.mean + store.std * normal).astype(np.float32)


def _normalisation(store: EmbeddingStore, text: TextConfig) -> tuple[Floats, Floats]:
    """The shift to subtract and the scale to multiply with, both of shape (D,)."""
    divisor = np.ones(store.dim)
    if text.normalize_std == "mean":
        divisor[:] = max(store.std.mean(dtype=np.float64), _EPS)
    elif text.normalize_std == "full":
        divisor = store.std.astype(np.float64) + _EPS
    shift = store.mean if text.normalize_mean else np.zeros_like(store.mean)
    return shift, (1 / divisor).astype(np.float32)


def _projection(store: EmbeddingStore, config: Config) -> Floats | None:
    """Principal components (head.out_dim, D) of the embeddings as normalised, or None where nothing is reduced."""
    out_dim = config.head.out_dim
    if out_dim in (0, store.dim):
        return None
    # One common divisor leaves the components as they are; only one per dimension changes them.
    pca = fit_pca(store, out_dim, "full" if config.text.normalize_std == "full" else "none")
    return pca.components.astype(np.float32)


class DeviceTargets:
    """The targets of a `TextTargets`, held on `device`: a step's lookup is one gather there, and nothing is sent."""

    def __init__(self, targets: TextTargets, device: "torch.device") -> None:
        import torch

        rows, index = np.unique(targets.index, return_inverse=True)  # only what the split uses, once
        source = targets.store.embeddings if targets.table is None else targets.table
        kind = torch.from_numpy(np.zeros(0, source.dtype)).dtype
        self.embeddings = torch.empty((len(rows), source.shape[1]), dtype=kind, device=device)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            self.embeddings[start : start + len(block)] = torch.from_numpy(source[block])
        self.index = torch.from_numpy(index.astype(np.int64)).to(device)
        self.shift, self.scale = (torch.from_numpy(part).to(device) for part in (targets.shift, targets.scale))
        self.projection = None
        if targets.projection is not None:
            self.projection = torch.from_numpy(targets.projection.T.copy()).to(device)

    def __getitem__(self, rows: "Tensor") -> "Tensor":
        """Targets of the rows (B,), on any device: float32, (B, D'), on this one. Does not wait for it."""
        chosen = self.index[rows.to(self.index.device, non_blocking=True)]
        text = (self.embeddings[chosen].float() - self.shift) * self.scale
        return text if self.projection is None else text @ self.projection


def hold_targets(targets: TextTargets | None, wanted: bool, device: "torch.device") -> DeviceTargets | None:
    """The targets on the device where that is wanted (text.on_device).

    Raises:
        UserError: They do not fit there.
    """
    import torch

    if targets is None or not wanted:
        return None
    try:
        return DeviceTargets(targets, device)
    except torch.OutOfMemoryError:
        gib = len(np.unique(targets.index)) * targets.store.dim * targets.store.embeddings.itemsize / 2**30
        raise UserError(f"text.on_device: {gib:.1f} GiB of embeddings do not fit on {device}: leave it off") from None
