"""Features as the solver sees them: chosen rows of a float32 matrix, standardised, in blocks, on a device."""

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tt_ray.terminal.errors import UserError

Matrix = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
_BLOCK_BYTES = 1 << 20
"""On a CPU a block of rows stays in the second-level cache from its first product to its second."""
_GPU_BLOCK_BYTES = 1 << 28
_READ_BYTES = 1 << 17
_GAP = 8
"""Rows that lie nearer to each other than this in a file are read with all that is between them."""


class Moments(NamedTuple):
    """Moments of each feature, over the rows that a probe is fitted on."""

    mean: npt.NDArray[np.float64]
    """(d,)."""
    scale: npt.NDArray[np.float64]
    """(d,) standard deviations (divisor N), 1 where a feature is constant."""

    def standardise(self, block: Matrix, device: torch.device) -> Tensor:
        """The block (b, d), which is overwritten, minus the means, divided by the standard deviations."""
        mean, inverse = (torch.from_numpy(part.astype(np.float32)).to(device) for part in (self.mean, 1 / self.scale))
        return torch.from_numpy(block).to(device).sub_(mean).mul_(inverse)


def moments(x: Matrix, rows: Rows) -> Moments:
    """Means and standard deviations in float64, by two passes over `x[rows]` in blocks.

    A feature counts as constant when it varies by no more than rounding errors of float32. Raises UserError
    when a feature is NaN or infinite.
    """
    count, dim = len(rows), x.shape[1]
    mean, variance = np.zeros(dim), np.zeros(dim)
    for _, block in read_blocks(x, rows):
        check_finite(block)
        mean += block.sum(0, dtype=np.float64) / count
    for _, block in read_blocks(x, rows):
        off = block - mean
        variance += np.square(off, out=off).sum(0) / count
    # A feature that float32 cannot distinguish from its mean varies by rounding alone.
    constant = variance <= (float(np.finfo(np.float32).eps) * mean) ** 2
    return Moments(mean, np.where(constant, 1.0, np.sqrt(variance)))


def check_finite(block: Matrix) -> None:
    """Raises UserError when a feature of the block (b, d) is NaN or infinite."""
    if np.isfinite(block.sum(dtype=np.float64)):
        return
    wrong = ~np.isfinite(block)
    raise UserError(
        f"{wrong.any(0).sum()} of {block.shape[1]} features are NaN or infinite (in {wrong.any(1).sum()} of the "
        f"{len(block)} images looked at): "
        "the model's weights or its preprocessing are broken; check the model, then delete its cached features"
    )


def read_blocks(x: Matrix, rows: Rows, block_bytes: int = _READ_BYTES) -> Iterator[tuple[slice, Matrix]]:
    """Copies of `x[rows]` in blocks, and where they belong.

    Memory maps are read by their file: what is read through the map counts as this process's memory, and Linux (6.18)
    maps up to 2 MB for one row. So a copy of all rows costs their size once.
    """
    size = max(1, block_bytes // (4 * max(1, x.shape[1])))
    with _opened(x) as read:
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            yield slice(start, start + len(part)), read(part)


@contextmanager
def _opened(x: Matrix) -> Iterator[Callable[[Rows], Matrix]]:
    """A function that copies `x[rows]`; parts of memory maps are read like arrays in memory."""
    if isinstance(x, np.memmap) and x.filename and isinstance(x.base, mmap.mmap) and x.flags.c_contiguous:
        with open(x.filename, "rb", buffering=0) as file:
            yield FileRows(file, x).read
    else:
        plain = np.asarray(x)
        yield lambda rows: plain[rows].astype(np.float32, copy=False)


class FileRows:
    """Rows of a memory map (N, d), read by its file."""

    def __init__(self, file: FileIO, x: "np.memmap[Any, Any]") -> None:
        self.file, self.x = file, x
        self._near = np.empty((0, x.shape[1]), x.dtype)  # used again: memory that is new costs more than reading

    def read(self, rows: Rows) -> Matrix:
        """`x[rows]`; rows that lie near each other in one go."""
        found = np.empty((len(rows), self.x.shape[1]), self.x.dtype)
        gaps = np.diff(rows)
        far = np.flatnonzero((gaps < 1) | (gaps > _GAP)) + 1
        for low, high in pairwise([0, *far.tolist(), len(rows)]):
            first, last = int(rows[low]), int(rows[high - 1])
            near = self._between(first, last + 1)
            near.take(rows[low:high] - first, 0, found[low:high], mode="clip")
        return found.astype(np.float32, copy=False)

    def _between(self, first: int, end: int) -> npt.NDArray[Any]:
        if len(self._near) < end - first:
            self._near = np.empty((end - first, self.x.shape[1]), self.x.dtype)
        near = self._near[: end - first]
        self.file.seek(self.x.offset + first * self.x.strides[0])
        if self.file.readinto(near.data.cast("B")) != near.nbytes:
            raise UserError(f"{self.x.filename} ends early: delete its folder, and it is made again")
        return near


class Design:
    """`(x[rows] - mean) / scale`, (n, d) float32, and the eigenbasis of its first rows' second moments.

    Held on the device, turned to that basis, if it fits into `resident_bytes`, which costs the size of the features
    once; read from `x` again in each pass otherwise. Rows keep their order.
    """

    def __init__(
        self,
        x: Matrix,
        rows: Rows,
        scaling: Moments,
        count: int,
        device: str = "cpu",
        resident_bytes: int | None = None,
    ) -> None:
        """The basis is that of the first `count` rows, those that are fitted."""
        self.x, self.rows, self.scaling = x, rows, scaling
        self.dim, self.device = x.shape[1], torch.device(device)
        self.data: Tensor | None = None
        self.eigenvalues, self._basis = self._eigenbasis(count)
        limit = _resident_bytes(self.device) if resident_bytes is None else resident_bytes
        if 4 * len(rows) * self.dim <= limit:
            self.data = torch.empty(len(rows), self.dim, device=self.device)
            for place, block in read_blocks(x, rows):
                check_finite(block)
                self.data[place] = multiply(scaling.standardise(block, self.device), self._basis)

    def _eigenbasis(self, count: int) -> tuple[Tensor, Tensor]:
        """Eigenvalues (d,) and vectors of the second moments of the first `count` rows.

        The penalty does not change with the basis, and the loss's second derivatives are nearly diagonal in it.
        """
        second = torch.zeros(self.dim, self.dim, device=self.device)
        # Small blocks, gone before the decomposition wants its work space: it is the peak where features are few.
        for _, block in read_blocks(self.x, self.rows[:count], self._block_bytes // 4):
            part = self.scaling.standardise(block, self.device)
            second += multiply(part.T, part)
            del block, part
        values, basis = torch.linalg.eigh(second / count)
        return values.clamp_min(0), basis

    def turned(self, weights: Tensor) -> Tensor:
        """Weights (classes, d + 1) of the features, the bias last, as weights in the eigenbasis."""
        return torch.cat([multiply(weights[:, :-1], self._basis), weights[:, -1:]], 1)

    def unturned(self, weights: Tensor) -> Tensor:
        """The inverse of `turned`."""
        return torch.cat([multiply(weights[:, :-1], self._basis.T), weights[:, -1:]], 1)

    def for_blocks(self, weights: Tensor) -> Tensor:
        """Weights in the eigenbasis as weights of what `blocks` yields, which is not turned each time it is read."""
        return weights if self.data is not None else self.unturned(weights)

    def from_blocks(self, gradient: Tensor) -> Tensor:
        """The gradient by the weights of `blocks`, as that by those in the eigenbasis."""
        return gradient if self.data is not None else self.turned(gradient)

    def blocks(self, start: int, stop: int) -> Iterator[tuple[slice, Tensor]]:
        """The rows start to stop, in blocks (b, d), and their places counted from `start`."""
        if self.data is None:
            for place, block in read_blocks(self.x, self.rows[start:stop], self._block_bytes):
                yield place, self.scaling.standardise(block, self.device)
            return
        for low in range(start, stop, self.block_rows):
            high = min(low + self.block_rows, stop)
            yield slice(low - start, high - start), self.data[low:high]

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return max(1, self._block_bytes // (4 * self.dim))

    @property
    def _block_bytes(self) -> int:
        return _GPU_BLOCK_BYTES if self.device.type == "cuda" else _BLOCK_BYTES


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b`; on a CPU by numpy's OpenBLAS, which took 10 to 70 % less time than torch's MKL for narrow matrices."""
    if a.device.type == "cpu":
        return torch.from_numpy(a.numpy() @ b.numpy())
    return a @ b


def _resident_bytes(device: torch.device) -> int:
    """A quarter of the machine's memory, or half of what is free on the GPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
