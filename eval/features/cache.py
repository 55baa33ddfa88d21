"""Frozen features of a task's images: extracted once, kept on disk, shared by jobs."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eval.contract import EvalConfig, Precision
from eval.features.backbone import Backbone
from eval.features.extract import Floats, Ints, extract_into
from eval.tasks.registry import Task, images_fingerprint, split_rows
from tt_ray.data.sources.base import Source
from tt_ray.data.sources.decoding import VERSION as DECODING
from tt_ray.io.files import sync
from tt_ray.terminal.errors import UserError, reason

FORMAT = 1
"""Version of the cache; a change of extraction that changes features makes a new one."""


class TaskFeatures(NamedTuple):
    """A task's features, as protocols see them: one matrix that selection may use, and the test split."""

    x: Floats
    """Features of official train, then of official val where there is one, (N, d), memory-mapped, read-only."""
    y: Ints
    """Their classes, (N,)."""
    fit: Ints
    """Rows to fit on while selecting."""
    val: Ints
    """Rows to select on; with `fit` all N."""
    test_x: Floats
    """Features of the test split, (M, d), memory-mapped, read-only."""
    test_y: Ints
    """(M,)."""


def task_features(backbone: Backbone, task: Task, config: EvalConfig) -> TaskFeatures:
    """Features of the task from the cache, extracted first where they are missing.

    Raises UserError when the task's data is not there or not as defined, and when it only tests.
    """
    if task.evaluation_only:
        raise UserError(f"{task.name} has no training images: evaluate classifiers on it, with --protocols classifier")
    splits = ("train", "val") if task.has_val else ("train",)
    x, y, sizes = _cached(backbone, task, splits, config)
    test_x, test_y, _ = _cached(backbone, task, ("test",), config)
    fit, val = split_rows(task, y, sizes[0], config.seed)
    return TaskFeatures(x, y, fit, val, test_x, test_y)


def test_features(backbone: Backbone, task: Task, config: EvalConfig) -> tuple[Floats, Ints]:
    """Features (M, d) and classes (M,) of the test split alone, from the cache or extracted."""
    x, y, _ = _cached(backbone, task, ("test",), config)
    return x, y


def cache_key(backbone: Backbone, images: Sequence[str], precision: Precision = "fp32") -> str:
    """Names the folder of features: a hash of weights, decoding, preprocessing, fingerprints of images, and precision.

    Fingerprints hold the set, its version, its split, ids, and sizes and times of the user's files; labels play no
    part, so that tasks that differ in labels alone share their features.
    """
    dtype = "float32" if precision == "fp32" else precision  # of the forward pass: features are kept in float32
    parts = [FORMAT, DECODING, backbone.weights, asdict(backbone.preprocessing), list(images), dtype]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _cached(
    backbone: Backbone, task: Task, splits: Sequence[Any], config: EvalConfig
) -> tuple[Floats, Ints, tuple[int, ...]]:
    """Features of splits one after the other, their labels, and their sizes."""
    opened = [task.opened(split) for split in splits]
    sources = [each.source for each in opened]
    images = [f"{task.version} {split} {images_fingerprint(each)}" for split, each in zip(splits, opened, strict=True)]
    folder = config.cache / cache_key(backbone, images, config.precision)
    sizes = tuple(map(len, sources))
    if not _complete(folder):
        with _disk_problems(config.cache):
            _write(
                folder, backbone, sources, config, {"task": task.name, "splits": list(splits), "model": backbone.spec}
            )
    x = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
    return x, np.concatenate([source.labels for source in sources]), sizes


def _complete(folder: Path) -> bool:
    """Whether the folder has its manifest, and features of the size that this states."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return (folder / "features.npy").stat().st_size == manifest["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(
    folder: Path, backbone: Backbone, sources: Sequence[Source], config: EvalConfig, about: dict[str, Any]
) -> None:
    """Extracts into a folder next to it, manifest last, and renames it; a process that comes second waits and reads."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_name(f".{folder.name}.lock")) as alone:
        if _complete(folder):
            return
        if alone:  # what is left of writers that were killed
            for left in folder.parent.glob(f".{folder.name}.*.partial"):
                shutil.rmtree(left, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
        try:
            _fill(partial, backbone, sources, config, about)
            shutil.rmtree(folder, ignore_errors=True)  # without manifest, so no complete one
            try:
                partial.rename(folder)
            except OSError:  # where locks do not work, another process may have been quicker
                if not _complete(folder):
                    raise
            sync(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _fill(
    folder: Path, backbone: Backbone, sources: Sequence[Source], config: EvalConfig, about: dict[str, Any]
) -> None:
    path, count = folder / "features.npy", sum(map(len, sources))
    out = np.lib.format.open_memmap(path, "w+", np.float32, (count, backbone.dim))
    with path.open("r+b") as file:  # writing to a map of a full disk would kill the process
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    start = 0
    for source in sources:
        end = start + len(source)
        extract_into(backbone, source, config, out[start:end])
        start = end
    out.flush()
    del out
    sync(path)
    size = path.stat().st_size
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "bytes": size, "rows": count, **about}))
    sync(folder / "manifest.json")


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Holds a lock that ends with its process; False where the file system has none."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True


@contextmanager
def _disk_problems(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR):
            raise
        raise UserError(f"cannot write features to {cache}: {reason(error)}: choose another --cache") from None
