"""Frozen features of a timm classifier for every image of a split: extracted once, kept on disk, shared by jobs.

Preprocessing is the model's own (timm's data configuration), everything is float32, nothing is augmented.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from timm.data import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader

from eval.features.backbone import Backbone, Preprocessing, pooled
from eval.protocols.base import EvalConfig
from eval.tasks.registry import Task, images_fingerprint, split_rows
from tt_ray.config import Config
from tt_ray.data.augment import channels_first, normalize
from tt_ray.data.sources.base import Source
from tt_ray.data.sources.decoding import VERSION as DECODING
from tt_ray.io.files import sync
from tt_ray.models.export import data_preprocessing
from tt_ray.terminal.errors import UserError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
FORMAT = 1
"""Version of the cache; a change of extraction that changes features makes a new one."""
_FLUSH_BYTES = 64 << 20
"""Features that stay on the device before they are written: each copy makes the host wait for a GPU."""
_ROWS_PER_DECODE = 8
_AHEAD = 2
"""Batches that are decoded ahead of the forward pass."""


class TaskFeatures(NamedTuple):
    """What a protocol sees of a task: one matrix that selection may use, and the test split."""

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


def extract(backbone: Backbone, source: Source, config: EvalConfig) -> Floats:
    """Features of every image, (N, d), in order, without the cache; raises UserError naming an unreadable image."""
    out = np.empty((len(source), backbone.dim), np.float32)
    _extract(backbone.model, backbone.preprocessing, source, config, out)
    return out


def extract_features(backbone: nn.Module, source: Source, config: Config) -> Floats:
    """Features (N, d) of a run's backbone, preprocessed as in its validation."""
    preprocessing = data_preprocessing(config.data)
    settings = EvalConfig(None, Path(), threads=torch.get_num_threads())
    with torch.inference_mode():
        width = pooled(backbone.eval(), torch.zeros(1, 3, config.data.image_size, config.data.image_size)).shape[1]
    out = np.empty((len(source), width), np.float32)
    _extract(backbone, preprocessing, source, settings, out)
    return out


class Decoder:
    """Rows of a split to one uint8 batch (n, 3, size, size), in threads; can be pickled for loader processes."""

    def __init__(self, source: Source, preprocessing: Preprocessing, batches: Sequence[Ints], threads: int) -> None:
        self.source, self.batches, self.threads = source, batches, threads
        self.size = preprocessing.size
        # What a run's validation does: whole images, resized to a square; JPEGs are decoded at a smaller scale.
        given = (preprocessing.crop_mode, preprocessing.crop_pct, preprocessing.interpolation)
        self.transform: Any = None if given == ("squash", 1.0, "bicubic") else transform(preprocessing)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Tensor:
        rows = self.batches[index]
        if self.transform is None:
            return channels_first(self.source.pixels(rows, self.size))
        out = torch.empty(len(rows), 3, self.size, self.size, dtype=torch.uint8)

        def fill(start: int) -> None:
            for place in range(start, min(start + _ROWS_PER_DECODE, len(rows))):
                out[place] = self.transform(self.source.read(int(rows[place])))

        starts = range(0, len(rows), _ROWS_PER_DECODE)
        if self.threads < 2:
            for start in starts:
                fill(start)
            return out
        pool = ThreadPoolExecutor(self.threads)
        try:
            for _ in pool.map(fill, starts):
                pass
        finally:
            pool.shutdown(cancel_futures=True)
        return out


class _Told:
    """A decoder whose mistakes of the user come back as results: loader processes would wrap them in a traceback."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def __len__(self) -> int:
        return len(self.decoder)

    def __getitem__(self, index: int) -> Tensor | UserError:
        try:
            return self.decoder[index]
        except UserError as error:
            return error


def transform(preprocessing: Preprocessing) -> Any:
    """timm's evaluation transform up to uint8 (3, size, size); `normalize` then gives the bits of its last steps."""
    return create_transform(
        preprocessing.size,
        is_training=False,
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        mean=preprocessing.mean,
        std=preprocessing.std,
        normalize=False,
    )


@torch.inference_mode()
def _extract(model: nn.Module, preprocessing: Preprocessing, source: Source, config: EvalConfig, out: Floats) -> None:
    """Fills `out`, (N, d). Decodes ahead of the forward pass; the host waits for a GPU only when much has come up."""
    device = torch.device(config.device)
    at_first = next(model.parameters()).device
    model = model.to(device).eval()
    batches = np.array_split(np.arange(len(source)), range(config.batch_size, len(source), config.batch_size))
    decoder = Decoder(source, preprocessing, batches, config.threads)
    limit, start, held = config.batch_size, 0, list[Tensor]()
    try:
        for images in _ahead(decoder, config.num_loaders, device):
            features, limit = _forward(model, preprocessing, images, limit, device)
            held.extend(features)
            if sum(part.nbytes for part in held) >= _FLUSH_BYTES:
                start, held = _flush(held, out, start), []
        _flush(held, out, start)
    finally:
        model.to(at_first)


def _flush(held: list[Tensor], out: Floats, start: int) -> int:
    for part in held:
        out[start : start + len(part)] = part.cpu().numpy()
        start += len(part)
    return start


def _ahead(decoder: Decoder, num_loaders: int, device: torch.device) -> Iterator[Tensor]:
    """Batches in order, decoded by loader processes, or by threads while the caller works on the one before."""
    pin = device.type == "cuda"
    if num_loaders:
        told: Any = _Told(decoder)
        for images in DataLoader(told, batch_size=None, num_workers=num_loaders, pin_memory=pin):
            if isinstance(images, UserError):
                raise images
            yield images
        return

    def load(index: int) -> Tensor:
        images = decoder[index]
        return images.pin_memory() if pin else images

    with ThreadPoolExecutor(1) as pool:
        waiting: list[Future[Tensor]] = []
        try:
            for index in range(len(decoder) + _AHEAD):
                if index < len(decoder):
                    waiting.append(pool.submit(load, index))
                if index >= _AHEAD:
                    yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def _forward(
    model: nn.Module, preprocessing: Preprocessing, images: Tensor, limit: int, device: torch.device
) -> tuple[list[Tensor], int]:
    """Features of a uint8 batch, in parts of at most `limit` images, which is halved when memory runs out."""
    parts: list[Tensor] = []
    start = 0
    while start < len(images):
        part = images[start : start + limit]
        try:
            batch = normalize(part.to(device, non_blocking=True), preprocessing.mean, preprocessing.std)
            parts.append(pooled(model, batch))
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error) or limit == 1:
                raise
            limit = max(1, min(limit, len(part)) // 2)
        else:
            start += len(part)
            continue
        if device.type == "cuda":  # outside of the handler, whose traceback holds on to tensors
            torch.cuda.empty_cache()
    return parts, limit


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


# The cache: one folder for each model, preprocessing and set of images


def cache_key(backbone: Backbone, images: Sequence[str]) -> str:
    """Names the folder of features: a hash of weights, decoding, preprocessing, fingerprints of the images, and dtype.

    Fingerprints hold the set, its version, its split, ids, and sizes and times of the user's files; labels play no
    part, so that tasks that differ in labels alone share their features.
    """
    parts = [FORMAT, DECODING, backbone.weights, asdict(backbone.preprocessing), list(images), "float32"]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _cached(
    backbone: Backbone, task: Task, splits: Sequence[Any], config: EvalConfig
) -> tuple[Floats, Ints, tuple[int, ...]]:
    """Features of splits one after the other, their labels, and their sizes."""
    opened = [task.opened(split) for split in splits]
    sources = [each.source for each in opened]
    images = [f"{task.version} {split} {images_fingerprint(each)}" for split, each in zip(splits, opened, strict=True)]
    folder = config.cache / cache_key(backbone, images)
    sizes = tuple(map(len, sources))
    if not _complete(folder):
        with _disk_problems(config.cache):
            _write(
                folder, backbone, sources, config, {"task": task.name, "splits": list(splits), "model": backbone.spec}
            )
    x = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
    return x, np.concatenate([source.labels for source in sources]), sizes


def _complete(folder: Path) -> bool:
    """Whether the folder has its manifest, and features of the size that it tells."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return (folder / "features.npy").stat().st_size == manifest["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(
    folder: Path, backbone: Backbone, sources: Sequence[Source], config: EvalConfig, about: dict[str, Any]
) -> None:
    """Extracts into a folder beside, manifest last, and renames it; a process that comes second waits and reads."""
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
        _extract(backbone.model, backbone.preprocessing, source, config, out[start:end])
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
        raise UserError(f"cannot write features to {cache}: {os.strerror(error.errno)}: give another --cache") from None
