"""Training data made worse on purpose: label noise, fewer images, fewer labels."""

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tt_ray.stateless_random import place_in_class
from tt_ray.terminal.errors import UserError


def replace_labels(
    labels: npt.NDArray[np.int64],
    ids: pa.StringArray | list[str],
    classes: int,
    share: float,
    seed: int,
    kind: str = "symmetric",
) -> npt.NDArray[np.int64]:
    """Label noise: a new array (N,) in which round(share * N) labels are another class.

    Each other class is as likely (symmetric), or it is always the next one, 0 after the last (pair: "pair flipping" of
    Han et al. 2018, arXiv 1804.06872). Which images, and which class each gets, follows from a hash of (id, seed)
    alone, whatever the order of rows; the images of a smaller share are among those of a larger one, and those of both
    kinds the same. `ids` are N distinct texts, `labels` lie in 0..classes-1. Raises UserError when there is no other
    class.
    """
    count = round(share * len(labels))
    if not count:
        return labels.copy()
    if classes < 2:
        raise UserError("data.label_noise needs another class to draw from, but the data have just one: set it to 0")
    rank, shift = _hash(ids, seed)
    chosen = np.argsort(rank, kind="stable")[:count]
    noisy = labels.copy()
    # The remainder of a 64-bit number is uniform to within classes / 2**64.
    noisy[chosen] += 1 if kind == "pair" else 1 + (shift[chosen] % np.uint64(classes - 1)).astype(np.int64)
    return noisy % classes


def stratified(
    labels: npt.NDArray[np.int64], ids: pa.StringArray | list[str], count: int, seed: int, purpose: str
) -> npt.NDArray[np.int64]:
    """The rows, rising, of `count` of N images, as large a share of each class as of the others, (count,).

    Which images follows from a hash of (id, seed, purpose) alone, whatever the order of rows. The images of a smaller
    count are among those of a larger one, and every class has one before any has a second.
    """
    rank, _ = _hash(ids, f"{seed} {purpose}")
    before = place_in_class(labels, rank) / np.bincount(labels)[labels]
    """Share of the image's class that comes before it."""
    return np.sort(np.lexsort((rank, before))[:count])


def _hash(ids: pa.StringArray | list[str], seed: int | str) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Two independent 64-bit numbers for each id, each of shape (N,). About a second for 1.3 million ids."""
    names = ids if isinstance(ids, list) else ids.to_pylist()
    key = str(seed).encode()
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=16, key=key).digest() for name in names)
    numbers = np.frombuffer(digests, "<u8").reshape(-1, 2)
    return numbers[:, 0], numbers[:, 1]
