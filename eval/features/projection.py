"""Features in two dimensions, to look at: t-SNE (van der Maaten and Hinton, 2008) or UMAP (arXiv 1802.03426)."""

import importlib.util
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from tt_ray.terminal.errors import UserError

Method = Literal["tsne", "umap"]
FEWEST = 8
"""Images that a picture needs: of fewer, neighbourhoods are all there is of the set."""
_COMPONENTS = 50
"""Principal components that are projected, as is usual before t-SNE: distances hardly change, noise does."""
_PERPLEXITY, _NEIGHBOURS = 30, 15
"""Defaults of t-SNE and UMAP, lower for few images."""
Floats = npt.NDArray[np.floating]
Rows = npt.NDArray[np.int64]


def check_method(method: Method) -> None:
    """Raises UserError where the method's package is not installed."""
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise UserError("umap-learn is not installed: pip install 'tt-ray[umap]', or choose --method tsne")


def stratified(labels: Rows, images: int, classes: int, seed: int) -> Rows:
    """Rows of at most `images` images of at most `classes` classes, in order: the same share of each class.

    Which classes, of more, and which images is drawn by the seed. Each class has an image as long as `images` allow.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(np.unique(labels))[:classes])
    rows = rng.permutation(np.flatnonzero(np.isin(labels, chosen)))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    counts = np.bincount(labels[rows])
    # The place of an image within its class, from 0 to below 1: the lowest of all are the same share of each class.
    places = np.concatenate([np.arange(count) / count for count in counts if count])
    return np.sort(rows[np.argsort(places, kind="stable")[:images]])


def projection(features: Floats, method: Method = "tsne", seed: int = 0) -> npt.NDArray[np.float64]:
    """Places (n, 2) of features (n, d), which are scaled to length 1, as kNN compares them.

    The same on one machine every time: a single thread, and the seed, decide all.

    Raises:
        UserError: There are fewer than `FEWEST` images, features are not finite or all alike, or UMAP is not installed.
    """
    check_method(method)
    count = len(features)
    x = np.asarray(features, np.float64)
    if count < FEWEST:
        raise UserError(f"a picture needs at least {FEWEST} images, not {count}")
    if not np.isfinite(x).all():
        raise UserError("features are not finite")
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    if np.ptp(x, axis=0).max() < 1e-9:
        raise UserError("features of all images are alike: there is nothing to see")
    with threadpool_limits(1):  # sums of several threads are rounded in the order in which they end
        x = PCA(min(_COMPONENTS, *x.shape), svd_solver="full").fit_transform(x).astype(np.float32)
        return np.asarray(_projector(method, count, seed).fit_transform(x), np.float64)


def _projector(method: Method, count: int, seed: int) -> Any:
    if method == "tsne":
        return TSNE(perplexity=min(_PERPLEXITY, (count - 1) / 3), random_state=seed)
    from umap import UMAP  # type: ignore[import-not-found]  # of an extra

    return UMAP(n_neighbors=min(_NEIGHBOURS, count - 1), random_state=seed, n_jobs=1)


def neighbours_alike(places: Floats, labels: Rows) -> float:
    """Share of images, in per cent, whose nearest other image is of their class; places (n, 2) and labels (n,)."""
    nearest = NearestNeighbors(n_neighbors=1).fit(places).kneighbors(return_distance=False)[:, 0]
    return 100 * float(np.mean(labels[nearest] == labels))
