"""Frozen features of a task's images: extracted once, kept on disk, shared by jobs."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eval.contract import Corruption, EvalConfig, Precision
from eval.features.backbone import Backbone
from eval.features.corruptions import VERSION as CORRUPTIONS
from eval.features.extract import Floats, Ints, extract_together
from eval.tasks.registry import Task, images_fingerprint, split_rows
from tt_ray.data.sources.base import Source
from tt_ray.data.sources.decoding import VERSION as DECODING
from tt_ray.io.files import sync
from tt_ray.models.pretrained import Preprocessing
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
    training, test = _parts(task)
    x, y, sizes = _cached(backbone, task, training, config)
    test_x, test_y, _ = _cached(backbone, task, test, config)
    fit, val = split_rows(task, y, sizes[0], config.seed)
    return TaskFeatures(x, y, fit, val, test_x, test_y)


def test_features(
    backbone: Backbone, task: Task, config: EvalConfig, corruption: Corruption | None = None
) -> tuple[Floats, Ints]:
    """Features (M, d) and classes (M,) of the test split alone, perhaps corrupted, from the cache or extracted."""
    x, y, _ = _cached(backbone, task, ("test",), config, corruption)
    return x, y


def cache_key(backbone: Backbone, images: Sequence[str], precision: Precision = "fp32") -> str:
    """Names the folder of features: a hash of weights, decoding, preprocessing, fingerprints of images, and precision.

    Fingerprints hold the set, its version, its split, ids, sizes and times of the user's files, and how images are
    corrupted where they are; labels play no part, so that tasks that differ in labels alone share their features.
    """
    dtype = "float32" if precision == "fp32" else precision  # of the forward pass: features are kept in float32
    parts = [FORMAT, DECODING, backbone.weights, asdict(backbone.preprocessing), list(images), dtype]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def fill_cache(
    backbones: Sequence[Backbone], task: Task, config: EvalConfig, corruptions: Sequence[Corruption] = ()
) -> None:
    """Extracts the task's features of several models where they are missing, also those of corrupted test images.

    Images are decoded once for all models that prepare them alike. Raises UserError as `task_features` does.
    """
    parts = [_Images.of(task, splits) for splits in _parts(task)]
    for images in [*parts, *(parts[-1].corrupted(corruption) for corruption in corruptions)]:
        alike: dict[Preprocessing, list[Backbone]] = {}
        for backbone in backbones:
            alike.setdefault(backbone.preprocessing, []).append(backbone)
        for each in alike.values():
            _extract_missing(each, images, config)


def _parts(task: Task) -> list[tuple[Any, ...]]:
    """Splits whose features lie in one file; raises UserError when the task only tests."""
    if task.evaluation_only:
        raise UserError(f"{task.name} has no training images: evaluate classifiers on it, with --protocols classifier")
    return [("train", "val") if task.has_val else ("train",), ("test",)]


class _Images(NamedTuple):
    """Splits whose features lie in one file, one after the other."""

    task: str
    splits: tuple[Any, ...]
    sources: list[Source]
    fingerprints: list[str]
    corruption: Corruption | None = None

    @classmethod
    def of(cls, task: Task, splits: tuple[Any, ...]) -> "_Images":
        """Opens the splits; raises UserError when their data is not there or not as defined."""
        opened = [task.opened(split) for split in splits]
        pairs = zip(splits, opened, strict=True)
        fingerprints = [f"{task.version} {split} {images_fingerprint(each)}" for split, each in pairs]
        return cls(task.name, splits, [each.source for each in opened], fingerprints)

    def corrupted(self, corruption: Corruption) -> "_Images":
        """The same images, corrupted."""
        mark = f"corrupted {CORRUPTIONS} {corruption}"
        return self._replace(fingerprints=[*self.fingerprints, mark], corruption=corruption)


def _cached(
    backbone: Backbone, task: Task, splits: tuple[Any, ...], config: EvalConfig, corruption: Corruption | None = None
) -> tuple[Floats, Ints, tuple[int, ...]]:
    """Features of splits one after the other, their labels, and their sizes."""
    images = _Images.of(task, splits)
    if corruption is not None:
        images = images.corrupted(corruption)
    (folder,) = _extract_missing([backbone], images, config)
    x = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
    return x, np.concatenate([source.labels for source in images.sources]), tuple(map(len, images.sources))


def _extract_missing(backbones: Sequence[Backbone], images: _Images, config: EvalConfig) -> list[Path]:
    """Folders of the models' features, all complete; the models prepare images alike."""
    folders = [config.cache / cache_key(each, images.fingerprints, config.precision) for each in backbones]
    # By folder, and in this order: commands that want the same ones at once must not wait for each other for ever.
    missing = {folder: each for folder, each in sorted(zip(folders, backbones, strict=True), key=lambda pair: pair[0])}
    missing = {folder: each for folder, each in missing.items() if not _complete(folder)}
    if missing:
        with _disk_problems(config.cache):
            _write(missing, images, config)
    return folders


def _complete(folder: Path) -> bool:
    """Whether the folder has its manifest, and features of the size that this states."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return (folder / "features.npy").stat().st_size == manifest["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(missing: Mapping[Path, Backbone], images: _Images, config: EvalConfig) -> None:
    """Extracts into folders next to those, manifests last, and renames them; who comes second waits and reads."""
    with ExitStack() as stack:
        partials: dict[Path, Path] = {}
        for folder in missing:
            folder.parent.mkdir(parents=True, exist_ok=True)
            alone = stack.enter_context(_lock(folder.with_name(f".{folder.name}.lock")))
            if _complete(folder):
                continue
            if alone:  # what is left of writers that were killed
                for left in folder.parent.glob(f".{folder.name}.*.partial"):
                    shutil.rmtree(left, ignore_errors=True)
            partial = tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent)
            partials[folder] = Path(partial)
            stack.callback(shutil.rmtree, partial, ignore_errors=True)
        if partials:
            _fill({partials[folder]: missing[folder] for folder in partials}, images, config)
        for folder, partial in partials.items():
            shutil.rmtree(folder, ignore_errors=True)  # without manifest, so no complete one
            try:
                partial.rename(folder)
            except OSError:  # where locks do not work, another process may have been quicker
                if not _complete(folder):
                    raise
            sync(folder.parent)


def _fill(partials: Mapping[Path, Backbone], images: _Images, config: EvalConfig) -> None:
    count, outs = sum(map(len, images.sources)), list[Floats]()
    for folder, backbone in partials.items():
        path = folder / "features.npy"
        outs.append(np.lib.format.open_memmap(path, "w+", np.float32, (count, backbone.dim)))
        with path.open("r+b") as file:  # writing to a map of a full disk would kill the process
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    start = 0
    for source in images.sources:
        end = start + len(source)
        extract_together(list(partials.values()), source, config, [out[start:end] for out in outs], images.corruption)
        start = end
    for out in outs:
        out.flush()  # type: ignore[attr-defined]  # a map, which Floats does not say
    outs.clear()
    for folder, backbone in partials.items():
        path = folder / "features.npy"
        sync(path)
        about = {"task": images.task, "splits": list(images.splits), "model": backbone.spec}
        about |= {"corruption": str(images.corruption)} if images.corruption else {}
        sizes = {"format": FORMAT, "bytes": path.stat().st_size, "rows": count}
        (folder / "manifest.json").write_text(json.dumps(sizes | about))
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
